"""Read what the prober needs: every pod's registries, and what is known of their addresses."""

from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.domain.names import PodName
from coordinator.domain.pods import ProbeMethod


class KnownAddress(NamedTuple):
    """What `endpoints` has of one address of a registry."""

    #: A process has answered there at some time.
    answered: bool
    #: More than one process answers there.
    shared: bool


class Target(NamedTuple):
    """One pod to probe."""

    pod_id: int
    pod: PodName
    #: The first of its prefixes.
    prefix: str
    #: Its registries' URLs.
    urls: tuple[str, ...]
    #: By URL and address.
    known: dict[tuple[str, str], KnownAddress]
    #: Its processes that are not known to be dead.
    processes: int
    #: How its registry is probed.
    probe: ProbeMethod
    #: When this was read, by the database's clock: earlier than anything that is done with it.
    read_at: datetime


_TARGETS = """
SELECT p.id, p.name, p.registries, p.probe, clock_timestamp(),
       (SELECT min(x.prefix) FROM pod_prefixes x WHERE x.pod_id = p.id),
       (SELECT count(*) FROM processes s WHERE s.pod_id = p.id AND s.dead_since IS NULL AND s.retired_at IS NULL)
FROM pods p WHERE cardinality(p.registries) > 0 AND p.managed ORDER BY p.id
"""
_KNOWN = "SELECT pod_id, url, address, answered_at IS NOT NULL, shared FROM endpoints"


def read_targets(connection: Connection[Any]) -> list[Target]:
    """Return every managed pod that has registries: a pod that sends no events returns no probe."""
    known: dict[int, dict[tuple[str, str], KnownAddress]] = {}
    for pod_id, url, address, answered, shared in connection.execute(_KNOWN):
        known.setdefault(pod_id, {})[url, address] = KnownAddress(answered, shared)
    return [
        Target(
            pod_id, PodName(name), prefix, tuple(urls), known.get(pod_id, {}), processes, ProbeMethod(probe), read_at
        )
        for pod_id, name, urls, probe, read_at, prefix, processes in connection.execute(_TARGETS)
    ]
