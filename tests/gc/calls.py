"""A job whose every call to database and storage is counted, so that it can be killed or put to sleep at each of them.

Route: `Calls` (what happens at which call) -> `counted_parts`, a collection that calls through it -> `run_job`, to its
end or its death.
A call is a statement, a request to the store, or the moment between a permit and its request.
Not here: what must hold then (test_crashes.py, test_controls.py, test_two_jobs.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from coordinator.db.connection import Connections
from coordinator.errors import UnavailableError
from coordinator.gc.collect import JOB_KIND, Collector
from coordinator.gc.restore import Restorer
from coordinator.jobs import table as jobs
from coordinator.jobs import work as running
from coordinator.table import statements
from tests.gc.harness import Garbage, Run
from tests.support.store import SEND, FaultyStore

DEADLINE_S = 60.0
#: Of a counted process, at the database.
NAME = "test-counted"


class DiedError(BaseException):
    """The process is gone, and nothing that it was about to do happens. No Exception, so that nothing catches it."""


#: The quick tests use stores in memory, which pass the contract tests of the real ones.
ON_STORES = pytest.mark.parametrize(
    "store",
    ["memory", "memory-versioned", *(pytest.param(name, marks=pytest.mark.lengthy) for name in ("s3", "s3-versioned"))],
    indirect=True,
)

#: Called with each call before it is made.
OnCall = Callable[[str], None]


class Calls:
    """Counts calls. From call `at` on, the first being 1, each is passed to `then`."""

    def __init__(self, at: int | None = None, then: OnCall = lambda _: None) -> None:
        self.made: list[str] = []
        self._at = at
        self._then = then
        self._lock = threading.Lock()

    def __call__(self, what: str) -> None:
        with self._lock:
            self.made.append(what)
            reached = self._at is not None and len(self.made) >= self._at
        if reached:
            self._then(what)

    def numbers_of(self, what: str) -> list[int]:
        """Which calls were such."""
        return [number for number, each in enumerate(self.made, 1) if each == what]


class Once:
    """Does something before one call: the nth that has these words."""

    def __init__(self, words: str, then: Callable[[], object], nth: int = 1) -> None:
        self._words = words
        self._then = then
        self._left = nth

    @property
    def happened(self) -> bool:
        return self._left <= 0

    def __call__(self, what: str) -> None:
        if self._words in what:
            self._left -= 1
            if self._left == 0:
                self._then()


def die(_: str) -> None:
    raise DiedError


class Sleep:
    """What puts a process to sleep, with all its threads, until it is woken."""

    def __init__(self) -> None:
        self._asleep = threading.Event()
        self._awake = threading.Event()
        self._too_late = False

    def __call__(self, what: str) -> None:
        self._asleep.set()
        assert self._awake.wait(DEADLINE_S)
        if self._too_late and what == SEND:
            raise UnavailableError("The object store refuses the request: its signature is too old.")

    def wake(self, *, too_late: bool = False) -> None:
        """`too_late`: what was signed before, the store refuses."""
        self._too_late = self._too_late or too_late
        self._awake.set()

    def reached(self, running: Future[Any]) -> bool:
        """Wait until it sleeps; False if it came to its end before."""
        while not self._asleep.wait(0.002):
            if running.done():
                return self._asleep.is_set()
        return True


class CountedConnection:
    """A connection whose statements are counted."""

    def __init__(self, connection: psycopg.Connection[Any], calls: OnCall) -> None:
        self._connection = connection
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: Any, *values: Any, **named: Any) -> Any:
        self._calls(" ".join(str(statement).split()))
        return self._connection.execute(statement, *values, **named)


class CountedConnections(Connections):
    def __init__(self, url: str, calls: OnCall) -> None:
        super().__init__(url, name=NAME, prepare=statements.prepare_connection)
        self._calls = calls

    @contextmanager
    def use(self) -> Iterator[Any]:
        with super().use() as connection:
            yield CountedConnection(connection, self._calls)


@contextmanager
def counted_parts(garbage: Garbage, calls: OnCall) -> Iterator[tuple[Connections, Collector, Restorer]]:
    """The parts of a process that collects; as `Garbage.parts`, and counted."""
    store = FaultyStore(garbage.store, lambda moment, _: calls(moment))
    with (
        closing(CountedConnections(garbage.url, calls)) as connections,
        garbage.make_parts(connections, connections, store) as (collect, restorer),
    ):
        yield connections, collect, restorer


def run_job(garbage: Garbage, calls: OnCall) -> bool:
    """Take the job that waits, and run it; False if the process died."""
    with counted_parts(garbage, calls) as (connections, collect, _):
        try:
            running.run_waiting_jobs(connections, {JOB_KIND: collect}, threading.Event(), running.Pulse(3600.0, 3600.0))
        except DiedError:
            return False
    return True


def let_job_fall_silent(garbage: Garbage) -> None:
    """Let the time pass after which the job's process counts as dead, and end its open transaction."""
    # A statement that one of its threads had sent when another fell asleep ends first, and what it locks goes, too.
    while garbage.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = %s AND state LIKE 'idle in transaction%%'",
        (NAME,),
    ) or garbage.rows(
        "SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = %s AND state = 'active'",
        (NAME,),
    ):
        pass
    garbage.rows(
        "UPDATE jobs SET alive_at = clock_timestamp() - %s - interval '1 second' WHERE state = 'running' RETURNING id",
        (jobs.SILENCE,),
    )


def run_next(garbage: Garbage) -> None:
    """Have another process take over a job that was left, or take a new one, and end it."""
    let_job_fall_silent(garbage)
    if not garbage.rows("SELECT FROM jobs WHERE kind = 'gc' AND state IN ('waiting', 'running')"):
        garbage.ask()
    with garbage.parts() as (connections, collect, _):
        running.run_waiting_jobs(connections, {JOB_KIND: collect}, threading.Event())


def last_run(garbage: Garbage) -> Run:
    """The newest job, as it is now."""
    (row,) = garbage.rows("SELECT id, state, progress, error FROM jobs WHERE kind = 'gc' ORDER BY id DESC LIMIT 1")
    return Run(*row)


def let_deletes_land(garbage: Garbage) -> None:
    """Let the time pass after which no permitted delete can land any more."""
    garbage.rows("UPDATE hides SET permitted_at = permitted_at - interval '2 hours' RETURNING id")
