"""Read how far partitions are applied, and other figures of the status.

Not here: where the partitions' logs end (api/status.py asks Kafka).
"""

import datetime as dt

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.db.migrate import wanted
from coordinator.domain.lifecycle import BlobState

UNTOLD_LIMIT = 100_000

_PROGRESS = text("SELECT topic, partition, next_offset FROM partition_progress")
_CLOCK = text("SELECT clock_timestamp()")
_MISSING = text(f"SELECT count(*) FROM blobs WHERE state = {BlobState.MISSING:d}")
_UNTOLD = text("SELECT count(*) FROM (SELECT FROM lifecycle_outbox LIMIT :limit) waiting")
_REVISION = text("SELECT version_num FROM alembic_version")


async def progress(connection: AsyncConnection) -> dict[tuple[str, int], int]:
    """Return the first offset that is not applied, for each partition with applied records."""
    rows = await connection.execute(_PROGRESS)
    return {(row.topic, row.partition): row.next_offset for row in rows}


async def clock(connection: AsyncConnection) -> dt.datetime:
    """Return the database's time, by which watermarks are measured."""
    now: dt.datetime = (await connection.execute(_CLOCK)).scalar_one()
    return now


async def missing_blobs(connection: AsyncConnection) -> int:
    """Count blobs that are needed and have no bytes."""
    return int((await connection.execute(_MISSING)).scalar_one())


async def untold_changes(connection: AsyncConnection) -> int:
    """Count changes that are not published to blob.lifecycle yet, up to UNTOLD_LIMIT."""
    return int((await connection.execute(_UNTOLD, {"limit": UNTOLD_LIMIT})).scalar_one())


async def schema_problem(connection: AsyncConnection) -> str | None:
    """Return what is wrong with the database's schema; None if it is this release's."""
    if not await connection.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL")):
        return "The database has no schema yet: run `baleen db migrate`."
    found, needed = await connection.scalar(_REVISION), wanted()
    if found == needed:
        return None
    return f"The database has schema {found}, and this release needs {needed}: run `baleen db migrate`."
