"""Read the bytes of stored blobs and compare them with their digests, at a set rate.

Route: `baleen audit --verify-content` -> `Scrub.run`: read stored blobs by digest, or a random sample, several at a
time and in chunks -> read a blob with other bytes again before it is reported, with the versions that the store keeps
of it and which of them has the right bytes.
Pods may write below `blobs/`, so bytes can change after a push; a disk may change them too. Nothing is repaired here,
and no state changes: registries serve what is stored, and clients notice.
A store that does not answer ends the run with UnavailableError, which says how to continue. A blob that cannot be read
while others can is reported as unreadable.
"""

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, NamedTuple

from coordinator.audit.audit import FoundObjects, OnProgress, Progress
from coordinator.db.connection import Connections
from coordinator.domain.names import DIGEST_BYTES, Digest, format_digest
from coordinator.errors import BaleenError, UnavailableError
from coordinator.storage.layout import BLOBS, blob_key, parse_blob_key
from coordinator.storage.port import ObjectInfo, ObjectNotFoundError, ObjectStore, ObjectVersion, OpenObject
from coordinator.table import lifecycle

READS_AT_ONCE = 4
#: Bytes per second below which blobs are read one by one: a stream that waits for its turn would time out at the store.
PARALLEL_FROM_RATE = 16e6
#: So many unreadable blobs in a row mean that the store fails, not single blobs.
UNREADABLE_IN_A_ROW = 5
#: Versions of a blob with other bytes that are reported, and read to find one with the right bytes.
VERSIONS = 10
#: The burst that a rate permits, in seconds.
BURST_S = 1.0
#: Random look-ups in a row that may find no new blob for a sample, before all blobs are listed.
SPARE_TRIES = 100


class StoppedError(BaleenError):
    """The run was stopped."""


class Rate:
    """Limits the bytes per second of all threads together; None means no limit."""

    def __init__(
        self, per_second: float | None, stop: threading.Event, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._stop = stop
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._free_at = monotonic()

    def wait_for(self, count: int) -> None:
        """Wait until `count` bytes may be read; raises StoppedError."""
        pause = 0.0
        if self._per_second is not None:
            with self._lock:
                now = self._monotonic()
                self._free_at = max(self._free_at, now - BURST_S) + count / self._per_second
                pause = max(0.0, self._free_at - now)
        if self._stop.wait(pause):
            raise StoppedError("The verification was stopped.")


class ReadResult(Enum):
    WHOLE = "whole"
    OTHER_BYTES = "other bytes"
    UNREADABLE = "unreadable"
    #: Deleted meanwhile.
    GONE = "gone"


class ReadOutcome(NamedTuple):
    """The result of reading one blob."""

    result: ReadResult
    #: The digest of the stored bytes, or why they cannot be read.
    detail: str = ""


class ScrubReport:
    """What a verification has found so far."""

    def __init__(self) -> None:
        self.blobs = 0
        self.bytes = 0
        self.other_bytes = FoundObjects()
        self.unreadable = FoundObjects()
        #: The first digest that is not yet verified; None after the last.
        self.resume_from: Digest | None = None

    @property
    def is_healthy(self) -> bool:
        return not (self.other_bytes.count or self.unreadable.count)


class Scrub:
    """A verification of contents. Used once."""

    def __init__(self, connections: Connections, store: ObjectStore, *, rate: float | None = None) -> None:
        self._connections = connections
        self._store = store
        self._stop = threading.Event()
        self._rate = Rate(rate, self._stop)
        self._reads_at_once = READS_AT_ONCE if rate is None or rate >= PARALLEL_FROM_RATE else 1
        self._content = ScrubReport()
        #: The unreadable blobs in a row up to now.
        self._unreadable: list[Digest] = []

    @property
    def content(self) -> ScrubReport:
        """What was found so far; complete only once `run` has returned."""
        return self._content

    def run(
        self, start: Digest | None = None, *, sample: int | None = None, on_progress: OnProgress = lambda progress: None
    ) -> ScrubReport:
        """Verify all blobs from a digest on, or a sample. Raises UnavailableError, which says how to continue."""
        self._store.check()
        waiting: deque[tuple[ObjectInfo, Digest, Future[ReadOutcome]]] = deque()
        blobs = self._list_all(start) if sample is None else iter(self._list_sample(sample))
        with ThreadPoolExecutor(self._reads_at_once, thread_name_prefix="scrub") as pool:
            try:
                while True:
                    while len(waiting) < 2 * self._reads_at_once and (found := next(blobs, None)) is not None:
                        digest = parse_blob_key(found.key)
                        if digest is not None:
                            waiting.append((found, digest, pool.submit(self._read_blob, digest)))
                    if not waiting:
                        self._content.resume_from = None
                        return self._content
                    entry, digest, reading = waiting[0]
                    self._content.resume_from = digest
                    self._report_read(entry, digest, reading.result())
                    waiting.popleft()
                    on_progress(self._make_progress(digest, sample))
            except UnavailableError as error:
                at = self._content.resume_from or start
                where = "" if at is None or sample is not None else f" To continue: --from {format_digest(at)}"
                raise UnavailableError(f"{error}{where}") from error
            finally:
                self._stop.set()
                for _, _, reading in waiting:
                    reading.cancel()

    def _make_progress(self, digest: Digest, sample: int | None) -> Progress:
        content = self._content
        done = content.blobs / sample if sample else int.from_bytes(digest[:4], "big") / 2**32
        return Progress("reading", min(1.0, done), content.blobs, content.blobs, content.bytes)

    # Which blobs

    def _list_all(self, start: Digest | None) -> Iterator[ObjectInfo]:
        after = None if start is None else _key_before(start)
        while page := self._store.list(BLOBS, after):
            yield from page
            after = page[-1].key

    def _list_sample(self, count: int) -> Sequence[ObjectInfo]:
        """Choose random blobs: those that follow random digests."""
        rnd = random.SystemRandom()
        found: dict[str, ObjectInfo] = {}
        in_vain = 0
        while len(found) < count and in_vain < SPARE_TRIES:
            place = blob_key(Digest(rnd.randbytes(DIGEST_BYTES)))
            before = len(found)
            for entry in self._store.list(BLOBS, place, 1) or self._store.list(BLOBS, None, 1):
                found[entry.key] = entry
            in_vain = 0 if len(found) > before else in_vain + 1
        if len(found) < count:
            # There are few others, which random look-ups would hardly find.
            for entry in self._list_all(None):
                found[entry.key] = entry
                if len(found) >= count:
                    break
        return [found[key] for key in sorted(found)]

    # One blob

    def _read_blob(self, digest: Digest) -> ReadOutcome:
        key = blob_key(digest)

        def now() -> AbstractContextManager[OpenObject]:
            return self._store.open(key)

        try:
            found = self._hash_with_retry(now)
            # Read twice: the blob may have been replaced during the first read.
            if found != digest and (found := self._hash_with_retry(now)) != digest:
                return ReadOutcome(ReadResult.OTHER_BYTES, format_digest(found))
        except ObjectNotFoundError:
            return ReadOutcome(ReadResult.GONE)
        except _UnreadableError as error:
            return ReadOutcome(ReadResult.UNREADABLE, str(error))
        return ReadOutcome(ReadResult.WHOLE)

    def _hash_with_retry(self, opening: Callable[[], AbstractContextManager[OpenObject]]) -> Digest:
        """Hash, in two attempts; raises _UnreadableError if both fail while the store answers."""
        try:
            return self._hash(opening)
        except UnavailableError:
            self._store.check()
        try:
            return self._hash(opening)
        except UnavailableError as error:
            self._store.check()
            raise _UnreadableError(str(error)) from error

    def _hash(self, opening: Callable[[], AbstractContextManager[OpenObject]]) -> Digest:
        hashed = hashlib.sha256()
        with opening() as opened:
            for chunk in opened.chunks:
                self._rate.wait_for(len(chunk))
                hashed.update(chunk)
        return Digest(hashed.digest())

    # Reporting

    def _report_read(self, entry: ObjectInfo, digest: Digest, read: ReadOutcome) -> None:
        content = self._content
        if read.result is ReadResult.GONE:
            return
        content.blobs += 1
        content.bytes += entry.size
        self._unreadable = [*self._unreadable, digest] if read.result is ReadResult.UNREADABLE else []
        if len(self._unreadable) >= UNREADABLE_IN_A_ROW:
            content.resume_from = self._unreadable[0]
            raise UnavailableError(
                f"The object store answers, but {UNREADABLE_IN_A_ROW} blobs in a row could not be read."
            )
        if read.result is ReadResult.UNREADABLE:
            content.unreadable.add(entry.size, **self._read_known(digest), reason=read.detail)
        elif read.result is ReadResult.OTHER_BYTES:
            versions = [each for each in self._store.list_versions(entry.key) if not each.is_marker][:VERSIONS]
            content.other_bytes.add(
                entry.size,
                **self._read_known(digest),
                found=read.detail,
                whole_version=self._find_whole_version(digest, versions),
                versions=[each._asdict() for each in versions],
            )

    def _read_known(self, digest: Digest) -> dict[str, Any]:
        with self._connections.use() as connection:
            rows = lifecycle.read_blobs(connection, [digest])
        return {
            "digest": format_digest(digest),
            "reference_count": rows[0].reference_count if rows else 0,
            "link_count": rows[0].link_count if rows else 0,
        }

    def _find_whole_version(self, digest: Digest, versions: Sequence[ObjectVersion]) -> str | None:
        """Return the newest old version whose bytes have the digest; None if there is none."""
        for each in versions:
            if not each.latest and self._is_whole_version(digest, each.version):
                return each.version
        return None

    def _is_whole_version(self, digest: Digest, version: str) -> bool:
        try:
            return self._hash_with_retry(lambda: self._store.open_version(blob_key(digest), version)) == digest
        except (ObjectNotFoundError, _UnreadableError):
            return False


class _UnreadableError(BaleenError):
    """One object cannot be read, while the store answers."""


def _key_before(digest: Digest) -> str | None:
    """Return the greatest blob key below this one's; None if there is none."""
    number = int.from_bytes(digest, "big")
    return blob_key(Digest((number - 1).to_bytes(DIGEST_BYTES, "big"))) if number else None
