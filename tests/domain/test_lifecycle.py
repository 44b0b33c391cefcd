"""The states of a blob: every pair of a state and an event, and what no path may do."""

import itertools

import pytest

from coordinator.domain.lifecycle import (
    CONCEALED,
    TRANSITIONS,
    BlobEvent,
    BlobState,
    LifecycleError,
    NoTransition,
    state_after,
    state_after_check,
    state_after_count,
)

S, E = BlobState, BlobEvent


def test_nothing_is_left_open() -> None:
    """The table has a cell for every state and every event."""
    assert set(TRANSITIONS) == set(itertools.product(BlobState, BlobEvent))


@pytest.mark.parametrize(
    ("state", "referenced", "then"),
    [
        (S.LIVE, True, S.LIVE),
        (S.LIVE, False, S.UNREFERENCED),
        (S.UNREFERENCED, True, S.LIVE),
        (S.UNREFERENCED, False, S.UNREFERENCED),
        (S.MISSING, True, S.MISSING),
        (S.MISSING, False, S.UNREFERENCED),
    ],
)
def test_counts(state: BlobState, referenced: bool, then: BlobState) -> None:
    """Counts move a blob between live and unreferenced; they may end missing, and never begin it."""
    assert state_after_count(state, referenced=referenced) is then


@pytest.mark.parametrize("state", sorted(CONCEALED))
def test_counts_bring_no_bytes_back(state: BlobState) -> None:
    """Counts change no blob that is hidden or purged, needed or not."""
    assert state_after_count(state, referenced=True) is state_after_count(state, referenced=False) is state


@pytest.mark.parametrize(
    ("state", "stored", "then"),
    [
        (S.LIVE, True, S.LIVE),
        (S.LIVE, False, S.MISSING),
        (S.MISSING, True, S.LIVE),
        (S.MISSING, False, S.MISSING),
        (S.PURGED, True, S.LIVE),
        (S.PURGED, False, S.MISSING),
        (S.HIDDEN, True, S.HIDDEN),
        (S.HIDDEN, False, S.HIDDEN),
        (S.HIDING, False, S.HIDING),
        (S.PURGING, False, S.PURGING),
    ],
)
def test_a_check_of_what_is_needed(state: BlobState, stored: bool, then: BlobState) -> None:
    """A check makes a needed blob live with bytes and missing without; a hidden one stays hidden."""
    assert state_after_check(state, referenced=True, stored=stored) is then


def test_a_check_of_what_nobody_needs() -> None:
    """A check changes no blob that is not needed."""
    for state, stored in itertools.product(BlobState, (True, False)):
        assert state_after_check(state, referenced=False, stored=stored) is state


@pytest.mark.parametrize("state", sorted(CONCEALED))
def test_a_hide_is_undone(state: BlobState) -> None:
    """A hidden blob of any state whose bytes are served again is live if it is needed, else unreferenced."""
    assert state_after(state, E.SHOWN, needed=True) is S.LIVE
    assert state_after(state, E.SHOWN, needed=False) is S.UNREFERENCED


def test_the_only_way_to_a_purge() -> None:
    """Bytes are deleted only of a blob that was unreferenced, then hiding, hidden and purging."""
    ways = {
        (state, cell) for (state, _), cell in TRANSITIONS.items() if isinstance(cell, BlobState) and cell is not state
    }
    before = {to: {state for state, moved in ways if moved is to} for to in BlobState}
    assert before[S.PURGED] == {S.PURGING}
    assert before[S.PURGING] == {S.HIDDEN}
    assert before[S.HIDDEN] == {S.HIDING}
    assert before[S.HIDING] == {S.UNREFERENCED}


def test_what_cannot_happen_is_refused() -> None:
    """Each cell that is an alarm raises, among them a hide or purge of a blob that is live."""
    alarms = {key for key, cell in TRANSITIONS.items() if cell is NoTransition.ALARM}
    for state, event in alarms:
        with pytest.raises(LifecycleError, match=state.name.lower()):
            state_after(state, event, needed=False)
    assert {(S.LIVE, E.HIDE), (S.LIVE, E.PURGED), (S.UNREFERENCED, E.PURGE), (S.MISSING, E.HIDE)} <= alarms
