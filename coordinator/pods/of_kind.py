"""Read what the module of a kind needs to know of a pod (kinds/)."""

from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import Connection

from coordinator.domain.findings import Check, Result
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind, PodMode


class PodOfKind(NamedTuple):
    name: PodName
    kind: PodKind
    mode: PodMode
    prefixes: Sequence[RepositoryName]
    #: The identity of the database that the doctor has proved to be its registry's; empty if none is proved.
    database: str = ""


#: Columns of the pod `p`, for `make_pod_of_kind`.
COLUMNS: Final[LiteralString] = f"""
    p.name, p.kind, p.mode, ARRAY(SELECT x.prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY x.prefix),
    coalesce((SELECT f.subject FROM findings f WHERE f.pod_id = p.id AND f."check" = '{Check.REGISTRY_DATABASE.value}'
              AND f.result = '{Result.PROVED.value}'), '')
"""


def make_pod_of_kind(row: Sequence[Any]) -> PodOfKind:
    name, kind, mode, prefixes, database = row
    return PodOfKind(PodName(name), PodKind(kind), PodMode(mode), [RepositoryName(each) for each in prefixes], database)


def read_pods_of_kinds(connection: Connection[Any]) -> list[PodOfKind]:
    """Return all pods."""
    return [make_pod_of_kind(row) for row in connection.execute(f"SELECT {COLUMNS} FROM pods p ORDER BY p.id")]
