"""Record and read refusals of events with a wrong token: one row for each pod, however many there were.

Not here: how often they are recorded (ingest/refusals.py), their sentence (domain/refusals.py).
"""

from collections.abc import Collection
from typing import Any

from psycopg import Connection
from sqlalchemy import Engine

from coordinator.db.session import driver_connection, write_transaction
from coordinator.domain.names import PodName
from coordinator.domain.refusals import PAUSE, Refusals

# Rows are locked in one order, so that two replicas that record the same pods cannot deadlock.
_RECORD = """
INSERT INTO token_refusals AS t (pod_id, since, last_at)
SELECT id, statement_timestamp(), statement_timestamp() FROM pods
WHERE name = ANY(CAST(%(names)s AS text[])) ORDER BY id
ON CONFLICT (pod_id) DO UPDATE
SET since = CASE WHEN t.last_at < excluded.last_at - CAST(%(pause)s AS interval) THEN excluded.since ELSE t.since END,
    last_at = excluded.last_at
"""
_FRESH = "t.last_at > clock_timestamp() - CAST(%(pause)s AS interval)"
_ALL = f"SELECT p.name, t.since, t.last_at FROM token_refusals t JOIN pods p ON p.id = t.pod_id WHERE {_FRESH}"


def record_refusals(engine: Engine, pods: Collection[PodName]) -> None:
    """Record that events of these pods were refused now; removed pods are skipped."""
    with write_transaction(engine) as connection:
        driver_connection(connection).execute(_RECORD, {"names": list(pods), "pause": PAUSE})


def read_recent_by_pod(connection: Connection[Any]) -> dict[str, Refusals]:
    """Return the recent refusals by pod."""
    return {name: Refusals(since, last_at) for name, since, last_at in connection.execute(_ALL, {"pause": PAUSE})}


def read_recent(connection: Connection[Any], pod_id: int, seconds: float) -> Refusals | None:
    """Return the pod's refusals, if the last one was within this number of seconds."""
    row = connection.execute(
        "SELECT since, last_at FROM token_refusals"
        " WHERE pod_id = %s AND last_at > clock_timestamp() - make_interval(secs => %s)",
        (pod_id, seconds),
    ).fetchone()
    return None if row is None else Refusals(*row)
