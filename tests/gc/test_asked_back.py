"""Blobs that an operator undeletes are served again, on every kind of store, at any moment of a collection."""

import pytest
from structlog.testing import capture_logs

from coordinator.db.engine import temporary_engine
from coordinator.domain.lifecycle import BlobState
from coordinator.gc import controls
from coordinator.reconcile.resolve import NotHereError
from tests.gc.harness import LANDED, Garbage
from tests.support.store import ASK, FaultyStore


def ask_back(garbage: Garbage, name: str, *, pin: bool = True) -> BlobState:
    with temporary_engine(garbage.url, name="test-operator") as engine:
        return controls.undelete(engine, garbage.digest(name), "a test", pin=pin).state


def test_it_is_served_again(garbage: Garbage) -> None:
    """A hidden blob that is asked back is served again after the next round of a worker."""
    garbage.hidden("m", "l")
    assert ask_back(garbage, "l") is BlobState.HIDDEN
    assert not garbage.is_served("l")
    assert garbage.restore() == 1
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.UNREFERENCED
    assert garbage.hide_of("l") is None
    assert garbage.changes("l")[-1] == "restored"
    assert garbage.collect().purged == 1
    assert garbage.is_served("l")
    assert not garbage.is_served("m")


@pytest.mark.parametrize("pin", [True, False])
@pytest.mark.parametrize("state", [BlobState.HIDING, BlobState.PURGING])
def test_just_before_a_delete_is_permitted(garbage: Garbage, state: BlobState, pin: bool) -> None:
    """A blob that is asked back before the delete of its hide or purge is permitted keeps its bytes, pinned or not."""
    hides = state is BlobState.HIDING
    (garbage.push_and_forget if hides else garbage.hidden)("m", "l")
    states: list[BlobState] = []
    store = FaultyStore(garbage.store)
    store.before(ASK, lambda: states.append(ask_back(garbage, "l", pin=pin)), nth=1)
    run = garbage.collect(store)
    assert (run.hidden, run.purged) == ((1, 0) if hides else (0, 1))  # the manifest that listed it
    assert states == [state]
    assert garbage.is_served("l") is hides
    if not hides:
        garbage.delete_bound = LANDED
    assert garbage.restore() == 1
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.UNREFERENCED


def test_what_waits_holds_up_nobody(garbage: Garbage) -> None:
    """Hides that cannot end yet, however many, do not delay the restores of later ones."""
    garbage.restores = {"per_round": 1}
    for number in range(3):
        garbage.push_and_forget(f"m{number}", f"l{number}")
    garbage.collect()
    garbage.connection.execute(
        "UPDATE hides SET purging_at = now(), permitted_at = now() WHERE blob_id IN (SELECT id FROM blobs ORDER BY id"
        " LIMIT 4)"
    )
    for number in range(3):
        garbage.report(f"again{number}", f"l{number}")
    with garbage.parts() as (_, __, restorer):
        for _ in range(4):
            restorer.round()
    assert [garbage.state(f"l{number}") for number in range(3)] == [*[BlobState.HIDDEN] * 2, BlobState.LIVE]


def test_a_pinned_one_holds_up_no_purge(garbage: Garbage) -> None:
    """A blob that is pinned after its purge began stays, and the other blobs of that purge are purged."""
    garbage.hidden("m", "l")
    garbage.connection.execute("UPDATE hides SET purging_at = now(), run_id = 0")
    garbage.connection.execute("UPDATE blobs SET state = %s WHERE state = %s", (BlobState.PURGING, BlobState.HIDDEN))
    garbage.pin("l")
    assert garbage.collect().purged == 1
    assert garbage.state("m") is BlobState.PURGED
    assert garbage.state("l") is BlobState.PURGING
    garbage.unpin("l")
    assert garbage.collect().purged == 1


@pytest.mark.parametrize("needed", [False, True], ids=["", "needed"])
def test_there_are_no_bytes(garbage: Garbage, needed: bool) -> None:
    """A blob that never had bytes is asked back without an alarm; only one that is needed is missing, with an alarm."""
    garbage.pushed("kept", "k")
    garbage.report("m", "l")
    garbage.forget("m")
    garbage.collect()
    if needed:
        garbage.pushed("other")
        garbage.report("other", "l")
        garbage.links_are("link")
    else:
        ask_back(garbage, "l", pin=False)
    with capture_logs() as logs:
        garbage.restore()
    assert garbage.hide_of("l") is None
    assert garbage.state("l") is (BlobState.MISSING if needed else BlobState.UNREFERENCED)
    alarms = [entry["event"] for entry in logs if entry["log_level"] == "error"]
    assert ("hidden blob is needed and has no bytes" in alarms) is needed
    assert needed or not alarms


def test_bytes_that_are_nowhere_hold_up_nobody(garbage: Garbage) -> None:
    """A purged blob that is needed and has no bytes does not prevent the restore of another one."""
    garbage.hidden("m", "l")
    garbage.collect()
    garbage.hidden("other", "o")
    garbage.report("again", "l")
    garbage.links_are("link")
    ask_back(garbage, "o", pin=False)
    with pytest.raises(NotHereError):
        garbage.restore()
    assert garbage.is_served("o")
    assert garbage.state("o") is BlobState.UNREFERENCED
