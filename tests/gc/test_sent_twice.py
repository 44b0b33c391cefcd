"""A hide's delete that was sent, and of which nobody knows whether it landed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coordinator.domain.lifecycle import BlobState
from coordinator.storage.port import Deleted, Permit, Target
from tests.gc.harness import Garbage
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore


class SendsAgain(MemoryObjectStore):
    """The first request is sent, hears nothing, and is about to be sent again."""

    before_again: Callable[[], None] | None = None

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[Deleted]:
        if self.before_again is not None:
            happen, self.before_again = self.before_again, None
            permit()
            happen()
        return super().delete_many(targets, permit)


def test_a_blob_is_needed_again_before_a_delete_is_sent_again(databases: Databases) -> None:
    """What was in the first request is not taken for hidden by the answer to another: the first may still land."""
    store = SendsAgain()
    with Garbage(databases.migrated(), store) as garbage:
        garbage.pushed("m", "l")
        garbage.pushed("n", "k")
        garbage.forget("m")
        garbage.forget("n")
        store.before_again = lambda: garbage.tell("other", "k")
        assert garbage.collect().hidden == 0
        assert garbage.state("l") is BlobState.HIDING
        assert garbage.seen("l")
