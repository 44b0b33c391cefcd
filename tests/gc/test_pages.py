"""A run works on several pages at once: it omits none, and leaves no connections open."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from coordinator.gc import collect
from coordinator.jobs.work import Pulse, run_waiting_jobs
from tests.gc.calls import last_run
from tests.gc.harness import Garbage
from tests.storage.memory import MemoryObjectStore

NAMES = ("m", "a", "b", "c", "d", "e")


@pytest.fixture
def store() -> MemoryObjectStore:
    """Which store it is makes no difference here."""
    return MemoryObjectStore()


@pytest.fixture(autouse=True)
def _small_pages(garbage: Garbage) -> None:
    garbage.sizes = replace(garbage.sizes, page=1)


def test_a_page_that_has_to_wait_is_dealt_with(garbage: Garbage) -> None:
    """The last pages are done, even if no thread has started on them when there are no more."""
    garbage.pushed(*NAMES)
    garbage.forget("m")
    garbage.ask()
    with garbage.parts() as (connections, collecting, _), ThreadPoolExecutor(1) as pool:
        collecting._parts = collecting._parts._replace(pool=pool)
        run_waiting_jobs(connections, {collect.JOB_KIND: collecting}, threading.Event())
    run = last_run(garbage)
    assert run.state == "done", run.error
    assert run.hidden == len(NAMES)


@pytest.mark.usefixtures("only_their_calls")
def test_runs_keep_no_more_connections(garbage: Garbage) -> None:
    """A process that collects for weeks has no more connections than after its first run."""
    garbage.pushed("kept")
    counts = []
    with garbage.parts() as (connections, collecting, _):
        for number in range(4):
            garbage.push_and_forget(f"m{number}", *(f"{name}{number}" for name in NAMES))
            garbage.ask()
            run_waiting_jobs(connections, {collect.JOB_KIND: collecting}, threading.Event(), Pulse(3600.0, 3600.0))
            ((count,),) = garbage.rows(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'test-gc'"
            )
            counts.append(count)
    # That of the run, and one for each page at once.
    assert max(counts) <= 1 + garbage.sizes.pages_at_once
