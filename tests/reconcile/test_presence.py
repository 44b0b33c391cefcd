"""Blobs become missing only by a check at which something is stored that the table needs."""

from collections.abc import Iterator

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.reconcile.resolve import NotHereError
from coordinator.storage.layout import quarantine_key
from coordinator.storage.port import copy_within
from tests.audit.harness import World
from tests.reconcile.harness import Bucket
from tests.storage.memory import MemoryObjectStore


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def world(database: str, bucket: Bucket) -> Iterator[World]:
    with World(database, bucket, batch=2, lookups_at_once=1) as world:
        yield world


@pytest.mark.parametrize("begun", ["check", "head"])
def test_a_bucket_that_is_empty_for_a_while(world: World, bucket: Bucket, begun: str) -> None:
    """Where all objects vanish without an error between two batches, or between the check of the bucket and that of its
    blobs, no blob becomes missing by it.
    """
    names = ["a", "b", "c", "d"]
    # The newest is checked first, to confirm that this is the bucket.
    world.needed(*names, "here")
    world.lose("a")
    stored = bucket._objects, bucket._versions
    checks = 0

    def vanish(call: str, key: str) -> None:
        nonlocal checks
        checks += call == "check"
        is_check = call == "check" or (call == "head" and key in {world.key("c"), world.key("d")})
        if checks == 2 and is_check and call == begun:
            bucket._objects, bucket._versions = {}, {}

    bucket.interrupt = vanish
    with pytest.raises(NotHereError, match="BALEEN_S3_ROOT"):
        world.presence.resolve([world.digest(name) for name in names])
    bucket._objects, bucket._versions = stored
    assert [world.state(name) is BlobState.MISSING for name in names] == [True, False, False, False]


@pytest.mark.parametrize("versioned", [True, False])
def test_everything_is_hidden(database: str, *, versioned: bool) -> None:
    """Where a lost history has hidden all that the table needs, the hidden bytes show that this is the bucket."""
    with World(database, MemoryObjectStore(versioned=versioned)) as world:
        world.needed("a", "b")
        for name in ("a", "b"):
            if not versioned:
                copy_within(world.store, world.key(name), quarantine_key(world.digest(name), 1))
            world.store.delete(world.key(name))
        world.presence.resolve([world.digest("a"), world.digest("b")])
        assert (world.state("a"), world.state("b")) == (BlobState.MISSING, BlobState.MISSING)
