"""A small history that meets every step of a collection, and what must be true of it at any time and at the end.

Route: `History` stages what a run then finds: blobs that are due to be purged, one that was hidden and is needed again,
some that nothing references any more -> something happens to the run -> `push_again`, as clients do at that moment ->
`assert_nothing_is_lost` -> more runs -> `assert_repaired`.
Not here: what happens to the run (test_crashes.py, test_two_jobs.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from coordinator.domain.lifecycle import BlobState
from coordinator.storage.layout import QUARANTINE, blob_key, parse_quarantine_key, quarantine_key
from tests.gc.calls import run_next
from tests.gc.harness import Garbage

#: A hide that is undone is hidden again by the next run, and purged by the one after.
RUNS = 4


@contextmanager
def histories(garbage: Garbage, delete_bound: timedelta) -> Iterator[Iterator[History]]:
    """One history after another, and one process, with its connections, for all runs to which nothing happens."""
    garbage.delete_bound = delete_bound
    parts = garbage.parts
    with parts() as opened:
        garbage.parts = lambda store=None: nullcontext(opened) if store is None else parts(store)  # type: ignore[method-assign]
        yield (History(garbage, number) for number in itertools.count())


class History:
    """Blobs of its own, by a number: many histories may follow one another in one bucket and one table."""

    def __init__(self, garbage: Garbage, number: int) -> None:
        self._garbage = garbage
        self._number = number
        self.needed = self._named("kept", "shared", "k", "needs", "back")
        self.unneeded = self._named("old", "o1", "o2", "brings", "new", "n1", "n2")
        # Events are applied together: there are hundreds of histories, and each batch takes a transaction.
        garbage.upload(*self._named("kept", "shared", "k", "old", "o1", "o2", "brings", "back"))
        self._report(("kept", "shared", "k"), ("old", "shared", "o1", "o2"), ("brings", "back"))
        self._forget("old", "brings")
        garbage.collect()
        garbage.upload(*self._named("needs", "new", "n1", "n2"))
        # "back" is linked by a request that had seen it before it was hidden.
        self._report(("needs", "back"), ("new", "shared", "n1", "n2"))
        self._forget("new")

    def _named(self, *names: str) -> list[str]:
        return [f"{self._number}.{name}" for name in names]

    def _report(self, *images: Sequence[str]) -> None:
        self._garbage.report_all(*(self._named(*image) for image in images))

    def _forget(self, *names: str) -> None:
        self._garbage.forget(*self._named(*names))

    @property
    def needed_again(self) -> str:
        """The layer that was hidden and is needed again."""
        (name,) = self._named("back")
        return name

    def give_back(self) -> None:
        """Delete the manifest that needed it again."""
        self._forget("needs")

    def push_back(self) -> None:
        """Push a manifest that lists it; upload it only if registries do not have it."""
        if not self._garbage.is_served(self.needed_again):
            self._garbage.upload(self.needed_again)
        self._pushed_manifest("needs-again", [self.needed_again])

    def push_again(self) -> None:
        """Push layers that the run works on; upload only those that registries do not have."""
        layers = self._named("o1", "n1")
        self._garbage.upload(*(name for name in layers if not self._garbage.is_served(name)))
        self._pushed_manifest("later", layers)
        self.needed += [*self._named("later"), *layers]
        self.unneeded = [name for name in self.unneeded if name not in layers]

    def _pushed_manifest(self, name: str, layers: list[str]) -> None:
        (manifest,) = self._named(name)
        self._garbage.upload(manifest)
        self._garbage.report(manifest, *layers)

    def assert_nothing_is_lost(self) -> None:
        """What is needed is served, or can still be restored from its hide."""
        lost = [name for name in self.needed if not self._garbage.is_served(name) and not self._restorable(name)]
        assert lost == []

    def _restorable(self, name: str) -> bool:
        store, digest, hide = self._garbage.store, self._garbage.digest(name), self._garbage.hide_of(name)
        if hide is None:
            return False
        recorded = {each.version for each in hide.versions} if hide.purging_at is not None else set()
        return store.head(quarantine_key(digest, hide.id)) is not None or any(
            each.size is not None and each.version not in recorded for each in store.list_versions(blob_key(digest))
        )

    def fix(self) -> None:
        """Run collections and restorers until nothing is left to do."""
        for _ in range(RUNS):
            run_next(self._garbage)
            self._garbage.restore()
            if not self._garbage.rows("SELECT FROM hides UNION ALL SELECT FROM blobs WHERE state = 1"):
                break

    def assert_repaired(self) -> None:
        """What is needed is served, nothing else has bytes, and no hide is left open."""
        garbage = self._garbage
        assert garbage.rows("SELECT id FROM hides") == []
        assert {name: garbage.state(name) for name in self.needed} == dict.fromkeys(self.needed, BlobState.LIVE)
        assert [name for name in self.needed if not garbage.is_served(name)] == []
        assert {name: garbage.state(name) for name in self.unneeded} == dict.fromkeys(self.unneeded, BlobState.PURGED)
        for name in self.unneeded:
            assert garbage.store.list_versions(blob_key(garbage.digest(name))) == [], name
        assert self._purged_hides().isdisjoint(self._hides_with_copies())

    def _hides_with_copies(self) -> Iterator[int]:
        """Hides that have a copy. One of a hide that was undone may stay for a while."""
        for entry in self._garbage.store.walk(QUARANTINE):
            found = parse_quarantine_key(entry.key)
            yield found[1]

    def _purged_hides(self) -> set[int]:
        return {row[0] for row in self._garbage.rows("SELECT hide_id FROM gc_ledger WHERE decision = 'purged'")}
