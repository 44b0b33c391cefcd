"""Facts about a whole repository: it was emptied, or it has another name.

Both run while nobody else writes facts (locks.py), so that what they read stays true until they have written.
Not here: facts about single digests (run.py).
"""

from datetime import timedelta
from typing import Any

from psycopg import Connection

from coordinator.db import rows
from coordinator.db.batch import Applied, Item
from coordinator.db.run import Run
from coordinator.domain.facts import Removed, RepositoryRemoved, RepositoryRenamed
from coordinator.domain.names import Digest


def remove_repository(
    connection: Connection[Any], fact: RepositoryRemoved, pod_id: int, margin: timedelta
) -> Applied:
    """Remove all that the repository has, by the rule of single removals: each may be doubtful or overtaken."""
    digests = connection.execute(
        """
        SELECT b.digest FROM repositories r JOIN repository_manifests h ON h.repository_id = r.id
        JOIN blobs b ON b.id = h.manifest_id WHERE r.name = %(name)s
        UNION
        SELECT b.digest FROM repositories r JOIN repository_blobs l ON l.repository_id = r.id
        JOIN blobs b ON b.id = l.blob_id WHERE r.name = %(name)s
        """,
        {"name": fact.repository},
    ).fetchall()
    items = [Item(0, 0, pod_id, Removed(fact.repository, Digest(row[0]), fact.at), None) for row in digests]
    return Run(connection, items, margin, alone=True).apply() if items else Applied()


def rename_repositories(connection: Connection[Any], fact: RepositoryRenamed, margin: timedelta) -> None:
    """Give the repository its new name, and with `below` also those under it; merge where the name is taken."""
    old = fact.repository
    names = connection.execute(
        "SELECT id, name FROM repositories WHERE name = %s OR (%s AND name LIKE %s) ORDER BY name",
        (old, fact.below, old.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%") + "/%"),
    ).fetchall()
    for number, name in names:
        _rename(connection, number, fact.destination + name.removeprefix(old), margin)


def _rename(connection: Connection[Any], source: int, name: str, margin: timedelta) -> None:
    row = connection.execute("SELECT id FROM repositories WHERE name = %s", (name,)).fetchone()
    if row is None:
        connection.execute("UPDATE repositories SET name = %s WHERE id = %s", (name, source))
    elif row[0] != source:
        _merge(connection, source, row[0], margin)


def _merge(connection: Connection[Any], source: int, destination: int, margin: timedelta) -> None:
    """Move all that `source` has to a repository that exists already: events under the new name came first."""
    ids = {"source": source, "destination": destination, "margin": margin}
    # Doubt what the destination saw removed around the time, or after, it was pushed to the source.
    for table, column, time in (
        ("repository_manifests", "manifest_id", "pushed_at"),
        ("repository_blobs", "blob_id", "event_at"),
    ):
        connection.execute(
            f"""
            UPDATE removals r SET doubtful_since = coalesce(r.doubtful_since, now())
            FROM {table} t JOIN blobs b ON b.id = t.{column}
            WHERE t.repository_id = %(source)s AND r.repository_id = %(destination)s AND r.digest = b.digest
              AND t.{time} - r.removed_at <= %(margin)s
            """,
            ids,
        )
    twice = _both(connection, "repository_manifests", "manifest_id", ids)
    linked_twice = _both(connection, "repository_blobs", "blob_id", ids)
    deltas: dict[int, list[int]] = {}
    for manifest, refs in rows.manifests(connection, twice).items():
        for blob in (manifest, *(refs or ())):
            deltas.setdefault(blob, [0, 0])[0] -= 1
    for blob in linked_twice:
        deltas.setdefault(blob, [0, 0])[1] -= 1
    for table, column, time in (
        ("repository_manifests", "manifest_id", "pushed_at"),
        ("repository_blobs", "blob_id", "event_at"),
    ):
        _move(connection, table, column, time, ids)
    connection.execute(
        """
        INSERT INTO removals (repository_id, digest, removed_at, seen_at, doubtful_since)
        SELECT %(destination)s, digest, removed_at, seen_at, doubtful_since FROM removals
        WHERE repository_id = %(source)s
        ON CONFLICT (repository_id, digest) DO UPDATE
        SET removed_at = greatest(removals.removed_at, excluded.removed_at),
            doubtful_since = coalesce(removals.doubtful_since, excluded.doubtful_since)
        """,
        ids,
    )
    connection.execute("DELETE FROM removals WHERE repository_id = %(source)s", ids)
    connection.execute("DELETE FROM repositories WHERE id = %(source)s", ids)
    rows.add_counts(connection, [rows.Delta(blob, refs, links) for blob, (refs, links) in sorted(deltas.items())])


def _both(connection: Connection[Any], table: str, column: str, ids: dict[str, Any]) -> list[int]:
    found = connection.execute(
        f"""
        SELECT s.{column} FROM {table} s JOIN {table} d ON d.{column} = s.{column}
        WHERE s.repository_id = %(source)s AND d.repository_id = %(destination)s
        """,
        ids,
    )
    return [row[0] for row in found]


def _move(connection: Connection[Any], table: str, column: str, time: str, ids: dict[str, Any]) -> None:
    connection.execute(
        f"""
        UPDATE {table} d SET {time} = greatest(d.{time}, s.{time}) FROM {table} s
        WHERE d.repository_id = %(destination)s AND s.repository_id = %(source)s AND s.{column} = d.{column}
        """,
        ids,
    )
    connection.execute(
        f"""
        DELETE FROM {table} s USING {table} d
        WHERE s.repository_id = %(source)s AND d.repository_id = %(destination)s AND s.{column} = d.{column}
        """,
        ids,
    )
    connection.execute(f"UPDATE {table} SET repository_id = %(destination)s WHERE repository_id = %(source)s", ids)
