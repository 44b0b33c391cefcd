"""Rows that time alone makes superfluous, deleted in bounded transactions.

Rows that a batch has locked are left for the next time: a sweep waits for no fact, so it cannot be part of a deadlock.
"""

from datetime import timedelta
from typing import Any

from psycopg import Connection

from coordinator.db import locks, rows

BATCH = 1000
#: An older removal cannot meet a late addition any more: Kafka keeps records for a shorter time.
REMOVALS_KEPT = timedelta(days=30)


def expire_links(connection: Connection[Any], grace: timedelta) -> int:
    """Delete direct links of pods of mode `manifest` that are older than the grace; return how many."""
    total = 0
    while True:
        with connection.transaction():
            locks.enter(connection)
            expired = connection.execute(
                """
                WITH old AS MATERIALIZED (
                    SELECT l.blob_id, l.repository_id FROM repository_blobs l
                    JOIN repositories r ON r.id = l.repository_id JOIN pods p ON p.id = r.pod_id
                    WHERE l.linked_at < now() - %s AND p.mode = 'manifest'
                    ORDER BY l.linked_at LIMIT %s FOR UPDATE OF l SKIP LOCKED
                )
                DELETE FROM repository_blobs l USING old
                WHERE l.blob_id = old.blob_id AND l.repository_id = old.repository_id RETURNING l.blob_id
                """,
                (grace, BATCH),
            ).fetchall()
            rows.recount(connection, [], [row[0] for row in expired], by=-1)
        total += len(expired)
        if len(expired) < BATCH:
            return total


def forget_removals(connection: Connection[Any]) -> int:
    """Delete removals, and renames, that nothing can contradict any more; doubtful ones stay. Return how many."""
    total = connection.execute("DELETE FROM renames WHERE seen_at < now() - %s", (REMOVALS_KEPT,)).rowcount
    while True:
        forgotten = connection.execute(
            """
            WITH old AS MATERIALIZED (
                SELECT repository_id, digest FROM removals
                WHERE seen_at < now() - %s AND doubtful_since IS NULL
                ORDER BY seen_at LIMIT %s FOR UPDATE SKIP LOCKED
            )
            DELETE FROM removals r USING old WHERE r.repository_id = old.repository_id AND r.digest = old.digest
            """,
            (REMOVALS_KEPT, BATCH),
        ).rowcount
        total += forgotten
        if forgotten < BATCH:
            return total
