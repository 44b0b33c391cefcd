"""Jobs and restorers that sleep at one of their calls, count as dead, and wake up when others have gone on.

They sleep anywhere: before an intent, before a permit, between permit and request, before the record, in a purge. What
they do when they wake loses nothing (scenarios 11 and 27; rules 4, 8, 12 and 15 of docs/model/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import psycopg
import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.errors import UnavailableError
from coordinator.gc import collect
from coordinator.gc import table as gc
from coordinator.gc.table import BEGINNING, HiddenBlob, PurgedHide
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job, TakenOverError
from tests.gc.calls import (
    ON_STORES,
    Calls,
    Once,
    Sleep,
    counted_parts,
    let_deletes_land,
    let_job_fall_silent,
    run_job,
    run_next,
)
from tests.gc.harness import IN_FLIGHT, Garbage
from tests.gc.histories import History, histories
from tests.storage.memory import MemoryObjectStore
from tests.support.store import ANSWERED, SEND

#: The statement that reads t_h.
RECORD = "SET hidden_at = clock_timestamp()"
#: Of the calls of a run on a real store, one in so many, and every one around a request for deletes.
SAMPLE = 12


pytestmark = [ON_STORES, pytest.mark.lengthy, pytest.mark.usefixtures("only_their_calls")]


@pytest.fixture(autouse=True)
def sleepers_are_ended_soon(garbage: Garbage) -> None:
    """End a connection that sleeps while it writes the mark soon: every later run waits for that."""
    garbage.sizes = replace(garbage.sizes, mark_lock_s=0.2)
    garbage.restores["mark_lock_s"] = 0.2


@pytest.fixture
def recorded(garbage: Garbage) -> Iterator[Iterator[History]]:
    with histories(garbage, IN_FLIGHT) as recorded:
        yield recorded


@contextmanager
def asleep(work: Callable[[Calls], object], place: int) -> Iterator[Sleep]:
    """Run work in a thread until it sleeps at a call; at the end of the block wake it, and wait for its end."""
    sleep = Sleep()
    with ThreadPoolExecutor(1) as pool:
        future: Future[object] = pool.submit(work, Calls(place, sleep))
        try:
            assert sleep.reached(future)
            yield sleep
        finally:
            sleep.wake()
        future.result()


def places(garbage: Garbage, history: History) -> Sequence[int]:
    """The calls of a run to which nothing happens; of a run on a real store, some."""
    calls = Calls()
    garbage.ask()
    assert run_job(garbage, calls)
    let_deletes_land(garbage)
    history.fix()
    history.assert_repaired()
    # Several threads may need some calls fewer than they did now.
    every = range(1, len(calls.made) - 3)
    if isinstance(garbage.store, MemoryObjectStore):
        return every
    sends = {number + place for number in calls.numbers_of(SEND) for place in (-1, 0, 1)}
    return sorted(({*every[::SAMPLE]} | sends) & {*every})


def test_it_wakes_within_the_bound_of_a_delete(garbage: Garbage, recorded: Iterator[History]) -> None:
    """A job that wakes within the delete bound deletes nothing that clients pushed meanwhile."""
    for place in places(garbage, next(recorded)):
        history = next(recorded)
        garbage.ask()
        with asleep(lambda calls: run_job(garbage, calls), place) as sleep:
            let_job_fall_silent(garbage)
            run_next(garbage)
            history.push_again()
            garbage.restore()
            run_next(garbage)
            sleep.wake()
        history.assert_nothing_is_lost()
        garbage.restore()
        assert [name for name in history.needed if not garbage.is_served(name)] == []
        let_deletes_land(garbage)
        history.fix()
        history.assert_repaired()


def test_it_wakes_when_all_is_over(garbage: Garbage, recorded: Iterator[History]) -> None:
    """A job that wakes after the delete bound changes nothing: the store refuses what it signed."""
    for place in places(garbage, next(recorded)):
        history = next(recorded)
        garbage.ask()
        with asleep(lambda calls: run_job(garbage, calls), place) as sleep:
            let_job_fall_silent(garbage)
            history.push_again()
            run_next(garbage)
            let_deletes_land(garbage)
            history.fix()
            history.assert_repaired()
            sleep.wake(too_late=True)
        history.assert_repaired()
        garbage.restore()
        history.assert_repaired()


def test_a_restorer_wakes_in_the_next_hide(garbage: Garbage, recorded: Iterator[History]) -> None:
    """A restorer that wakes when its blob is hidden again restores nothing that a client relies on and then loses."""

    def restore(calls: Calls) -> None:
        # As a worker, which goes on with the next round.
        with counted_parts(garbage, calls) as (_, __, restorer), suppress(UnavailableError):
            restorer.round()

    next(recorded)
    calls = Calls()
    restore(calls)
    for place in range(1, len(calls.made) - 1):
        history = next(recorded)
        with asleep(restore, place) as sleep:
            let_job_fall_silent(garbage)
            garbage.restore()
            history.give_back()
            run_next(garbage)
            assert garbage.state(history.needed_again) is BlobState.HIDDEN
            assert not garbage.is_served(history.needed_again)
            sleep.wake()
        seen = garbage.is_served(history.needed_again)
        # By its own marker it is hidden for good; a copy that came back is nobody's to delete.
        assert not (seen and garbage.store.keeps_versions())
        history.push_back()
        run_next(garbage)
        garbage.restore()
        assert garbage.is_served(history.needed_again)
        assert garbage.state(history.needed_again) is BlobState.LIVE


def test_only_one_has_a_job(garbage: Garbage) -> None:
    """While its process is alive no other takes a collection, and no second one can be created."""
    garbage.ask()
    with garbage.connect() as others:
        assert jobs.take_job(garbage.connection, [collect.JOB_KIND]) is not None
        assert jobs.take_job(others, [collect.JOB_KIND]) is None
        with pytest.raises(psycopg.errors.UniqueViolation):
            garbage.ask()
        let_job_fall_silent(garbage)
        assert jobs.take_job(others, [collect.JOB_KIND]) is not None
        assert jobs.take_job(garbage.connection, [collect.JOB_KIND]) is None


HIDE = ["CROSS JOIN LATERAL", "INSERT INTO hides", "delete_many", SEND, ANSWERED, RECORD]
PURGE = ["SET purging_at", "delete_many", SEND, ANSWERED, "DELETE FROM hides"]


@pytest.mark.parametrize(
    ("step", "where"), [*(("hide", where) for where in HIDE), *(("purge", where) for where in PURGE)]
)
def test_it_slept_at_a_step(garbage: Garbage, step: str, where: str) -> None:
    """A job that sleeps at any step of a hide or purge hides and deletes nothing that is needed when it wakes."""
    (garbage.push_and_forget if step == "hide" else garbage.hidden)("m", "l")
    garbage.delete_bound = IN_FLIGHT
    number = garbage.ask()

    def others() -> None:
        let_job_fall_silent(garbage)
        run_next(garbage)
        garbage.upload("again", *(["l"] if not garbage.is_served("l") else []))
        garbage.report("again", "l")
        garbage.restore()
        run_next(garbage)

    sleeping = Once(where, others)
    assert run_job(garbage, sleeping)
    assert sleeping.happened
    # The others had it: its own result is not recorded.
    assert garbage.rows("SELECT state, taken FROM jobs WHERE id = %s", (number,)) == [("done", 2)]
    garbage.restore()
    assert garbage.is_served("l")
    let_deletes_land(garbage)
    for _ in range(3):
        run_next(garbage)
        garbage.restore()
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.state("m") is BlobState.PURGED
    assert garbage.rows("SELECT id FROM hides") == []


@pytest.mark.parametrize("step", ["intend", "permit", "record", "begin_purge", "purged"])
def test_each_step_asks_whose_the_job_is(garbage: Garbage, step: str) -> None:
    """Each transaction of a job that was taken over, or has ended, is refused, and leaves everything as it was."""
    garbage.hidden("m", "l")
    garbage.push_and_forget("n")
    garbage.ask()
    connection = garbage.connection
    lost = jobs.take_job(connection, [collect.JOB_KIND])
    assert lost is not None
    due = gc.read_due_hides(connection, BEGINNING, None, 10)
    wanted = gc.read_candidates(connection, BEGINNING, None, 10)
    (intent,) = gc.write_intents(connection, lost, wanted, {})
    purging = gc.begin_purge(connection, lost, due[:1], {})
    let_job_fall_silent(garbage)
    ours = jobs.take_job(connection, [collect.JOB_KIND])
    assert ours is not None
    steps: dict[str, Callable[[Job], object]] = {
        "intend": lambda job: gc.write_intents(connection, job, wanted, {}),
        "permit": lambda job: gc.permit_deletes(connection, job, [intent.id], BlobState.HIDING),
        "record": lambda job: gc.record_hidden(connection, job, [HiddenBlob(intent.id, intent.blob, intent.digest, 1)]),
        "begin_purge": lambda job: gc.begin_purge(connection, job, due[1:], {}),
        "purged": lambda job: gc.record_purged(
            connection, job, [PurgedHide(each, 1, 1) for each in due if each.id in purging]
        ),
    }
    before = _everything(garbage)
    with pytest.raises(TakenOverError):
        steps[step](lost)
    assert _everything(garbage) == before
    steps[step](ours)
    jobs.finish_job(connection, ours, {})
    with pytest.raises(TakenOverError):
        steps[step](ours)


def _everything(garbage: Garbage) -> Sequence[Sequence[object]]:
    return [
        garbage.rows(f"SELECT * FROM {table} ORDER BY id")
        for table in ("blobs", "hides", "gc_ledger", "lifecycle_outbox")
    ]
