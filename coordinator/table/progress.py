"""Read and set the progress of partitions, and record the gaps that were found in them.

Not here: how a position is decided (domain/progress.py), advancing it with a batch (apply.py).
"""

from typing import Any

from psycopg import Connection

from coordinator.domain.progress import GapReason, Position, Progress

Partition = tuple[str, int]


def read_progress(connection: Connection[Any], partitions: list[Partition]) -> dict[Partition, Progress]:
    """Return the progress of the partitions that have any."""
    rows = connection.execute(
        """
        SELECT topic, partition, next_offset, fingerprint, topic_id
        FROM partition_progress JOIN unnest(%s::text[], %s::int[]) wanted (topic, partition) USING (topic, partition)
        """,
        ([topic for topic, _ in partitions], [number for _, number in partitions]),
    )
    return {(row[0], row[1]): Progress(row[2], row[3], row[4]) for row in rows}


def set_position(connection: Connection[Any], partition: Partition, seen: Progress | None, position: Position) -> bool:
    """Set a partition to a position that was decided from `seen`, and record its gap for every pod.

    Return False, with nothing changed, if the partition has moved since: decide again. Lost records may be of any
    repository, so a gap concerns every pod.
    """
    topic, number = partition
    with connection.transaction():
        if seen is None:
            begun = connection.execute(
                """
                INSERT INTO partition_progress (topic, partition, next_offset) VALUES (%s, %s, -1)
                ON CONFLICT DO NOTHING
                """,
                (topic, number),
            )
            if begun.rowcount == 0:
                return False
        else:
            row = connection.execute(
                """
                SELECT next_offset, fingerprint, topic_id FROM partition_progress
                WHERE topic = %s AND partition = %s FOR UPDATE
                """,
                (topic, number),
            ).fetchone()
            if row is None or Progress(*row) != seen:
                return False
        progress = position.progress
        connection.execute(
            """
            UPDATE partition_progress
            SET next_offset = %s, fingerprint = %s, topic_id = %s, updated_at = now()
            WHERE topic = %s AND partition = %s
            """,
            (progress.next_offset, progress.fingerprint, progress.topic_id, topic, number),
        )
        if position.gap is not None:
            connection.execute(
                """
                INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, to_offset)
                SELECT id, %s, %s, %s, %s, %s FROM pods
                """,
                (topic, number, position.gap.reason.value, position.gap.from_offset, position.gap.to_offset),
            )
    return True


def record_log_cut(connection: Connection[Any], topic: str) -> int:
    """Record for every pod that a broker may have lost acknowledged records, and that it is not known which.

    Return how many pods have such an open gap now. Each has one: a reconcile that is already running does not resolve
    it.
    """
    # Open gaps first, then missing ones: a gap that is resolved in between is recorded anew.
    connection.execute(
        """
        UPDATE gaps SET resolves_from = greatest(resolves_from, clock_timestamp())
        WHERE reason = %s AND resolved_at IS NULL
        """,
        (GapReason.LOG_CUT,),
    )
    connection.execute(
        """
        INSERT INTO gaps (pod_id, topic, partition, reason, from_offset)
        SELECT p.id, %s, -1, %s, 0 FROM pods p
        WHERE NOT EXISTS (SELECT FROM gaps g WHERE g.pod_id = p.id AND g.reason = %s AND g.resolved_at IS NULL)
        """,
        (topic, GapReason.LOG_CUT, GapReason.LOG_CUT),
    )
    row = connection.execute(
        "SELECT count(DISTINCT pod_id) FROM gaps WHERE reason = %s AND resolved_at IS NULL", (GapReason.LOG_CUT,)
    ).fetchone()
    return 0 if row is None else int(row[0])
