"""Rule 17: a purge checks before it deletes. Attempt 18: no version of a blob with many versions is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.storage.layout import blob_key, quarantine_key
from coordinator.storage.port import Target, copy_within
from tests.gc.harness import LANDED, Garbage
from tests.support.store import ASK, FaultyStore


def show(garbage: Garbage, name: str) -> None:
    """Let registries see a hidden blob, as another client of the bucket can."""
    found = garbage.hide_of(name)
    key = blob_key(found.digest)
    if found.marker is None:
        copy_within(garbage.store, quarantine_key(found.digest, found.id), key)
    else:
        assert garbage.store.remove_marker(key, found.marker)


def delete_again(garbage: Garbage, name: str) -> None:
    """Remove the marker and delete the blob anew: it is not served, and was for a while."""
    show(garbage, name)
    garbage.store.delete(blob_key(garbage.digest(name)))


@pytest.fixture
def hidden(garbage: Garbage) -> Garbage:
    """A manifest and two layers are hidden, and their purge is due."""
    garbage.delete_bound = LANDED
    garbage.push_and_forget("m", "l", "k")
    assert garbage.collect().hidden == 3
    return garbage


def test_what_others_show_is_not_purged(hidden: Garbage) -> None:
    """Attempt 10: a hidden blob that another client shows is kept with an alarm, and a reference finds its bytes."""
    versioned = hidden.store.keeps_versions()
    show(hidden, "l")
    run = hidden.collect()
    assert run.purged == 2
    assert run.kept == {"given back": 1}
    assert run.progress["shown_by_others"] == versioned
    assert hidden.is_served("l")
    assert ("shown-by-others" in hidden.ledger("l")) is versioned
    assert "purged" not in hidden.ledger("l")
    hidden.report("other", "l")
    hidden.restore()
    hidden.collect()
    assert hidden.is_served("l")
    assert hidden.state("l") is BlobState.LIVE


def test_what_was_shown_is_collected_like_any_other(hidden: Garbage) -> None:
    """A blob that was given back is later hidden and purged like any other."""
    show(hidden, "l")
    for _ in range(3):
        hidden.collect()
    assert hidden.state("l") is BlobState.PURGED
    assert not hidden.is_served("l")
    assert hidden.store.list_versions(blob_key(hidden.digest("l"))) == []


def test_a_marker_of_others_hides_nothing_for_a_purge(hidden: Garbage) -> None:
    """A blob whose marker was replaced may have been used meanwhile: it is served again, with an alarm."""
    if not hidden.store.keeps_versions():
        pytest.skip("an unversioned bucket has no markers")
    delete_again(hidden, "l")
    assert not hidden.is_served("l")
    run = hidden.collect()
    assert (run.purged, run.progress["shown_by_others"]) == (2, 1)
    assert hidden.is_served("l")


def test_a_purge_that_was_interrupted_at_its_marker_is_no_alarm(hidden: Garbage) -> None:
    """A purge whose versions and marker are all deleted already ends without an alarm."""
    found = hidden.hide_of("l")
    key = blob_key(found.digest)
    own = [Target(quarantine_key(found.digest, found.id))] if found.marker is None else []
    targets = own + [Target(key, each.version) for each in hidden.store.list_versions(key)]
    hidden.store.delete_many(targets, lambda: None)
    run = hidden.collect()
    assert (run.purged, run.kept, run.progress["shown_by_others"]) == (3, {}, 0)


@pytest.mark.parametrize("again", [False, True])
def test_the_check_is_the_last_thing_before_a_delete_is_permitted(hidden: Garbage, again: bool) -> None:
    """A blob that is shown after its request was signed, or before it is sent again, is kept."""
    shown: list[str] = []

    def happens() -> None:
        shown.append("l")
        show(hidden, "l")

    store = FaultyStore(hidden.store)
    if again:
        store.send_again(happens)
    else:
        store.before(ASK, happens, nth=1)
    hidden.collect(store)
    assert shown
    assert hidden.is_served("l")
    assert "purged" not in hidden.ledger("l")


def test_one_that_cannot_be_checked_keeps_no_other(hidden: Garbage) -> None:
    """A blob that the store cannot check waits, and the others are purged."""
    store = FaultyStore(hidden.store)
    for call in ("head", "list_versions"):
        store.fail(call, key=blob_key(hidden.digest("l")))
    run = hidden.collect(store)
    assert (run.purged, run.progress["left"], run.kept) == (2, 1, {})
    assert hidden.state("l") is BlobState.PURGING
    assert hidden.collect().purged == 1


def test_many_versions_go_at_once(garbage: Garbage) -> None:
    """Attempt 18: a blob with 131 versions is purged with all of them."""
    for _ in range(130):
        garbage.upload("l")
    garbage.hidden("m", "l")
    run = garbage.collect()
    assert run.purged == 2
    versions = 131 if garbage.store.keeps_versions() else 1
    assert run.freed == len(garbage.body("m")) + versions * len(garbage.body("l"))
    assert garbage.store.list_versions(blob_key(garbage.digest("l"))) == []


def test_what_a_hide_did_not_record_goes_with_the_next(garbage: Garbage) -> None:
    """However many versions a blob has, each hide takes as many as it records, until none is left."""
    garbage.sizes = replace(garbage.sizes, batch_versions=1, versions_at_least=10)
    garbage.delete_bound = LANDED
    for _ in range(25):
        garbage.upload("l")
    garbage.push_and_forget("m", "l")
    freed = 0
    for _ in range(10):
        freed += garbage.collect().freed
    assert garbage.state("l") is BlobState.PURGED
    assert garbage.store.list_versions(blob_key(garbage.digest("l"))) == []
    stored = 26 if garbage.store.keeps_versions() else 1
    assert freed == len(garbage.body("m")) + stored * len(garbage.body("l"))
