"""A run that would take far more than it should is refused as a whole, and says what to look at."""

from __future__ import annotations

import pytest

from coordinator.domain.gc import Amount, Limits
from coordinator.domain.lifecycle import BlobState
from coordinator.gc import controls
from tests.gc.calls import Once, die, last_run, run_job, run_next
from tests.gc.harness import LANDED, Garbage
from tests.storage.memory import MemoryObjectStore
from tests.support.store import ANSWERED

#: Three layers and a manifest each.
LAYERS = ("a", "b", "c")
HUGE = 10**15


@pytest.fixture
def store() -> MemoryObjectStore:
    """Limits are the table's business."""
    return MemoryObjectStore(versioned=True)


def images(garbage: Garbage, *names: str) -> None:
    for name in names:
        garbage.pushed(name, *(f"{name}.{layer}" for layer in LAYERS))


def limit(garbage: Garbage, *, share: int = 100, history: int = 1_000_000, blobs: int = 0, size: int = HUGE) -> None:
    garbage.limits = Limits(share, history, Amount(blobs, size))


def refused(garbage: Garbage, *words: str) -> None:
    """A run fails and says why and what to do; nothing is hidden or purged."""
    states = "SELECT b.id, b.state, h.id FROM blobs b LEFT JOIN hides h ON h.blob_id = b.id ORDER BY 1, 3"
    before = garbage.rows(states)
    run = garbage.try_collection()
    assert run.state == "failed"
    for word in (*words, "baleen gc plan", "--beyond-limits"):
        assert word in str(run.error)
    assert garbage.rows(states) == before


def test_a_share_of_all(garbage: Garbage) -> None:
    """A run that would hide more than a share of all served blobs, or of their bytes, is refused."""
    images(garbage, "i", "j", "k")
    garbage.forget("i")
    limit(garbage, share=20, blobs=1000, size=0)
    refused(garbage, "bytes of", "are more than 20 %")
    limit(garbage, share=33)
    refused(garbage, "4 blobs of 12 are more than 33 %")
    limit(garbage, share=34)
    assert garbage.collect().hidden == 4


def test_what_is_hidden_counts_until_it_is_purged(garbage: Garbage) -> None:
    """A purge is measured against what there was before its blobs were hidden, and hides of the same run are added."""
    images(garbage, "i", "j", "k", "l")
    garbage.forget("i")
    garbage.collect()
    limit(garbage, share=25)
    garbage.forget("j")
    refused(garbage, "8 blobs of 16 are more than 25 %")
    garbage.report("j", *(f"j.{layer}" for layer in LAYERS))
    assert garbage.collect().purged == 4


def test_below_the_floor_nothing_is_too_much(garbage: Garbage) -> None:
    """A run below the floor is never refused, even if it hides everything."""
    images(garbage, "i")
    garbage.forget("i")
    limit(garbage, share=1, history=1, blobs=4)
    assert garbage.collect().hidden == 4
    assert garbage.collect().purged == 4


def test_many_times_what_runs_took(garbage: Garbage) -> None:
    """A run that takes many times as much as any recent one is refused; dry runs and failed ones do not count."""
    images(garbage, *(f"i{number}" for number in range(8)))
    garbage.push_and_forget("small")
    assert garbage.collect().hidden == 1
    for number in range(5):
        garbage.forget(f"i{number}")
    limit(garbage, history=10)
    # The hide of 20 and the purge of 1.
    assert garbage.collect(dry=True, beyond_limits="a test").hidden == 20
    refused(garbage, "21 blobs are more than 10 times the 1 of any earlier run")
    refused(garbage, "21 blobs are more than 10 times the 1 of any earlier run")
    limit(garbage, history=21)
    assert garbage.collect().hidden == 20


def test_an_operator_permits_it(garbage: Garbage) -> None:
    """One run that an operator permits beyond the limits is not refused; the next one is."""
    images(garbage, "i", "j")
    garbage.forget("i")
    garbage.forget("j")
    limit(garbage, share=1)
    refused(garbage, "8 blobs of 8")
    assert garbage.collect(beyond_limits="both teams have moved").hidden == 8
    refused(garbage, "8 blobs of 8")


def test_what_others_left_is_undone_in_a_run_that_is_refused(garbage: Garbage) -> None:
    """A refused run still restores what a dead one had begun to hide."""
    images(garbage, "i")
    garbage.forget("i")
    garbage.delete_bound = LANDED
    garbage.ask()
    assert not run_job(garbage, Once(ANSWERED, lambda: die("")))
    assert not garbage.is_served("i.a")
    limit(garbage, share=1)
    run_next(garbage)
    assert last_run(garbage).state == "failed"
    assert garbage.is_served("i.a")
    assert garbage.state("i.a") is BlobState.UNREFERENCED
    assert garbage.ledger("i.a") == ["hide", "undone"]


def test_what_was_given_back_is_hidden_by_a_later_run(garbage: Garbage) -> None:
    """A run that restores what an older table had hidden does not hide that again: it is in no plan."""
    garbage.delete_bound = LANDED
    images(garbage, "i", "j")
    garbage.forget("i")
    assert garbage.collect().hidden == 4
    garbage.claim()
    garbage.audit()
    controls.set_switch(garbage.connection, "a test", on=True)
    limit(garbage, share=10)
    run = garbage.collect()
    assert (run.progress["restored"], run.hidden, run.progress["left"]) == (4, 0, 4)
    refused(garbage, "4 blobs of 8 are more than 10 %")
