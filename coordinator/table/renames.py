"""Remember applied renames, to detect events that arrive after a rename and happened before it.

A rename and the pushes below a namespace are in different partitions, and each process has its own queue. So a push
under the old name may be applied after the rename that should have moved it, and stay under the old name. The same can
happen to two renames in a row. No rule repairs this in all orders, so a gap is recorded, which blocks GC until a
reconcile resolves it. A delete under the new name may arrive after the rename and be of what was there before: it is
not applied without a check of storage.
Not here: what a rename changes (repository_facts.py), when it is deleted (expiry.py).
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from psycopg import Connection

from coordinator.domain.facts import ManifestRead, Removed, RepositoryRenamed
from coordinator.domain.names import RepositoryName
from coordinator.domain.pods import prefixes_of
from coordinator.domain.progress import GapReason
from coordinator.table.batch import Item


def record_rename(connection: Connection[Any], fact: RepositoryRenamed, pod_id: int) -> bool:
    """Store a rename; return whether it was new. All other writers must be excluded (db/locks.py)."""
    key = (fact.repository, fact.destination, fact.below, fact.at)
    known = connection.execute(
        "SELECT FROM renames WHERE source = %s AND destination = %s AND below = %s AND at = %s", key
    ).rowcount
    connection.execute(
        """
        INSERT INTO renames (source, destination, below, at, pod_id) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (source, destination, below, at) DO UPDATE SET seen_at = now()
        """,
        (*key, pod_id),
    )
    return not known


def overlaps_later_rename(
    connection: Connection[Any], fact: RepositoryRenamed, margin: timedelta, *, is_new: bool
) -> bool:
    """Whether a rename that may be later than this one was applied before it and overlaps with it.

    It may have moved things to the source, or around or below it, which this one would move along. Or it has missed
    things that this one moves or leaves; that is checked only the first time, since later arrivals are detected
    otherwise.
    """
    values = fact._asdict() | {"margin": margin, "is_new": is_new}
    found = connection.execute(
        f"""
        SELECT FROM renames r
        WHERE r.at + %(margin)s >= %(at)s
          AND (r.source, r.destination, r.below, r.at) <> (%(repository)s, %(destination)s, %(below)s, %(at)s)
          AND ({_overlaps("r.destination", "%(repository)s::text")} OR %(is_new)s AND (
               {_overlaps("r.source", "%(repository)s::text")} OR {_overlaps("r.source", "%(destination)s::text")}))
        LIMIT 1
        """,
        values,
    )
    return found.rowcount > 0


def _overlaps(name: str, other: str) -> str:
    return f"(starts_with({name} || '/', {other} || '/') OR starts_with({other} || '/', {name} || '/'))"


def read_renamed_over(
    connection: Connection[Any], removals: Collection[Removed], margin: timedelta
) -> set[RepositoryName]:
    """Return the repositories whose removals may be older than what a rename moved there.

    What a rename moves keeps the time of its push, which does not say since when it has this name.
    """
    if not removals or not connection.execute("SELECT FROM renames LIMIT 1").rowcount:
        return set()
    names = {prefix for fact in removals for prefix in prefixes_of(fact.repository)}
    found = connection.execute(
        "SELECT destination, max(at) FROM renames WHERE destination = ANY(%s::text[]) GROUP BY destination",
        (list(names),),
    )
    latest = dict(found.fetchall())
    return {
        fact.repository
        for fact in removals
        if any(name in latest and fact.at <= latest[name] + margin for name in prefixes_of(fact.repository))
    }


def record_late_facts(connection: Connection[Any], run: list[Item], margin: timedelta) -> None:
    """Record a gap for pods that have facts in this run which may be older than an applied rename."""
    # Renames are rare: without any, no other query is made.
    if not connection.execute("SELECT FROM renames LIMIT 1").rowcount:
        return
    facts = [item.fact for item in run if item.fact is not None and not isinstance(item.fact, ManifestRead)]
    names = {prefix for fact in facts for prefix in prefixes_of(fact.repository)}
    found = connection.execute(
        "SELECT source, below, max(at) FROM renames WHERE source = ANY(%s::text[]) GROUP BY source, below",
        (list(names),),
    )
    latest = {(source, below): at for source, below, at in found}
    record_rename_gaps(connection, {item.pod_id for item in run if _is_late(item, latest, margin)})


def _is_late(item: Item, latest: dict[tuple[str, bool], Any], margin: timedelta) -> bool:
    fact = item.fact
    if fact is None or isinstance(fact, ManifestRead):
        return False
    times = (latest.get((name, below)) for name in prefixes_of(fact.repository) for below in (True, False))
    return any(at is not None and fact.at <= at + margin for at in times)


def record_rename_gaps(connection: Connection[Any], pods: set[int]) -> None:
    """Record for each of these pods that something may be stored under an old name in the table.

    Each pod has one such gap: a reconcile that is already running does not resolve it.
    """
    # Open gaps first, then missing ones: a gap that is resolved in between is recorded anew.
    connection.execute(
        """
        UPDATE gaps SET resolves_from = greatest(resolves_from, clock_timestamp())
        WHERE pod_id = ANY(%s::int[]) AND reason = %s AND resolved_at IS NULL
        """,
        (sorted(pods), GapReason.RENAMED),
    )
    connection.execute(
        """
        INSERT INTO gaps (pod_id, topic, partition, reason, from_offset)
        SELECT d.id, '', -1, %s, 0 FROM unnest(%s::int[]) d (id)
        WHERE NOT EXISTS (SELECT FROM gaps g WHERE g.pod_id = d.id AND g.reason = %s AND g.resolved_at IS NULL)
        """,
        (GapReason.RENAMED, sorted(pods), GapReason.RENAMED),
    )
