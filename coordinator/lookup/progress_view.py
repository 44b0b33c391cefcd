"""Read how far partitions are applied, and other figures of the status.

Not here: where the partitions' logs end (api/status.py asks Kafka).
"""

import datetime as dt

from sqlalchemy import Connection, text

from coordinator.db.migrate import wanted_revision
from coordinator.domain.lifecycle import BlobState

UNPUBLISHED_LIMIT = 100_000

_PROGRESS = text("SELECT topic, partition, next_offset FROM partition_progress")
_CLOCK = text("SELECT clock_timestamp()")
_MISSING = text(f"SELECT count(*) FROM blobs WHERE state = {BlobState.MISSING:d}")
_UNPUBLISHED = text("SELECT count(*) FROM (SELECT FROM lifecycle_outbox LIMIT :limit) waiting")
_REVISION = text("SELECT version_num FROM alembic_version")


def read_progress(connection: Connection) -> dict[tuple[str, int], int]:
    """Return the first offset that is not applied, for each partition with applied records."""
    rows = connection.execute(_PROGRESS)
    return {(row.topic, row.partition): row.next_offset for row in rows}


def read_clock(connection: Connection) -> dt.datetime:
    """Return the database's time, by which watermarks are measured."""
    now: dt.datetime = connection.execute(_CLOCK).scalar_one()
    return now


def count_missing_blobs(connection: Connection) -> int:
    """Count blobs that are needed and have no bytes."""
    return int(connection.execute(_MISSING).scalar_one())


def count_unpublished_changes(connection: Connection) -> int:
    """Count changes that are not published to blob.lifecycle yet, up to UNPUBLISHED_LIMIT."""
    return int(connection.execute(_UNPUBLISHED, {"limit": UNPUBLISHED_LIMIT}).scalar_one())


def describe_schema_problem(connection: Connection) -> str | None:
    """Return what is wrong with the database's schema; None if it is this release's."""
    if not connection.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL")):
        return "The database has no schema yet: run `baleen db migrate`."
    found, needed = connection.scalar(_REVISION), wanted_revision()
    if found == needed:
        return None
    return f"The database has schema {found}, and this release needs {needed}: run `baleen db migrate`."
