"""Buckets that change while a run is at work: the run checks again and again what it checked at its start."""

from __future__ import annotations

import json
from dataclasses import replace

from coordinator.domain.lifecycle import BlobState
from coordinator.storage.layout import MARK, REPOSITORIES, blob_key, quarantine_prefix
from coordinator.storage.port import UnsafeStoreError
from tests.gc.harness import LANDED, Garbage
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore
from tests.support.store import SEND, FaultyStore


def something_to_purge_and_to_hide(garbage: Garbage) -> None:
    """Make one image due to be purged and one to be hidden; facts are read again each time."""
    garbage.sizes = replace(garbage.sizes, facts_s=0.0)
    garbage.pushed("m")
    garbage.pushed("n")
    garbage.forget("m")
    garbage.collect()
    garbage.forget("n")


def test_versioning_is_suspended_meanwhile(garbage: Garbage) -> None:
    """Once versioning is suspended, so that a delete may destroy bytes, a run deletes nothing more."""
    something_to_purge_and_to_hide(garbage)
    store = FaultyStore(garbage.store)
    suspended = UnsafeStoreError("Versioning is suspended.")
    store.after("delete_many", lambda: store.fail("keeps_versions", error=suspended), nth=1)
    run = garbage.try_collection(store)
    assert (run.state, run.error) == ("failed", "Versioning is suspended.")
    # The marker of what was purged is the end of what was permitted before.
    assert store.count("delete_many") <= 2
    assert garbage.is_served("n")


def test_another_database_claims_the_bucket_meanwhile(garbage: Garbage) -> None:
    """A run ends when another database has claimed the bucket, which may know of other references."""
    something_to_purge_and_to_hide(garbage)
    body = json.dumps({"database": "7d0c6a52-7d0e-4d1b-8a0a-8a7f4d1a7f11", "epoch": 1_000}).encode()
    store = FaultyStore(garbage.store)
    store.after("delete_many", lambda: garbage.store.put(MARK, body), nth=1)
    run = garbage.try_collection(store)
    assert run.state == "failed"
    assert "Another database" in str(run.error)
    assert garbage.is_served("n")


def test_versioning_is_suspended_while_links_are_searched_for(databases: Databases) -> None:
    """Whether versioning is on is checked after the look-up of links, which may take long, and not only before it."""
    bucket = MemoryObjectStore(versioned=True)
    with Garbage(databases.migrated(), bucket) as garbage:
        garbage.push_and_forget("m")
        garbage.links_are("link")
        garbage.sizes = replace(garbage.sizes, facts_s=0.0)
        store = FaultyStore(bucket)
        store.before("head", bucket.suspend, key=REPOSITORIES, nth=1)
        run = garbage.try_collection(store)
        assert (run.state, run.error) == ("failed", "Versioning is suspended.")
        assert garbage.is_served("m")


def test_versioning_is_suspended_while_a_delete_is_sent(databases: Databases) -> None:
    """No hide relies on a marker called `null`: an upload while versioning is off has that name."""
    bucket = MemoryObjectStore(versioned=True)
    with Garbage(databases.migrated(), bucket) as garbage:
        garbage.sizes = replace(garbage.sizes, facts_s=0.0)
        garbage.delete_bound = LANDED
        garbage.push_and_forget("m")
        store = FaultyStore(bucket)
        store.before(SEND, bucket.suspend)
        garbage.try_collection(store)
        assert bucket.list_versions(blob_key(garbage.digest("m")))[0].version == "null"
        garbage.upload("m")
        bucket.suspended = False
        garbage.collect()
        garbage.report("m")
        garbage.restore()
        assert garbage.state("m") is BlobState.LIVE
        assert garbage.is_served("m")


def test_a_copy_that_is_lost_before_the_delete(databases: Databases) -> None:
    """Without versions, a blob whose copy is gone by the time of the delete is not deleted; the others are hidden."""
    bucket = MemoryObjectStore(versioned=False)
    with Garbage(databases.migrated(), bucket) as garbage:
        garbage.push_and_forget("m")
        garbage.push_and_forget("n")
        store = FaultyStore(bucket)

        def lose() -> None:
            (copy,) = (each.key for each in bucket.list(quarantine_prefix(garbage.digest("m"))))
            bucket.delete(copy)

        store.before("delete_many", lose, nth=1)
        assert garbage.try_collection(store).state == "done"
        assert garbage.is_served("m")
        assert not garbage.is_served("n")
