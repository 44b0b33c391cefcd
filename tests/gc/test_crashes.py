"""Jobs and restorers that die at each of their calls to database and storage, one after the other (scenarios 11, 13).

What they have begun is ended or undone by the next process, and what is needed is never lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.gc import collect
from coordinator.jobs import work as running
from coordinator.storage.layout import blob_key
from tests.gc.calls import ON_STORES, Calls, DiedError, Once, counted_parts, die, let_deletes_land, run_job, run_next
from tests.gc.harness import IN_FLIGHT, LANDED, Garbage
from tests.gc.histories import History, histories
from tests.storage.memory import MemoryObjectStore
from tests.support.store import ANSWERED, SEND, FaultyStore

#: Of the calls of a run on a real store: enough to meet each kind of step.
SAMPLE = 12


pytestmark = [ON_STORES, pytest.mark.lengthy, pytest.mark.usefixtures("only_their_calls")]


@pytest.fixture
def recorded(garbage: Garbage) -> Iterator[Iterator[History]]:
    with histories(garbage, LANDED) as recorded:
        yield recorded


def places(garbage: Garbage, calls: Calls) -> Sequence[int]:
    """At which calls a test lets something happen: at all on a store in memory, else at a sample, sends among them."""
    every = range(1, len(calls.made) + 1)
    if isinstance(garbage.store, MemoryObjectStore):
        return every
    return sorted({*every[:: -(-len(every) // SAMPLE)], *calls.numbers_of(SEND)})


def clean(garbage: Garbage, history: History) -> Calls:
    """The calls of a run to which nothing happens."""
    calls = Calls()
    garbage.ask()
    assert run_job(garbage, calls)
    assert len(calls.numbers_of(SEND)) >= 2
    history.fix()
    history.assert_repaired()
    return calls


@pytest.mark.parametrize("again", [False, True], ids=["", "pushed-again"])
def test_a_job_dies_at_any_call(garbage: Garbage, recorded: Iterator[History], again: bool) -> None:
    """A job that dies at any call loses nothing, also if clients then push its blobs; the next runs repair all."""
    calls = clean(garbage, next(recorded))
    died = 0
    for place in places(garbage, calls):
        history = next(recorded)
        garbage.ask()
        died += not run_job(garbage, Calls(place, die))
        if again:
            history.push_again()
        history.assert_nothing_is_lost()
        history.fix()
        history.assert_repaired()
    # Several threads may need some calls fewer than they did.
    assert died >= len(places(garbage, calls)) - 3
    assert garbage.check().is_healthy


def test_the_next_job_dies_too(garbage: Garbage, recorded: Iterator[History]) -> None:
    """Several jobs that die one after the other lose nothing."""
    calls = clean(garbage, next(recorded))
    for place in places(garbage, calls)[::2]:
        history = next(recorded)
        garbage.ask()
        run_job(garbage, Calls(place, die))
        history.assert_nothing_is_lost()
        for second in (place // 2 + 1, place // 3 + 1):
            garbage.rows("UPDATE jobs SET alive_at = NULL WHERE state = 'running' RETURNING id")
            run_job(garbage, Calls(second, die))
            history.assert_nothing_is_lost()
        history.push_again()
        history.fix()
        history.assert_repaired()


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("early", [False, True], ids=["pushed-after-the-next-run", "pushed-before-it"])
def test_a_delete_lands_after_the_next_job_has_checked(garbage: Garbage, nth: int, early: bool) -> None:
    """A job dies as it sends a delete. However late that lands within its bound, what was pushed meanwhile stays."""
    with histories(garbage, IN_FLIGHT) as recorded:
        history = next(recorded)
        store = FaultyStore(garbage.store)
        store.lose(nth=nth, error=DiedError())
        garbage.ask()
        dead = False
        with garbage.parts(store) as (connections, collecting, _):
            try:
                running.run_waiting_jobs(connections, {collect.JOB_KIND: collecting}, threading.Event())
            except DiedError:
                dead = True
        assert dead is (nth <= 2 or garbage.store.keeps_versions())
        if early:
            history.push_again()
        run_next(garbage)
        garbage.restore()
        if not early:
            history.push_again()
        store.land()
        history.assert_nothing_is_lost()
        garbage.restore()
        run_next(garbage)
        assert [name for name in history.needed if not garbage.is_served(name)] == []
        let_deletes_land(garbage)
        history.fix()
        history.assert_repaired()


@pytest.mark.parametrize("disturbed", [False, True], ids=["", "one-is-needed-between"])
def test_a_request_that_was_sent_twice_hides_nothing_for_certain(garbage: Garbage, disturbed: bool) -> None:
    """While an unanswered copy of a request may land, none of its blobs counts as hidden: what is pushed is kept."""
    garbage.push_and_forget("m", "a", "b")
    store = FaultyStore(garbage.store)
    store.send_again(lambda: garbage.report("other", "a") if disturbed else None)
    garbage.upload("other")
    garbage.try_collection(store)
    # As after t_h: registries do not have it, or clients would not upload it.
    garbage.collect()
    if not garbage.is_served("b"):
        garbage.upload("b")
    store.land()
    garbage.report("later", "b")
    garbage.upload("later")
    garbage.restore()
    assert garbage.is_served("b")
    assert garbage.store.get(blob_key(garbage.digest("b"))) == garbage.body("b")


def test_a_restorer_dies_at_any_call(garbage: Garbage, recorded: Iterator[History]) -> None:
    """A restorer that dies at any call loses nothing: the next round serves what is needed."""

    def tried(left_at: int, calls: Calls) -> None:
        history = next(recorded)
        garbage.ask()
        run_job(garbage, Calls(left_at, die))
        history.push_again()
        with counted_parts(garbage, calls) as (_, __, restorer), suppress(DiedError):
            restorer.round()
        history.assert_nothing_is_lost()
        garbage.restore()
        assert [name for name in history.needed if not garbage.is_served(name)] == []
        history.fix()
        history.assert_repaired()

    for sent in clean(garbage, next(recorded)).numbers_of(SEND):
        calls = Calls()
        tried(sent + 1, calls)
        for place in places(garbage, calls):
            tried(sent + 1, Calls(place, die))


def test_what_cannot_be_final_yet_keeps_nobody_waiting(garbage: Garbage) -> None:
    """One round of a restorer serves all that is needed, however many hides wait for the delete bound."""
    garbage.restores = {"per_round": 2}
    garbage.delete_bound = IN_FLIGHT
    images = [f"m{number}" for number in range(5)]
    for image in images:
        garbage.pushed(image)
    for image in images[:-1]:
        garbage.forget(image)
    garbage.ask()
    assert not run_job(garbage, Once(ANSWERED, lambda: die("")))
    garbage.forget(images[-1])
    run_next(garbage)
    assert garbage.state(images[-1]) is BlobState.HIDDEN
    for image in images:
        garbage.report(image)
    assert garbage.restore() == 1
    assert all(garbage.is_served(image) for image in images)
    let_deletes_land(garbage)
    assert garbage.restore() == len(images) - 1
