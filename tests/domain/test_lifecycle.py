"""How counts and looks move a blob from one state to another."""

import itertools

import pytest

from coordinator.domain.lifecycle import BlobState, counted, looked

S = BlobState


@pytest.mark.parametrize(
    ("state", "referenced", "then"),
    [
        (S.LIVE, True, S.LIVE),
        (S.LIVE, False, S.UNREFERENCED),
        (S.UNREFERENCED, True, S.LIVE),
        (S.UNREFERENCED, False, S.UNREFERENCED),
        (S.MISSING, True, S.MISSING),
        (S.MISSING, False, S.UNREFERENCED),
        (S.HIDDEN, True, S.HIDDEN),
        (S.HIDDEN, False, S.HIDDEN),
        (S.PURGED, True, S.PURGED),
        (S.PURGED, False, S.PURGED),
    ],
)
def test_counts(state: BlobState, referenced: bool, then: BlobState) -> None:
    """Counts move between live and unreferenced; they end what is missing, and never find it."""
    assert counted(state, referenced=referenced) is then


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
    ],
)
def test_a_look_at_what_is_needed(state: BlobState, stored: bool, then: BlobState) -> None:
    """What is needed is live with its bytes and missing without; a hidden blob is to have none that are served."""
    assert looked(state, referenced=True, stored=stored) is then


def test_a_look_at_what_nobody_needs() -> None:
    """What nobody needs is never missed, and a look alone brings nothing back."""
    for state, stored in itertools.product(BlobState, (True, False)):
        assert looked(state, referenced=False, stored=stored) is state
