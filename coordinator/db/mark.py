"""Which database this is, and how far its history of collection is: what the mark in the bucket is held against.

The epoch grows with every run, and in the same transaction with every hide that is undone: a table that is older than
that would purge what is served again. It is committed first, with that it is about to be told, and told to the bucket
then: so the bucket has never been told more than its database knows, unless that is another one, or was restored from
a backup.
Not here: the mark in the bucket (gc/mark.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db import brakes, progress
from coordinator.errors import BaleenError


class Mark(NamedTuple):
    """How far a database is."""

    #: A UUID.
    database: str
    epoch: int
    #: The latest epoch that the bucket has been told, or is about to be; 0 if none.
    told: int


def read(connection: Connection[Any]) -> Mark:
    with connection.transaction():
        connection.execute("INSERT INTO gc_mark DEFAULT VALUES ON CONFLICT DO NOTHING")
        row = connection.execute("SELECT database::text, epoch, told FROM gc_mark").fetchone()
    assert row is not None
    return Mark(*row)


def advance(connection: Connection[Any]) -> None:
    """Count what an older state of this database would not know; with the transaction that is under way."""
    connection.execute(
        "INSERT INTO gc_mark (epoch) VALUES (1) ON CONFLICT (id) DO UPDATE SET epoch = gc_mark.epoch + 1"
    )


def told(connection: Connection[Any], epoch: int) -> None:
    """Note that the bucket has this epoch, or is about to."""
    connection.execute("UPDATE gc_mark SET told = greatest(told, %s)", (epoch,))


class Claimed(NamedTuple):
    """What a claim has changed."""

    #: Each with a gap that only a reconcile settles which begins from now on.
    pods: int
    #: To be given back by the next run.
    hides: int


class StillRunningError(BaleenError):
    """Others of Baleen work on the database."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"Others are connected to this database: {', '.join(names)}. Stop all of Baleen, and try again."
        )


def claim(connection: Connection[Any], why: str, topic: str, epoch: int) -> Claimed:
    """Let this database go on from what it holds, however much of the bucket's history it does not know.

    Switches collection off; lets nothing count as unreferenced for long, so that what is hidden by this table is given
    back instead of purged; gives out no id twice; records a gap for every pod, and begins an epoch after `epoch`.
    Raises StillRunningError.
    """
    with connection.transaction():
        running = connection.execute(
            """
            SELECT DISTINCT application_name FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND application_name LIKE 'baleen-%' AND application_name <> 'baleen-claim' ORDER BY 1
            """
        ).fetchall()
        if running:
            raise StillRunningError([row[0] for row in running])
        # There may be millions that nothing references.
        connection.execute("SET LOCAL statement_timeout = 0")
        brakes.turn(connection, why, on=False)
        connection.execute(
            "UPDATE blobs SET unreferenced_since = clock_timestamp() WHERE unreferenced_since IS NOT NULL"
        )
        for table in ("hides", "jobs"):
            connection.execute(
                f"""
                SELECT setval(pg_get_serial_sequence('{table}', 'id'),
                              nextval(pg_get_serial_sequence('{table}', 'id')) + 1000000000)
                """
            )
        connection.execute(
            """
            INSERT INTO gc_mark (epoch) VALUES (%(epoch)s + 1)
            ON CONFLICT (id) DO UPDATE SET epoch = greatest(gc_mark.epoch, %(epoch)s) + 1
            """,
            {"epoch": epoch},
        )
        row = connection.execute("SELECT count(*) FROM hides").fetchone()
        return Claimed(progress.record_cut(connection, topic), 0 if row is None else row[0])
