"""A blob's way through garbage collection, on every kind of store: hidden, restored, hidden again, purged."""

from collections.abc import Callable, Sequence

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.errors import ConflictError, UnavailableError
from coordinator.gc import restore
from coordinator.gc.purge import VERIFIED_SAMPLE
from coordinator.gc.table import REFERRERS_LIMIT
from coordinator.storage.layout import QUARANTINE, blob_key, layer_link_key, revision_link_key
from coordinator.storage.port import Target
from tests.gc.harness import Garbage
from tests.support.store import FaultyStore


def test_what_nothing_references_is_hidden_and_then_purged(garbage: Garbage) -> None:
    """An unreferenced blob is hidden by one run and purged by the next, which reports its bytes as freed; a third run
    does nothing.
    """
    garbage.pushed("m", "l")
    garbage.pushed("kept", "k")
    garbage.forget("m")
    first = garbage.collect()
    assert (first.hidden, first.purged) == (2, 0)
    assert not garbage.is_served("m")
    assert not garbage.is_served("l")
    assert garbage.state("l") is BlobState.HIDDEN
    second = garbage.collect()
    assert (second.hidden, second.purged) == (0, 2)
    assert second.freed == len(garbage.body("m")) + len(garbage.body("l"))
    assert garbage.state("l") is BlobState.PURGED
    assert garbage.store.list_versions(blob_key(garbage.digest("l"))) == []
    assert [entry for entry in garbage.store.walk(QUARANTINE) if garbage.digest("l").hex() in entry.key] == []
    assert garbage.is_served("k")
    assert garbage.state("k") is BlobState.LIVE
    assert garbage.ledger("l") == ["hide", "hidden", "purge", "purged"]
    assert garbage.changes("l")[-2:] == ["hidden", "purged"]
    third = garbage.collect()
    assert (third.hidden, third.purged, third.kept) == (0, 0, {})


@pytest.mark.parametrize("link_key", [revision_link_key, layer_link_key])
def test_all_that_a_linked_manifest_lists_is_kept(garbage: Garbage, link_key: Callable[..., str]) -> None:
    """A manifest that is still linked, against its delete event, and all that it lists are not hidden (rule 5)."""
    garbage.push_and_forget("m", "l0", "l1", "l2")
    garbage.connection.execute("UPDATE pods SET kind = 'link' WHERE name = 'pod-a'")
    garbage.store.put(link_key(garbage.repository("r"), garbage.digest("m")), b"a link")
    run = garbage.collect()
    assert (run.hidden, run.kept["linked"]) == (0, 4)
    assert all(garbage.is_served(name) for name in ("m", "l0", "l1", "l2"))


def test_others_do_not_crowd_out_what_can_be_checked(garbage: Garbage) -> None:
    """A link that can be checked keeps the blob, however many later removals of other pods cannot be checked."""
    garbage.pushed("m", "l")
    others = [garbage.push(f"r{number}", "m", ["l"], number, pod="pod-b") for number in range(REFERRERS_LIMIT)]
    garbage.apply(*others)
    garbage.forget("m")
    garbage.apply(*(garbage.removed(f"r{number}", "m", 1000, pod="pod-b") for number in range(REFERRERS_LIMIT)))
    garbage.connection.execute("UPDATE pods SET kind = 'link' WHERE name = 'pod-a'")
    garbage.store.put(revision_link_key(garbage.repository("r"), garbage.digest("m")), b"a link")
    run = garbage.collect()
    assert (run.hidden, run.kept["linked"]) == (0, 2)
    assert garbage.is_served("m")
    assert garbage.is_served("l")


@pytest.mark.parametrize("error", [UnavailableError("It cannot be read."), ConflictError("It is another one by now.")])
def test_one_that_cannot_be_copied_keeps_no_other(garbage: Garbage, error: Exception) -> None:
    """A blob that cannot be copied stays served, and all others are hidden."""
    garbage.push_and_forget("m", "l0", "l1", "l2")

    store = FaultyStore(garbage.store)
    store.fail("copy_from", key=blob_key(garbage.digest("l1")), error=error)
    copies = not garbage.store.keeps_versions()
    run = garbage.collect(store)
    assert (run.hidden, run.progress["left"]) == ((3, 1) if copies else (4, 0))
    assert garbage.is_served("l1") is copies
    assert not any(garbage.is_served(name) for name in ("m", "l0", "l2"))
    garbage.collect(store)
    assert garbage.ledger("l1")[:2] == (["hide", "undone"] if copies else ["hide", "hidden"])


def test_a_reference_restores(garbage: Garbage) -> None:
    """A hidden blob that is referenced again is live and served after a worker's next round; once it is unreferenced,
    it is hidden and purged again.
    """
    garbage.hidden("m", "l")
    garbage.report("other", "l")
    assert garbage.state("l") is BlobState.HIDDEN
    assert garbage.restore() == 1
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.hide_of("l") is None
    assert garbage.ledger("l") == ["hide", "hidden", "restored"]
    assert garbage.changes("l")[-1] == "restored"
    assert garbage.collect().purged == 1  # the manifest that listed it
    assert garbage.is_served("l")
    garbage.forget("other")
    assert garbage.collect().hidden == 2
    assert garbage.collect().purged == 2
    assert not garbage.is_served("l")
    assert garbage.state("l") is BlobState.PURGED


def test_one_that_cannot_be_restored_keeps_no_other(garbage: Garbage) -> None:
    """An error of any kind at one blob delays the restore of no other."""
    garbage.restores = {"at_once": 1}
    names = [f"l{number}" for number in range(20)]
    garbage.hidden("m", *names)
    garbage.report("other", *names)
    first = min(names, key=lambda name: garbage.hide_of(name).blob)  # type: ignore[union-attr]
    store = FaultyStore(garbage.store)
    store.fail("list_versions", key=blob_key(garbage.digest(first)), error=KeyError("What nobody expects of a store."))
    garbage.restore(store)
    assert [name for name in names if not garbage.is_served(name)] == [first]
    garbage.restore()
    assert garbage.state(first) is BlobState.LIVE


def test_one_that_cannot_be_given_back_keeps_no_other(garbage: Garbage) -> None:
    """If a blob that a run is to restore is refused by the store, the other due blobs are still purged."""
    garbage.pushed("m", "l")
    garbage.pushed("n", "k")
    garbage.forget("m")
    garbage.forget("n")
    garbage.collect()
    garbage.report("m", "l")
    garbage.forget("m")
    store = FaultyStore(garbage.store)
    store.fail("list_versions", key=blob_key(garbage.digest("l")))
    garbage.collect(store)
    assert garbage.state("k") is BlobState.PURGED
    assert garbage.state("l") is BlobState.HIDDEN


def test_pushed_anew_after_the_hide(garbage: Garbage) -> None:
    """A blob that is pushed again after its hide is served and not purged: it needs a new hide first."""
    garbage.hidden("m", "l")
    garbage.upload("l")
    run = garbage.collect()
    assert (run.kept, run.progress["shown_by_others"]) == ({"given back": 1}, 0)
    assert garbage.is_served("l")
    assert garbage.ledger("l")[-1] == "hide" or garbage.state("l") is BlobState.UNREFERENCED
    garbage.report("other", "l")
    garbage.restore()
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.is_served("l")


def test_more_markers_than_one_round_takes_away(garbage: Garbage) -> None:
    """The hide of a blob that other clients deleted again and again ends only once its bytes are served."""
    garbage.hidden("m", "l")
    for _ in range(restore.STATES_LIMIT):
        garbage.store.delete(blob_key(garbage.digest("l")))
    garbage.upload("m")
    garbage.report("m", "l")
    for _ in range(restore.STATES_LIMIT // restore.MARKERS_LIMIT + 2):
        garbage.restore()
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.LIVE
    assert "missing" not in garbage.changes("l")


def test_a_blob_without_bytes(garbage: Garbage) -> None:
    """A blob without bytes is hidden and purged like others, frees nothing, and is live again after a push."""
    garbage.report("m", "l")
    garbage.forget("m")
    assert garbage.collect().hidden == 2
    done = garbage.collect()
    assert (done.purged, done.freed) == (2, 0)
    assert garbage.store.list_versions(blob_key(garbage.digest("l"))) == []
    garbage.pushed("m", "l")
    garbage.restore()
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.is_served("l")


def test_a_dry_run_is_the_plan(garbage: Garbage) -> None:
    """A dry run touches nothing, and its figures are those of the run that follows."""
    garbage.push_and_forget("m", "l")
    planned = garbage.collect(dry=True)
    assert garbage.is_served("l")
    done = garbage.collect()
    assert planned.hidden == done.hidden == 2
    planned = garbage.collect(dry=True)
    done = garbage.collect()
    assert planned.purged == done.purged == 2
    assert planned.freed == done.freed


def is_purged(target: Target) -> bool:
    """Is this a request for bytes that a hide concealed?"""
    return target.version is not None or target.key.startswith(QUARANTINE)


def test_a_store_that_is_found_to_lie_is_not_trusted(garbage: Garbage) -> None:
    """Scenario 20 in a large batch: if the check of a sample finds one delete that did not happen, all are checked."""
    layers = [f"l{number}" for number in range(4 * VERIFIED_SAMPLE)]
    garbage.push_and_forget("m", *layers)
    assert garbage.collect().hidden == len(layers) + 1
    store = FaultyStore(garbage.store)
    store.withhold(lambda targets: [each for each in targets[::3] if is_purged(each)])
    run = garbage.try_collection(store)
    kept = [name for name in ("m", *layers) if garbage.state(name) is BlobState.PURGING]
    assert len(kept) == (len(layers) + 3) // 3
    assert run.purged == len(layers) + 1 - len(kept)
    assert run.freed == sum(len(garbage.body(name)) for name in ("m", *layers) if name not in kept)
    assert garbage.collect().purged == len(kept)


def test_a_store_that_deletes_later_than_it_says(garbage: Garbage) -> None:
    """A blob that the store deletes later than it answers is not served meanwhile, so that no client links it."""
    layers = [f"l{number}" for number in range(4 * VERIFIED_SAMPLE)]
    garbage.hidden("m", *layers)
    store = FaultyStore(garbage.store)

    def late(targets: Sequence[Target]) -> Sequence[Target]:
        # Not among those at which a purge looks.
        return [] if store.in_flight or targets[0].version is None else targets[1:2]

    store.withhold(late)
    garbage.try_collection(store)
    assert bool(store.in_flight) == garbage.store.keeps_versions()
    assert not any(garbage.is_served(name) for name in layers)
    store.land()
    assert not any(garbage.is_served(name) for name in layers)


def test_a_blob_is_needed_again_before_a_delete_is_sent_again(garbage: Garbage) -> None:
    """After a request was sent twice its blobs do not count as hidden: the first copy may still land."""
    garbage.push_and_forget("m", "l")
    garbage.push_and_forget("n", "k")
    store = FaultyStore(garbage.store)
    store.send_again(lambda: garbage.report("other", "k"))
    assert garbage.collect(store).hidden == 0
    assert garbage.state("l") is BlobState.HIDING
    assert garbage.is_served("l")
