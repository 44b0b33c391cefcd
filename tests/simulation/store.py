"""The shared bucket as registries and Baleen see it: every call is a place where others go on, and may fail.

A delete of `delete_many` is a request that is signed, permitted, sent and answered. It may land long after its sender
has given up, or twice, but never later than SIGNATURE after it was signed: then the store refuses it.
Whoever deletes is watched: only what an open hide owns may be named (rule 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from coordinator.errors import UnavailableError
from coordinator.storage.port import (
    VERSIONS_LIMIT,
    DeleteResult,
    ObjectInfo,
    ObjectVersion,
    OpenObject,
    Permit,
    Target,
    UnfinishedUpload,
)
from tests.simulation.scheduler import SECOND, Scheduler
from tests.storage.memory import MemoryObjectStore

#: How long after it was signed a delete may land.
SIGNATURE = 580 * SECOND


class Bucket(MemoryObjectStore):
    """What is stored. It can be taken as it is, and put back."""

    def __init__(self, *, versioned: bool) -> None:
        self.scheduler = Scheduler(0)
        super().__init__(versioned=versioned, now=self._time)
        #: Grows with every change.
        self.changes = 0

    def _time(self) -> datetime:
        return self.scheduler.time()

    @property
    def versioned(self) -> bool:
        return self._versioned

    def stored(self) -> list[str]:
        return list(self._objects)

    def has(self, key: str) -> bool:
        return key in self._objects

    def put(self, key: str, body: bytes) -> None:
        self.changes += 1
        super().put(key, body)

    def delete(self, key: str) -> None:
        self.changes += 1
        super().delete(key)

    def _delete(self, target: Target) -> DeleteResult:
        self.changes += 1
        return super()._delete(target)

    def remove_marker(self, key: str, version: str) -> bool:
        self.changes += 1
        return super().remove_marker(key, version)

    def save(self) -> tuple[Any, ...]:
        return dict(self._objects), {key: list(kept) for key, kept in self._versions.items()}, next(self._numbers)

    def roll_back(self, saved: tuple[Any, ...]) -> None:
        """Go on with an older replica, whose versions get new names."""
        objects, versions, _ = saved
        self._objects, self._versions = dict(objects), {key: list(kept) for key, kept in versions.items()}
        self.changes += 1

    def load(self, saved: tuple[Any, ...], scheduler: Scheduler) -> None:
        self.roll_back(saved)
        self._numbers = itertools.count(saved[2])
        self.scheduler, self.changes = scheduler, 0


class Flight(NamedTuple):
    """A delete that was sent, and of which nobody knows whether it has landed."""

    targets: Sequence[Target]
    #: The store refuses it later than that.
    until: int
    sender: str


class Store:
    """What Baleen has of the bucket."""

    def __init__(self, bucket: Bucket, scheduler: Scheduler, name: Callable[[str], str]) -> None:
        self._bucket = bucket
        self._scheduler = scheduler
        self._name = name
        #: Probabilities: that a call fails, that a delete is slow, that it is sent twice.
        self.errors = self.slow = self.twice = 0.0
        self.flights: list[Flight] = []
        #: Deletes that are signed and not answered.
        self.deleting = 0
        #: Looks at what is to be deleted, after it was permitted.
        self.watch: Callable[[Sequence[Target]], None] = lambda targets: None

    def _call(self, what: str, key: str = "") -> None:
        scheduler = self._scheduler
        scheduler.pause("store", f"{what} {self._name(key)}" if key else what)
        if self.errors and scheduler.roll(self.errors) and scheduler.current is not None:
            scheduler.note_current("and the store fails")
            raise UnavailableError("The object store does not answer: try again.")

    def get(self, key: str, limit: int | None = None) -> bytes:
        self._call("reads", key)
        return self._bucket.get(key, limit)

    def head(self, key: str) -> ObjectInfo | None:
        self._call("looks for", key)
        found = self._bucket.head(key)
        self._scheduler.note_current("finds it" if found else "finds nothing")
        return found

    @contextmanager
    def open(self, key: str) -> Iterator[OpenObject]:
        self._call("opens", key)
        with self._bucket.open(key) as opened:
            yield opened

    def list(self, prefix: str, start_after: str | None = None, limit: int = 1000) -> list[ObjectInfo]:
        self._call("lists", prefix)
        return self._bucket.list(prefix, start_after, limit)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        self._call("lists all of", prefix)
        return self._bucket.walk(prefix)

    def list_folders(self, prefix: str) -> Iterator[str]:
        self._call("lists folders of", prefix)
        return self._bucket.list_folders(prefix)

    def check(self) -> None:
        pass

    def keeps_versions(self) -> bool:
        return self._bucket.keeps_versions()

    def put(self, key: str, body: bytes) -> None:
        self._call("puts", key)
        self._bucket.put(key, body)

    def put_chunks(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        self._call("puts", key)
        self._bucket.put_chunks(key, chunks, size)

    def copy_from(self, source: Any, source_key: str, key: str, *, etag: str | None = None) -> bool:
        self._call(f"copies {self._name(source_key)} to", key)
        return self._bucket.copy_from(source._bucket, source_key, key, etag=etag)

    def list_versions(self, key: str, limit: int = VERSIONS_LIMIT) -> Sequence[ObjectVersion]:
        self._call("looks at the versions of", key)
        return self._bucket.list_versions(key, limit)

    @contextmanager
    def open_version(self, key: str, version: str) -> Iterator[OpenObject]:
        self._call("opens a version of", key)
        with self._bucket.open_version(key, version) as opened:
            yield opened

    def remove_marker(self, key: str, version: str) -> bool:
        self._call(f"removes marker {version} of", key)
        return self._bucket.remove_marker(key, version)

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        return self._bucket.list_unfinished(prefix)

    def delete(self, key: str) -> None:
        self._call("deletes", key)
        self._bucket.delete(key)

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
        if not targets:
            return []
        self.deleting += 1
        try:
            return self._delete_many(targets, permit)
        finally:
            self.deleting -= 1

    def _delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
        scheduler = self._scheduler
        named = ", ".join(
            self._name(each.key) + ("" if each.version is None else f" version {each.version}") for each in targets
        )
        for attempt in range(2):
            scheduler.pause("store", f"signs the delete of {named}")
            until = scheduler.now + SIGNATURE
            permit()
            self.watch(targets)
            scheduler.pause("store", f"sends the delete of {named}")
            flight = Flight(targets, until, scheduler.current.name if scheduler.current else "")
            if not attempt and scheduler.roll(self.twice):
                self.flights.append(flight)
                scheduler.note_current("hears nothing, and sends it again")
                continue
            if scheduler.roll(self.slow):
                self.flights.append(flight)
                scheduler.note_current("hears nothing")
                raise UnavailableError("The object store does not answer: try again.")
            if scheduler.now > until:
                scheduler.note_current("is refused: it was signed too long ago")
                raise UnavailableError("The object store refuses it: RequestTimeTooSkewed.")
            done = self.land(flight)
            scheduler.pause("store", f"hears that {named} is deleted")
            return done
        raise AssertionError("A delete is sent at most twice.")

    def land(self, flight: Flight) -> Sequence[DeleteResult]:
        return [self._bucket._delete(each) for each in flight.targets]
