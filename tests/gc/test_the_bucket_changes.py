"""Buckets that become others while a run is at work: what a run was told at its begin it asks again and again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from coordinator.domain.lifecycle import BlobState
from coordinator.gc import collect
from coordinator.storage.layout import MARK, REPOSITORIES, blob_key
from coordinator.storage.port import Deleted, ObjectInfo, ObjectStore, Permit, Target, UnsafeStoreError
from tests.gc.harness import LANDED, Garbage
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore


class Changes:
    """A store to which something happens after its first request for deletes."""

    def __init__(self, store: ObjectStore, then: Callable[[], object]) -> None:
        self._store = store
        self._then: Callable[[], object] | None = then
        self.suspended = False
        #: Requests for deletes after that.
        self.later = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def keeps_versions(self) -> bool:
        if self.suspended:
            raise UnsafeStoreError("Versioning is suspended.")
        return self._store.keeps_versions()

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[Deleted]:
        self.later += self._then is None
        done = self._store.delete_many(targets, permit)
        if self._then is not None:
            self._then()
            self._then = None
        return done


@pytest.fixture(autouse=True)
def _asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "FACTS_S", 0.0)


def something_to_purge_and_to_hide(garbage: Garbage) -> None:
    garbage.pushed("m")
    garbage.pushed("n")
    garbage.forget("m")
    garbage.collect()
    garbage.forget("n")


def test_versioning_is_suspended_meanwhile(garbage: Garbage) -> None:
    """Once versioning is suspended, when a delete may destroy what it is to hide, a run deletes nothing more."""
    something_to_purge_and_to_hide(garbage)
    store: Any = Changes(garbage.store, lambda: setattr(store, "suspended", True))
    run = garbage.tried(store)
    assert (run.state, run.error) == ("failed", "Versioning is suspended.")
    # The marker of what was purged is the end of what was permitted before.
    assert store.later <= 1
    assert garbage.seen("n")


def test_another_database_claims_the_bucket_meanwhile(garbage: Garbage) -> None:
    """A run ends when another database has claimed the bucket: what only that one knows must not be hidden."""
    something_to_purge_and_to_hide(garbage)
    body = json.dumps({"database": "7d0c6a52-7d0e-4d1b-8a0a-8a7f4d1a7f11", "epoch": 1_000}).encode()
    store: Any = Changes(garbage.store, lambda: garbage.store.put(MARK, body))
    run = garbage.tried(store)
    assert run.state == "failed"
    assert run.error is not None
    assert "Another database" in run.error
    assert garbage.seen("n")


class Suspendable(MemoryObjectStore):
    """A bucket with versions. While it is suspended all that is written is `null`, as on S3 and SeaweedFS."""

    suspended = False
    #: Suspended by the first look at a link, or once a delete is permitted.
    at_links = at_permit = False

    def __init__(self) -> None:
        super().__init__(versioned=True)

    def keeps_versions(self) -> bool:
        if self.suspended:
            raise UnsafeStoreError("Versioning is suspended.")
        return True

    def head(self, key: str) -> ObjectInfo | None:
        self.suspended |= self.at_links and key.startswith(REPOSITORIES)
        return super().head(key)

    def put(self, key: str, body: bytes) -> None:
        super().put(key, body)
        self._written(key)

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[Deleted]:
        def permitted() -> None:
            permit()
            self.suspended |= self.at_permit

        answers = super().delete_many(targets, permitted)
        plain = [each for each in targets if each.version is None]
        for each in plain:
            self._written(each.key)
        return [each._replace(marker="null") if self.suspended and each.target in plain else each for each in answers]

    def _written(self, key: str) -> None:
        if self.suspended:
            *before, last = self._versions[key]
            kept = [each for each in before if each.version != "null"]
            self._versions[key] = [*kept, last._replace(version="null")]


def test_versioning_is_suspended_while_links_are_looked_for(databases: Databases) -> None:
    """Whether a delete destroys is asked after the looks for links, which may take long, and not only before them."""
    store = Suspendable()
    with Garbage(databases.migrated(), store) as garbage:
        garbage.pushed("m")
        garbage.forget("m")
        # Believed at once, as where nobody can look at links.
        garbage.links_are("link")
        store.at_links = True
        run = garbage.tried()
        assert (run.state, run.error) == ("failed", "Versioning is suspended.")
        assert garbage.seen("m")


def test_versioning_is_suspended_while_a_delete_is_sent(databases: Databases) -> None:
    """No hide relies on a marker called `null`: an upload before versioning is enabled has that name then."""
    store = Suspendable()
    with Garbage(databases.migrated(), store) as garbage:
        garbage.delete_bound = LANDED
        garbage.pushed("m")
        garbage.forget("m")
        store.at_permit = True
        garbage.tried()
        assert store.versions(blob_key(garbage.digest("m")))[0].version == "null"
        garbage.upload("m")
        store.at_permit = store.suspended = False
        garbage.collect()
        garbage.tell("m")
        garbage.restore()
        assert garbage.state("m") is BlobState.LIVE
        assert garbage.seen("m")
