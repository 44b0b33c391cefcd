"""Renames that were applied, remembered so that events which come later and happened earlier are noticed.

A rename and the pushes below a namespace are in different partitions, and processes have queues of their own. So a push
under the old name may be applied after the rename that should have moved it, and stay under the old name. No rule puts
that right in all orders; so it is recorded as a gap, which holds garbage collection until somebody has looked.
Not here: what a rename does to what is known already (barriers.py), when it is forgotten (sweep.py).
"""

from datetime import timedelta
from typing import Any

from psycopg import Connection

from coordinator.db.batch import Item
from coordinator.domain.facts import RepositoryRenamed
from coordinator.domain.pods import prefixes_of
from coordinator.domain.progress import GapReason


def remember(connection: Connection[Any], fact: RepositoryRenamed, pod_id: int) -> None:
    connection.execute(
        """
        INSERT INTO renames (source, destination, below, at, pod_id) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (source, destination, below, at) DO UPDATE SET seen_at = now()
        """,
        (fact.repository, fact.destination, fact.below, fact.at, pod_id),
    )


def notice_late(connection: Connection[Any], run: list[Item], margin: timedelta) -> None:
    """Record a gap for pods of which the run has facts that may be from before a rename that was applied."""
    # Almost never is there any, and then nothing else is asked.
    if not connection.execute("SELECT FROM renames LIMIT 1").rowcount:
        return
    names = {prefix for item in run if item.fact is not None for prefix in prefixes_of(item.fact.repository)}
    found = connection.execute(
        "SELECT source, below, max(at) FROM renames WHERE source = ANY(%s::text[]) GROUP BY source, below",
        (list(names),),
    )
    latest = {(source, below): at for source, below, at in found}
    record_gap(connection, {item.pod_id for item in run if _is_late(item, latest, margin)})


def _is_late(item: Item, latest: dict[tuple[str, bool], Any], margin: timedelta) -> bool:
    fact = item.fact
    if fact is None:
        return False
    times = (latest.get((name, below)) for name in prefixes_of(fact.repository) for below in (True, False))
    return any(at is not None and fact.at <= at + margin for at in times)


def record_gap(connection: Connection[Any], pods: set[int]) -> None:
    """Record for each of these pods that something may be under a name that it has no more; one gap is enough."""
    connection.execute(
        """
        INSERT INTO gaps (pod_id, topic, partition, reason, from_offset)
        SELECT d.id, '', -1, %s, 0 FROM unnest(%s::int[]) d (id)
        WHERE NOT EXISTS (SELECT FROM gaps g WHERE g.pod_id = d.id AND g.reason = %s AND g.settled_at IS NULL)
        """,
        (GapReason.RENAMED, sorted(pods), GapReason.RENAMED),
    )
