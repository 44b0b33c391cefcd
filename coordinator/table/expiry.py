"""Delete rows that have expired, in bounded transactions.

Rows that a batch has locked are left for the next sweep: a sweep never waits for them, so it causes no deadlock.
"""

from datetime import timedelta
from typing import Any

from psycopg import Connection

from coordinator.db import locks
from coordinator.table import statements

BATCH_SIZE = 1000
#: Added to Kafka's retention: after that, no late addition can arrive that contradicts a removal.
REMOVALS_RETENTION = timedelta(days=30)


def delete_expired_links(connection: Connection[Any], grace: timedelta, batch: int = BATCH_SIZE) -> int:
    """Delete direct links of pods of mode `manifest` that are older than the grace; return how many.

    In a pod that cannot be reconciled, two kinds stay:
    - that of a manifest which the repository holds: without it the blob's delete would be taken for the manifest's
      (domain/fold.py)
    - all links of a repository that holds a manifest whose bytes do not say all that it needs (table/kept_by_links.py)
    """
    total = 0
    while True:
        with connection.transaction():
            locks.lock_facts(connection)
            expired = connection.execute(
                """
                WITH old AS MATERIALIZED (
                    SELECT l.blob_id, l.repository_id FROM repository_blobs l
                    JOIN repositories r ON r.id = l.repository_id JOIN pods p ON p.id = r.pod_id
                    WHERE l.linked_at < now() - %s AND p.mode = 'manifest' AND NOT l.kept
                      AND (p.is_reconcilable OR NOT EXISTS (
                        SELECT FROM repository_manifests h
                        WHERE h.manifest_id = l.blob_id AND h.repository_id = l.repository_id)
                        AND NOT EXISTS (
                        SELECT FROM manifests m JOIN repository_manifests h ON h.manifest_id = m.id
                        WHERE (m.by_links OR m.refs IS NULL) AND h.repository_id = l.repository_id))
                    ORDER BY l.linked_at LIMIT %s FOR UPDATE OF l SKIP LOCKED
                )
                DELETE FROM repository_blobs l USING old
                WHERE l.blob_id = old.blob_id AND l.repository_id = old.repository_id RETURNING l.blob_id
                """,
                (grace, batch),
            ).fetchall()
            statements.count_rows(connection, [], [row[0] for row in expired], by=-1)
        total += len(expired)
        if len(expired) < batch:
            return total


def resolve_needless_removals(connection: Connection[Any]) -> int:
    """Resolve doubtful removals of what the table no longer has, such as expired links; return how many.

    If the repository has neither, nothing is doubtful (domain/fold.py). For pods whose links cannot be read, nothing
    else would resolve these.
    """
    if not connection.execute(f"SELECT FROM ({_NEEDLESS_REMOVALS} LIMIT 1) x").rowcount:
        return 0
    with connection.transaction():
        # Alone: a writer that adds the holding or link again makes the removal doubtful again.
        locks.lock_facts(connection, alone=True)
        return connection.execute(
            f"""
            UPDATE removals x SET doubtful_since = NULL FROM ({_NEEDLESS_REMOVALS} LIMIT {BATCH_SIZE}) d
            WHERE x.repository_id = d.repository_id AND x.digest = d.digest
            """
        ).rowcount


_NEEDLESS_REMOVALS = """
SELECT r.repository_id, r.digest FROM removals r WHERE r.doubtful_since IS NOT NULL
AND NOT EXISTS (SELECT FROM blobs b JOIN repository_manifests h ON h.manifest_id = b.id
                WHERE b.digest = r.digest AND h.repository_id = r.repository_id)
AND NOT EXISTS (SELECT FROM blobs b JOIN repository_blobs l ON l.blob_id = b.id
                WHERE b.digest = r.digest AND l.repository_id = r.repository_id)
"""


def delete_old_removals(connection: Connection[Any], retention: timedelta, batch: int = BATCH_SIZE) -> int:
    """Delete removals and renames that no late event can contradict any more; return how many. Doubtful ones stay.

    `retention`: how long Kafka keeps the events.
    """
    kept = REMOVALS_RETENTION + retention
    total = connection.execute("DELETE FROM renames WHERE seen_at < now() - %s", (kept,)).rowcount
    while True:
        forgotten = connection.execute(
            """
            WITH old AS MATERIALIZED (
                SELECT repository_id, digest FROM removals
                WHERE seen_at < now() - %s AND doubtful_since IS NULL AND vanished_since IS NULL
                ORDER BY seen_at LIMIT %s FOR UPDATE SKIP LOCKED
            )
            DELETE FROM removals r USING old WHERE r.repository_id = old.repository_id AND r.digest = old.digest
            """,
            (kept, batch),
        ).rowcount
        total += forgotten
        if forgotten < batch:
            return total
