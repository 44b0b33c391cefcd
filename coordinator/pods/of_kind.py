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
    #: The same as of the last visit that proved one.
    last_database: str = ""


_FINDING: Final[LiteralString] = f"""
    FROM findings f WHERE f.pod_id = p.id AND f."check" = '{Check.REGISTRY_DATABASE.value}'
"""
#: Columns of the pod `p`, for `make_pod_of_kind`.
COLUMNS: Final[LiteralString] = f"""
    p.name, p.kind, p.mode, ARRAY(SELECT x.prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY x.prefix),
    coalesce((SELECT f.subject {_FINDING} AND f.result = '{Result.PROVED.value}'), ''),
    coalesce((SELECT f.subject {_FINDING}), '')
"""


def make_pod_of_kind(row: Sequence[Any]) -> PodOfKind:
    name, kind, mode, prefixes, *databases = row
    owned = [RepositoryName(each) for each in prefixes]
    return PodOfKind(PodName(name), PodKind(kind), PodMode(mode), owned, *databases)


def read_pods_of_kinds(connection: Connection[Any]) -> list[PodOfKind]:
    """Return all pods."""
    return [make_pod_of_kind(row) for row in connection.execute(f"SELECT {COLUMNS} FROM pods p ORDER BY p.id")]
