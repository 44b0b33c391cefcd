"""Record and read refusals of events with a wrong token: one row for each pod, however many there were.

Not here: how often they are recorded (ingest/refusals.py), their sentence (domain/refusals.py).
"""

from collections.abc import Collection
from typing import Any

from psycopg import Connection
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.db.session import writing
from coordinator.domain.names import PodName
from coordinator.domain.refusals import PAUSE, Refusals

# Rows are locked in one order, so that two replicas that record the same pods cannot deadlock.
_NOTE = text("""
INSERT INTO token_refusals AS t (pod_id, since, last_at)
SELECT id, statement_timestamp(), statement_timestamp() FROM pods WHERE name = ANY(CAST(:names AS text[])) ORDER BY id
ON CONFLICT (pod_id) DO UPDATE
SET since = CASE WHEN t.last_at < excluded.last_at - CAST(:pause AS interval) THEN excluded.since ELSE t.since END,
    last_at = excluded.last_at
""")
_FRESH = "t.last_at > clock_timestamp() - CAST(:pause AS interval)"
_ALL = text(f"SELECT p.name, t.since, t.last_at FROM token_refusals t JOIN pods p ON p.id = t.pod_id WHERE {_FRESH}")


async def note(engine: AsyncEngine, pods: Collection[PodName]) -> None:
    """Record that events of these pods were refused now; removed pods are skipped."""
    async with writing(engine) as connection:
        await connection.execute(_NOTE, {"names": list(pods), "pause": PAUSE})


async def known(connection: AsyncConnection) -> dict[str, Refusals]:
    """Return the recent refusals by pod."""
    return {row.name: Refusals(row.since, row.last_at) for row in await connection.execute(_ALL, {"pause": PAUSE})}


def lately(connection: Connection[Any], pod_id: int, seconds: float) -> Refusals | None:
    """Return the pod's refusals, if the last one was within this number of seconds."""
    row = connection.execute(
        "SELECT since, last_at FROM token_refusals"
        " WHERE pod_id = %s AND last_at > clock_timestamp() - make_interval(secs => %s)",
        (pod_id, seconds),
    ).fetchone()
    return None if row is None else Refusals(*row)
