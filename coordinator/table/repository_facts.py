"""Apply facts about a whole repository: it was emptied or renamed.

Both exclude all other writers of facts (db/locks.py), so that what they read stays true until they have written.
Not here: facts about single digests (digest_facts.py).
"""

from datetime import timedelta
from typing import Any

from psycopg import Connection

from coordinator.db.arrays import clamp_time
from coordinator.domain.facts import Removed, RepositoryRemoved, RepositoryRenamed
from coordinator.domain.names import Digest
from coordinator.table import implied, renames, statements
from coordinator.table.batch import ApplyResult, Item, add_results
from coordinator.table.digest_facts import FactRun


def remove_repository(
    connection: Connection[Any], fact: RepositoryRemoved, pod_id: int, margin: timedelta
) -> ApplyResult:
    """Remove everything in the repository by the rule of single removals: each may be doubtful or overtaken."""
    if not statements.read_pods_by_report(connection, {pod_id}):
        values = {"name": fact.repository, "at": clamp_time(fact.at), "margin": margin}
        connection.execute(_MARK_REPORTED, values)
        doubtful = connection.execute(_MAKE_DOUBTFUL, values)
        return ApplyResult(removals_doubtful=doubtful.rowcount)
    applied = ApplyResult()
    after = -1
    while True:
        found = connection.execute(
            _SELECT_HELD, {"name": fact.repository, "after": after, "limit": PAGE_SIZE}
        ).fetchall()
        if not found:
            return applied
        facts = [Removed(fact.repository, Digest(digest), fact.at, entirely=True) for _, digest in found]
        applied = add_results(
            applied, FactRun(connection, [_make_item(pod_id, each) for each in facts], margin, alone=True).apply()
        )
        after = found[-1][0]


def _make_item(pod_id: int, fact: Removed) -> Item:
    return Item(0, 0, pod_id, fact, None)


#: How many digests are removed at once, so that no statement exceeds its timeout.
PAGE_SIZE = 5000

_SELECT_HELD = """
SELECT b.id, b.digest FROM (
    SELECT h.manifest_id FROM repositories r JOIN repository_manifests h ON h.repository_id = r.id
    WHERE r.name = %(name)s AND h.manifest_id > %(after)s
    UNION
    SELECT l.blob_id FROM repositories r JOIN repository_blobs l ON l.repository_id = r.id
    WHERE r.name = %(name)s AND l.blob_id > %(after)s
    ORDER BY 1 LIMIT %(limit)s
) held (id) JOIN blobs b ON b.id = held.id ORDER BY b.id
"""

#: For pods whose links can be read: these must confirm each removal.
_MAKE_DOUBTFUL = """
INSERT INTO removals (repository_id, digest, removed_at, doubtful_since)
SELECT held.repository_id, b.digest, %(at)s::timestamptz, now() FROM (
    SELECT h.repository_id, h.manifest_id, h.pushed_at
    FROM repositories r JOIN repository_manifests h ON h.repository_id = r.id WHERE r.name = %(name)s
    UNION ALL
    SELECT l.repository_id, l.blob_id, l.event_at
    FROM repositories r JOIN repository_blobs l ON l.repository_id = r.id WHERE r.name = %(name)s
) held (repository_id, id, at) JOIN blobs b ON b.id = held.id
GROUP BY held.repository_id, b.digest HAVING min(held.at) - %(at)s::timestamptz <= %(margin)s
ON CONFLICT (repository_id, digest) DO UPDATE
SET removed_at = greatest(removals.removed_at, excluded.removed_at), seen_at = now(), doubtful_since = now(),
    reported = true, vanished_since = NULL, vanished_added_at = NULL, vanished_kind = NULL
"""

#: Links of the repository that had vanished before this event arrived, and that the event explains.
_MARK_REPORTED = """
UPDATE removals r SET reported = true, vanished_since = NULL, vanished_added_at = NULL, vanished_kind = NULL
FROM repositories n
WHERE n.name = %(name)s AND r.repository_id = n.id AND r.vanished_since IS NOT NULL
  AND r.vanished_added_at - %(at)s::timestamptz <= %(margin)s
"""


def rename_repositories(connection: Connection[Any], fact: RepositoryRenamed, pod_id: int, margin: timedelta) -> None:
    """Rename the repository, and with `below` those under it, too; merge if the new name exists.

    What was added under the old name after the rename stays there: a repeated rename must not move it. It may have been
    there before as well, which is not known, since a holding has only its last time: then a gap is recorded.
    """
    fact = fact._replace(at=clamp_time(fact.at))
    old, new, at = fact.repository, fact.destination, fact.at
    if new == old:
        return
    is_new = renames.record_rename(connection, fact, pod_id)
    if renames.overlaps_later_rename(connection, fact, margin, is_new=is_new):
        renames.record_rename_gaps(connection, {pod_id})
    if not is_new and fact.below and (new.startswith(f"{old}/") or old.startswith(f"{new}/")):
        # What it moved has a name below the old one, too, and would be moved again. Older things that arrived under the
        # old name since then were recorded as a gap (renames.py).
        return
    names = connection.execute(
        "SELECT id, name FROM repositories WHERE name = %s OR (%s AND name LIKE %s)",
        (old, fact.below, old.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%") + "/%"),
    ).fetchall()
    # If a namespace moves along its own path, new names may equal old ones. All names change their length by the same
    # amount, so in the order of length each name is free before another repository takes it.
    names.sort(key=lambda row: len(row[1]), reverse=len(new) > len(old))
    for number, name in names:
        if _has_later_facts(connection, {"source": number, "at": at, "margin": timedelta()}):
            renames.record_rename_gaps(connection, {pod_id})
        _rename_repository(connection, number, new + name.removeprefix(old), {"at": at, "margin": margin})


#: Table, column of the digest's id, the registry's time.
_FACT_TABLES = (
    ("repository_manifests", "manifest_id", "pushed_at"),
    ("repository_blobs", "blob_id", "event_at"),
)


def _rename_repository(connection: Connection[Any], source: int, name: str, when: dict[str, Any]) -> None:
    values = {"source": source, "name": name} | when
    row = connection.execute("SELECT id FROM repositories WHERE name = %(name)s", values).fetchone()
    if row is None:
        if not _has_later_facts(connection, values):
            connection.execute("UPDATE repositories SET name = %(name)s WHERE id = %(source)s", values)
            return
        row = connection.execute(
            "INSERT INTO repositories (name, pod_id) SELECT %(name)s, pod_id FROM repositories WHERE id = %(source)s"
            " RETURNING id",
            values,
        ).fetchone()
        assert row is not None
    if row[0] != source:
        _merge_repositories(connection, values | {"destination": row[0]})


def _has_later_facts(connection: Connection[Any], values: dict[str, Any]) -> bool:
    """Whether anything was added to, or removed from, `source` after the rename."""
    times = [(table, time) for table, _, time in _FACT_TABLES]
    later = " UNION ALL ".join(
        f"SELECT FROM {table} WHERE repository_id = %(source)s AND {time} > %(at)s::timestamptz + %(margin)s"
        for table, time in (*times, ("removals", "removed_at"))
    )
    return connection.execute(f"{later} LIMIT 1", values).rowcount > 0


def _merge_repositories(connection: Connection[Any], values: dict[str, Any]) -> None:
    """Move what `source` had at the time of the rename to a repository that exists already."""
    twice, linked_twice = (
        _read_common(connection, table, column, time, values) for table, column, time in _FACT_TABLES
    )
    for table, column, time in _FACT_TABLES:
        _move_rows(connection, table, column, time, values)
    # It does not matter which links moved: those of the destination are listed anew (reconcile/link_keeper.py).
    connection.execute(
        """
        UPDATE repository_manifests h SET links_pending = true FROM manifests m
        WHERE h.repository_id = %(destination)s AND m.id = h.manifest_id AND m.by_links
        """,
        values,
    )
    _move_removals(connection, values)
    connection.execute(
        """
        DELETE FROM repositories WHERE id = %(source)s
        AND NOT EXISTS (SELECT FROM repository_manifests WHERE repository_id = %(source)s)
        AND NOT EXISTS (SELECT FROM repository_blobs WHERE repository_id = %(source)s)
        AND NOT EXISTS (SELECT FROM removals WHERE repository_id = %(source)s)
        """,
        values,
    )
    statements.count_rows(connection, twice, linked_twice, by=-1)
    implied.repair_repositories(connection, [values["source"], values["destination"]])


def _read_common(connection: Connection[Any], table: str, column: str, time: str, values: dict[str, Any]) -> list[int]:
    found = connection.execute(
        f"""
        SELECT s.{column} FROM {table} s JOIN {table} d ON d.{column} = s.{column}
        WHERE s.repository_id = %(source)s AND d.repository_id = %(destination)s
          AND s.{time} <= %(at)s::timestamptz + %(margin)s
        """,
        values,
    )
    return [row[0] for row in found]


def _move_rows(connection: Connection[Any], table: str, column: str, time: str, values: dict[str, Any]) -> None:
    moves = f"s.repository_id = %(source)s AND s.{time} <= %(at)s::timestamptz + %(margin)s"
    more = "linked_at = greatest(d.linked_at, s.linked_at), kept = d.kept OR s.kept"
    if table == "repository_manifests":
        more = "implied = d.implied AND s.implied"
    connection.execute(
        f"""
        UPDATE {table} d SET {time} = greatest(d.{time}, s.{time}), {more} FROM {table} s
        WHERE d.repository_id = %(destination)s AND s.{column} = d.{column} AND {moves}
        """,
        values,
    )
    connection.execute(
        f"""
        DELETE FROM {table} s USING {table} d
        WHERE d.repository_id = %(destination)s AND s.{column} = d.{column} AND {moves}
        """,
        values,
    )
    connection.execute(f"UPDATE {table} s SET repository_id = %(destination)s WHERE {moves}", values)


def _move_removals(connection: Connection[Any], values: dict[str, Any]) -> None:
    """Move the source's removals to the destination, and make those doubtful that its holdings or links contradict."""
    connection.execute(
        """
        WITH moved AS (
            DELETE FROM removals
            WHERE repository_id = %(source)s AND removed_at <= %(at)s::timestamptz + %(margin)s RETURNING *
        )
        INSERT INTO removals (repository_id, digest, removed_at, seen_at, doubtful_since, reported,
                              vanished_since, vanished_added_at, vanished_kind)
        SELECT %(destination)s, digest, removed_at, seen_at, doubtful_since, reported,
               vanished_since, vanished_added_at, vanished_kind FROM moved
        ON CONFLICT (repository_id, digest) DO UPDATE
        SET removed_at = greatest(removals.removed_at, excluded.removed_at),
            seen_at = greatest(removals.seen_at, excluded.seen_at),
            doubtful_since = coalesce(removals.doubtful_since, excluded.doubtful_since)
        """,
        values,
    )
    for table, column, time in _FACT_TABLES:
        connection.execute(
            f"""
            UPDATE removals r SET doubtful_since = now() FROM {table} t JOIN blobs b ON b.id = t.{column}
            WHERE r.repository_id = %(destination)s AND t.repository_id = r.repository_id AND b.digest = r.digest
              AND r.doubtful_since IS NULL AND t.{time} - r.removed_at <= %(margin)s
            """,
            values,
        )
