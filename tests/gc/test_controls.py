"""GC controls stop a collection between two requests, in every process, and also when they cannot be read.

Not here: how an operator sets them (tests/api, tests/cli).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.gc import collect, controls
from coordinator.gc import table as gc
from coordinator.gc.table import StoppedCollectingError
from coordinator.jobs import table as jobs
from coordinator.storage.layout import blob_key, quarantine_key
from tests.gc.calls import NAME, ON_STORES, Calls, Once, last_run, let_deletes_land, run_job
from tests.gc.harness import IN_FLIGHT, LANDED, Garbage
from tests.support.store import SEND

#: The statements that read each control, and what comes before the first of a hide's.
SWITCH, JOB, REFERRERS = "FROM gc_switch", "FROM jobs WHERE id", "CROSS JOIN LATERAL"
LAYERS = ("a", "b", "c")
ALL = ("m", *LAYERS)

Control = Callable[[Garbage], object]


pytestmark = [ON_STORES, pytest.mark.lengthy, pytest.mark.usefixtures("only_their_calls")]


def off(garbage: Garbage) -> None:
    controls.set_switch(garbage.connection, "a rumour", on=False)


def on(garbage: Garbage) -> None:
    controls.set_switch(garbage.connection, "all is well", on=True)
    for (scope,) in garbage.rows("SELECT scope FROM holds"):
        garbage.release(scope)


def no_row(garbage: Garbage) -> None:
    garbage.rows("DELETE FROM gc_switch RETURNING id")


def hold_pod(garbage: Garbage) -> None:
    garbage.hold("pod-a", "an audit")


def hold_namespace(garbage: Garbage) -> None:
    garbage.hold("team/app", "a move")


CONTROLS = pytest.mark.parametrize(
    ("control", "reason"),
    [
        pytest.param(off, "switched off (a rumour)", id="switch"),
        pytest.param(no_row, "never switched on", id="no-row"),
        pytest.param(hold_pod, "pod-a is held (an audit)", id="pod"),
        pytest.param(hold_namespace, "team/app is held (a move)", id="namespace"),
    ],
)


def unneeded(garbage: Garbage) -> None:
    garbage.push_and_forget("m", *LAYERS)


def hidden(garbage: Garbage) -> None:
    unneeded(garbage)
    assert garbage.collect().hidden == len(ALL)


def collected(garbage: Garbage, on_call: Callable[[str], None]) -> Calls:
    """Run a job that calls this before each of its calls; return the calls."""
    calls = Calls(1, on_call)
    garbage.ask()
    assert run_job(garbage, calls)
    return calls


def states(garbage: Garbage, names: Sequence[str] = ALL) -> list[BlobState]:
    return [garbage.state(name) for name in names]


def restorable(garbage: Garbage, name: str) -> bool:
    """Whether the bytes of a hidden blob are there: a reference brings them back."""
    garbage.report(f"wants.{name}", name)
    garbage.restore()
    return garbage.is_served(name)


# One switch, and holds


@CONTROLS
def test_nothing_begins(garbage: Garbage, control: Control, reason: str) -> None:
    """A run under a control hides and purges nothing, and names what blocks it."""
    hidden(garbage)
    garbage.push_and_forget("n")
    control(garbage)
    run = garbage.collect()
    assert (run.hidden, run.purged) == (0, 0)
    assert run.progress["planned"] == {step: {"blobs": 0, "bytes": 0} for step in ("hide", "purge")}
    assert reason.split(" (", maxsplit=1)[0] in run.progress["blocked_by"][0]
    assert garbage.is_served("n")
    on(garbage)
    run = garbage.collect()
    assert (run.hidden, run.purged) == (1, len(ALL))


@CONTROLS
@pytest.mark.parametrize("words", [REFERRERS, "delete_many"], ids=["before-the-intent", "before-the-permit"])
def test_a_control_that_the_plan_has_not_seen_keeps_blobs(
    garbage: Garbage, control: Control, reason: str, words: str
) -> None:
    """A control that is set after the plan stops the next hide: nothing is sent, and a later run undoes it."""
    unneeded(garbage)
    garbage.delete_bound = LANDED
    calls = collected(garbage, Once(words, lambda: control(garbage)))
    assert calls.numbers_of(SEND) == []
    run = last_run(garbage)
    assert run.state == "failed"
    assert reason in str(run.error)
    assert all(garbage.is_served(name) for name in ALL)
    on(garbage)
    assert garbage.collect().hidden == len(ALL)
    assert garbage.collect().purged == len(ALL)


@CONTROLS
@pytest.mark.parametrize("words", [JOB, "delete_many"], ids=["before-it-begins", "before-the-permit"])
def test_a_control_that_the_plan_has_not_seen_keeps_hidden_bytes(
    garbage: Garbage, control: Control, reason: str, words: str
) -> None:
    """A control that is set after the plan stops the next purge: blobs stay hidden, and a later run purges them."""
    hidden(garbage)
    calls = collected(garbage, Once(words, lambda: control(garbage)))
    assert calls.numbers_of(SEND) == []
    assert reason in str(last_run(garbage).error)
    on(garbage)
    assert garbage.collect().purged == len(ALL)


@CONTROLS
def test_between_two_requests_of_a_purge(garbage: Garbage, control: Control, reason: str) -> None:
    """With a control that is set in the second of two purge requests only the first deletes; the next run ends it."""
    garbage.sizes = replace(garbage.sizes, deletes=2)
    hidden(garbage)
    requests = Once("delete_many", lambda: control(garbage), nth=2)
    calls = collected(garbage, requests)
    assert requests.happened
    assert len(calls.numbers_of(SEND)) == 1
    assert reason in str(last_run(garbage).error)
    assert sum(_has_bytes(garbage, name) for name in ALL) == len(ALL) - 2
    on(garbage)
    run = garbage.collect()
    assert run.purged == len(ALL)
    assert not any(_has_bytes(garbage, name) for name in ALL)
    assert states(garbage) == [BlobState.PURGED] * len(ALL)


@CONTROLS
def test_between_two_requests_of_hides(garbage: Garbage, control: Control, reason: str) -> None:
    """With a control that is set in the second of two hide requests only the blobs of the first are hidden."""
    garbage.sizes = replace(garbage.sizes, pages_at_once=1, page=2)
    garbage.delete_bound = LANDED
    unneeded(garbage)
    requests = Once("delete_many", lambda: control(garbage), nth=2)
    calls = collected(garbage, requests)
    assert requests.happened
    assert len(calls.numbers_of(SEND)) == 1
    assert reason in str(last_run(garbage).error)
    assert sum(garbage.is_served(name) for name in ALL) == 2
    assert states(garbage).count(BlobState.HIDDEN) == 2
    on(garbage)
    run = garbage.collect()
    assert (run.hidden, run.purged) == (2, 2)
    assert garbage.collect().purged == 2


def test_restores_need_no_switch(garbage: Garbage) -> None:
    """Blobs that are needed again are restored, whatever is switched off or held."""
    hidden(garbage)
    off(garbage)
    hold_pod(garbage)
    garbage.report("wants", "a")
    assert garbage.restore() == 1
    assert garbage.is_served("a")


def test_an_operator_who_switches_off_waits_for_nobody(garbage: Garbage) -> None:
    """An operator can switch GC off while a job hangs in a permit, and the job gets no other permit."""
    unneeded(garbage)
    garbage.ask()
    job = jobs.take_job(garbage.connection, [collect.JOB_KIND])
    assert job is not None
    intents = gc.write_intents(
        garbage.connection, job, gc.read_candidates(garbage.connection, gc.BEGINNING, None, 10), {}
    )
    hides = [each.id for each in intents]
    with garbage.connect() as others:
        others.execute("SET lock_timeout = '1ms'")
        with garbage.connection.transaction():
            gc.permit_deletes(garbage.connection, job, hides, BlobState.HIDING)
            controls.set_switch(others, "a rumour", on=False)
    with pytest.raises(StoppedCollectingError):
        gc.permit_deletes(garbage.connection, job, hides, BlobState.HIDING)


# What cannot be read


@pytest.mark.parametrize("nth", [1, 2], ids=["begin", "permit"])
@pytest.mark.parametrize("step", ["hide", "purge"])
def test_the_connection_breaks_as_the_switch_is_read(garbage: Garbage, step: str, nth: int) -> None:
    """A run that cannot read the switch deletes nothing; the next run does."""
    (unneeded if step == "hide" else hidden)(garbage)
    reading = Once(SWITCH, lambda: broken(garbage), nth)
    calls = collected(garbage, reading)
    assert reading.happened
    assert calls.numbers_of(SEND) == []
    assert (last_run(garbage).hidden, last_run(garbage).purged) == (0, 0)
    assert all(_has_bytes(garbage, name) for name in ALL)
    assert all(garbage.is_served(name) is (step == "hide") for name in ALL)
    run = garbage.collect()
    assert (run.hidden, run.purged) == ((len(ALL), 0) if step == "hide" else (0, len(ALL)))


def broken(garbage: Garbage) -> None:
    """Kill the job's connections at the server."""
    killed = garbage.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s",
        (NAME,),
    )
    assert killed


# Pins


def pin(garbage: Garbage, name: str) -> Callable[[], None]:
    return lambda: garbage.pin(name, "a release")


@pytest.mark.parametrize("words", [REFERRERS, "delete_many"], ids=["before-the-intent", "before-the-delete"])
def test_a_pin_that_comes_before_a_delete_keeps_its_blob(garbage: Garbage, words: str) -> None:
    """A blob that is pinned after the plan, or after its intent, is served on; the others of its batch are hidden."""
    garbage.delete_bound = LANDED
    unneeded(garbage)
    pinning = Once(words, pin(garbage, "a"))
    collected(garbage, pinning)
    assert pinning.happened
    assert [garbage.is_served(name) for name in ALL] == [name == "a" for name in ALL]
    assert last_run(garbage).hidden == len(ALL) - 1
    run = garbage.collect()
    assert run.kept == {"pinned": 1}
    assert garbage.is_served("a")
    assert garbage.state("a") is BlobState.UNREFERENCED
    garbage.unpin("a")
    assert garbage.collect().hidden == 1


def test_a_hidden_blob_that_is_pinned_is_not_purged(garbage: Garbage) -> None:
    """A hidden blob keeps its bytes as long as it is pinned."""
    hidden(garbage)
    pin(garbage, "a")()
    run = garbage.collect()
    assert run.purged == len(ALL) - 1
    assert run.kept == {"pinned": 1}
    assert restorable(garbage, "a")


@pytest.mark.parametrize("words", [JOB, "delete_many"], ids=["before-it-begins", "before-the-delete"])
def test_a_pin_that_comes_before_a_purge_keeps_the_bytes(garbage: Garbage, words: str) -> None:
    """A blob that is pinned after the plan of its purge keeps its bytes, and the others are purged."""
    hidden(garbage)
    garbage.delete_bound = LANDED
    pinning = Once(words, pin(garbage, "a"))
    collected(garbage, pinning)
    assert pinning.happened
    garbage.collect()
    assert [name for name in ALL if _has_bytes(garbage, name)] == ["a"]
    assert [garbage.state(name) for name in ALL if name != "a"] == [BlobState.PURGED] * (len(ALL) - 1)
    garbage.collect()
    assert _has_bytes(garbage, "a")
    garbage.unpin("a")
    for _ in range(3):
        garbage.collect()
    assert garbage.state("a") is BlobState.PURGED


# References


@pytest.mark.parametrize("words", [REFERRERS, "delete_many"], ids=["before-the-intent", "before-the-delete"])
def test_a_reference_that_comes_before_a_delete_keeps_its_blob(garbage: Garbage, words: str) -> None:
    """A blob that is referenced again after the plan, if only for a moment, stays served."""
    unneeded(garbage)

    def needed_for_a_moment() -> None:
        garbage.report("wants", "a", "b")
        garbage.forget("wants")
        garbage.report("wants.b", "b")

    needing = Once(words, needed_for_a_moment)
    collected(garbage, needing)
    assert needing.happened
    assert [name for name in ALL if garbage.is_served(name)] == ["a", "b"]
    garbage.restore()
    assert garbage.state("b") is BlobState.LIVE


def test_a_reference_that_comes_while_its_delete_is_being_permitted(garbage: Garbage) -> None:
    """A restorer restores a blob also if the permit of its hide is being committed at that moment."""
    garbage.delete_bound = IN_FLIGHT
    unneeded(garbage)

    with ThreadPoolExecutor(2) as pool:

        def reported_and_restored() -> None:
            reporting = pool.submit(garbage.report, "wants", "a")
            finished(garbage, [reporting])
            finished(garbage, [reporting, pool.submit(garbage.restore)])

        # The permit has decided, and is not committed.
        permitting = Once("SET permitted_at", reported_and_restored)
        collected(garbage, permitting)
    assert permitting.happened
    garbage.restore()
    assert garbage.is_served("a")
    let_deletes_land(garbage)
    garbage.restore()
    assert garbage.is_served("a")
    assert garbage.state("a") is BlobState.LIVE
    assert garbage.hide_of("a") is None


def finished(garbage: Garbage, work: Sequence[Future[Any]]) -> None:
    """Wait until each has ended, or waits for a lock of another connection."""
    with garbage.connect() as others:
        while not all(each.done() for each in work):
            (waiting,) = others.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone() or (0,)
            if waiting >= sum(not each.done() for each in work):
                return


def _has_bytes(garbage: Garbage, name: str) -> bool:
    hide = garbage.hide_of(name)
    return any(not each.is_marker for each in garbage.store.list_versions(blob_key(garbage.digest(name)))) or (
        hide is not None and garbage.store.head(quarantine_key(garbage.digest(name), hide.id)) is not None
    )
