"""Rows as tests need them: a pod, a job, a gap, and the like, with values for what a test does not name.

What Baleen has a function for is better made by that. These are for states that would take long to reach.
"""

from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

NOW = sql.SQL("now()")
#: A pod's id, also as SQL.
PodId = int | sql.Composable


def ago(age: timedelta | str) -> sql.Composable:
    """The time that lies so far back by the database's clock."""
    return sql.SQL("now() - {}::interval").format(age)


def insert(db: psycopg.Connection[Any], table: str, returning: str = "1", **values: Any) -> Any:
    """Insert a row; a value may be SQL. Return its `returning`."""
    plain = {name: value for name, value in values.items() if not isinstance(value, sql.Composable)}
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING {}").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(sql.Placeholder(name) if name in plain else value for name, value in values.items()),
        sql.SQL(returning),
    )
    row = db.execute(statement, plain).fetchone()
    assert row is not None
    return row[0]


def value(db: psycopg.Connection[Any], statement: str, *parameters: object) -> Any:
    """The value that a statement returns."""
    row = db.execute(statement, parameters).fetchone()
    assert row is not None
    return row[0]


def id_of(pod: str) -> sql.Composable:
    """The id of the pod with this name, as a value of a row."""
    return sql.SQL("(SELECT id FROM pods WHERE name = {})").format(pod)


def add_pod(db: psycopg.Connection[Any], name: str, *prefixes: str, **values: Any) -> int:
    """A pod, with the prefix of its name if none is given; return its id."""
    pod: int = insert(db, "pods", "id", **{"name": name, "event_token_sha256": b"0" * 32} | values)
    add_prefixes(db, pod, *(prefixes or (name,)))
    return pod


def add_prefixes(db: psycopg.Connection[Any], pod: int, *prefixes: str) -> None:
    for prefix in prefixes:
        insert(db, "pod_prefixes", prefix=prefix, pod_id=pod)


def add_job(db: psycopg.Connection[Any], pod: PodId | None, kind: str = "reconcile", **values: Any) -> int:
    """A job that waits; return its id."""
    job: int = insert(db, "jobs", "id", **{"kind": kind, "pod_id": pod, "why": "a test"} | values)
    return job


def add_done_job(db: psycopg.Connection[Any], pod: PodId, began_at: Any = NOW) -> int:
    """A reconcile that is done; return its id."""
    return add_job(db, pod, state="done", began_at=began_at, finished_at=NOW)


def add_collection(db: psycopg.Connection[Any], **options: Any) -> int:
    """A collection that waits; return its id."""
    return add_job(db, None, "gc", options=Jsonb(options))


def add_gap(db: psycopg.Connection[Any], pod: PodId, **values: Any) -> None:
    """An open gap of a pod."""
    insert(db, "gaps", **{"pod_id": pod, "topic": "", "partition": -1, "reason": "log-cut", "from_offset": 0} | values)


def add_process(db: psycopg.Connection[Any], pod: PodId, instance: str = "i", **values: Any) -> int:
    """A registry process; return its id."""
    process: int = insert(db, "processes", "id", pod_id=pod, instance_id=instance, **values)
    return process


def add_dead_letter(db: psycopg.Connection[Any], pod: str, **values: Any) -> int:
    """An open dead letter, about any repository unless some are named; return its id."""
    defaults = {
        "pod": pod,
        "reason": "r",
        "detail": "d",
        "received_at": NOW,
        "payload": "p",
        "payload_bytes": 1,
        "content_type": "c",
        "origin_topic": "t",
        "origin_partition": 0,
        "origin_offset": 0,
        "origin_log": 0,
    }
    dead_letter: int = insert(db, "dead_letters", "id", **defaults | values)
    return dead_letter


def read_open_gaps(db: psycopg.Connection[Any], pod: int | None = None) -> list[str]:
    """Reasons of the open gaps, of one pod or of all."""
    found = db.execute(
        "SELECT reason FROM gaps WHERE resolved_at IS NULL AND coalesce(pod_id = %s, true) ORDER BY pod_id, reason",
        (pod,),
    )
    return [row[0] for row in found]


def set_kind(db: psycopg.Connection[Any], kind: str, *pods: str) -> None:
    """How these pods, or all, keep their links."""
    db.execute("UPDATE pods SET kind = %s WHERE name = ANY(%s) OR %s", (kind, list(pods), not pods))


def await_lock_wait(db: psycopg.Connection[Any], work: Future[Any], kind: str = "%") -> bool:
    """Wait until somebody in this database waits for a lock (of this kind); False if the work ended before that."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event LIKE %s"
    )
    while not work.done():
        if db.execute(statement, (kind,)).fetchone() != (0,):
            return True
    return False
