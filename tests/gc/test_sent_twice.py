"""A hide's delete that was sent, and of which nobody knows whether it landed."""

from __future__ import annotations

from coordinator.domain.lifecycle import BlobState
from tests.gc.harness import Garbage
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore
from tests.support.store import FaultyStore


def test_a_blob_is_needed_again_before_a_delete_is_sent_again(databases: Databases) -> None:
    """What was in the first request is not taken for hidden by the answer to another: the first may still land."""
    store = FaultyStore(MemoryObjectStore())
    with Garbage(databases.migrated(), store) as garbage:
        garbage.pushed("m", "l")
        garbage.pushed("n", "k")
        garbage.forget("m")
        garbage.forget("n")
        store.send_again(lambda: garbage.tell("other", "k"))
        assert garbage.collect().hidden == 0
        assert garbage.state("l") is BlobState.HIDING
        assert garbage.seen("l")
