"""Blobs that a registry confirms from its own database (rule 18): they are neither hidden nor purged."""

from collections.abc import Collection, Mapping, Sequence

import pytest

from coordinator.domain.gc import Amount, Limits
from coordinator.domain.names import Digest, PodName
from coordinator.errors import UnavailableError
from tests.gc.harness import LANDED, Garbage

GITLAB = PodName("gitlab")


class Listed:
    """A registry's database that lists these blobs."""

    def __init__(self, listed: Collection[Digest] = ()) -> None:
        self.listed = set(listed)
        self.is_away = False

    def find_claims(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:
        if self.is_away:
            raise UnavailableError("The registry database of pod gitlab does not answer: try again.")
        return {digest: GITLAB for digest in blobs if digest in self.listed}


@pytest.fixture
def listed(garbage: Garbage) -> Listed:
    garbage.claims = found = Listed()
    return found


def decisions(garbage: Garbage, name: str) -> list[tuple[str, str]]:
    return garbage.rows("SELECT decision, why FROM gc_ledger WHERE digest = %s ORDER BY id", (garbage.digest(name),))


def test_a_listed_blob_is_not_hidden(garbage: Garbage, listed: Listed) -> None:
    """A blob that is listed stays served, as often as a run meets it, and the ledger says so once."""
    garbage.push_and_forget("m", "l")
    listed.listed = {garbage.digest("l")}
    for _ in range(3):
        assert garbage.collect().kept["claimed"] == 1
    assert garbage.is_served("l")
    assert not garbage.is_served("m")
    ((decision, why),) = decisions(garbage, "l")
    assert decision == "kept"
    assert "registry database of pod gitlab" in why
    listed.listed.clear()
    # The run that finds it had planned to keep it.
    assert garbage.collect().progress["left"] == 1
    assert garbage.collect().hidden == 1
    assert not garbage.is_served("l")


def test_listed_blobs_take_nothing_of_what_a_run_may_hide(garbage: Garbage, listed: Listed) -> None:
    """A plan counts listed blobs as kept, once a run has asked: the limits of a run are for the others."""
    garbage.push_and_forget("m", *(f"l{n}" for n in range(6)))
    listed.listed = {garbage.digest(f"l{n}") for n in range(6)} | {garbage.digest("m")}
    assert garbage.collect().kept["claimed"] == 7
    listed.listed.discard(garbage.digest("m"))
    garbage.push_and_forget("n")
    garbage.limits = Limits(1, 1, Amount(2, 10**9))
    assert garbage.collect(dry=True).kept["claimed"] == 7
    run = garbage.collect()
    assert (run.hidden, run.kept["claimed"]) == (1, 6)
    assert garbage.collect().hidden == 1
    assert not garbage.is_served("m")
    assert not garbage.is_served("n")
    assert all(garbage.is_served(f"l{n}") for n in range(6))


def test_listed_blobs_are_not_too_much(garbage: Garbage, listed: Listed) -> None:
    """A run whose plan exceeds the limits asks first: what is listed stays, so it is no reason to refuse the run."""
    garbage.push_and_forget("m", *(f"l{n}" for n in range(6)))
    listed.listed = {garbage.digest(f"l{n}") for n in range(6)}
    garbage.limits = Limits(1, 1, Amount(2, 10**9))
    run = garbage.collect()
    assert (run.hidden, run.kept["claimed"]) == (1, 6)


def test_a_blob_that_is_listed_since_it_was_hidden(garbage: Garbage, listed: Listed) -> None:
    """A hidden blob that is listed since then is not purged, and is served again."""
    garbage.delete_bound = LANDED
    garbage.hidden("m", "l")
    listed.listed = {garbage.digest("l")}
    run = garbage.collect()
    assert run.kept["given back"] == 1
    assert garbage.is_served("l")
    assert not garbage.rows("SELECT FROM gc_ledger WHERE decision = 'purged' AND digest = %s", (garbage.digest("l"),))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_database_that_does_not_answer(garbage: Garbage, listed: Listed, *, hidden: bool) -> None:
    """While it is not known whether a registry lists a blob, nothing is hidden and nothing is purged."""
    if hidden:
        garbage.hidden("m", "l")
    else:
        garbage.push_and_forget("m", "l")
    listed.is_away = True
    run = garbage.try_collection()
    assert (run.hidden, run.purged) == (0, 0)
    listed.is_away = False
    run = garbage.collect()
    assert (run.hidden, run.purged) == ((0, 2) if hidden else (2, 0))
