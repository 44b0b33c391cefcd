"""Delete exactly what hides have recorded, and count what storage gave back.

    versioned    the recorded versions; the marker only where they were seen to be gone
    unversioned  the hide's own copy

No delete names a key that a later hide or upload could own (rule 4). The marker goes last, and never by the store's
word alone: without it what is not deleted yet would be served, could be linked, and would be lost when it is. Markers
that stay are leavings: they go once no delete can land any more, by a look (sweep_hides.py). What is left half done is
done again by the next job, by the same names.
Freed is what was there by the hide's own look and is deleted by the store's word, which is not taken on trust
(scenario 20): of each batch some are looked at, all of which the store did not plainly say so, and every one as soon as
one is found to be there. A look at each would take more than the deletes. A lie that slips through is a leak: a copy is
found among what is left behind, a version stays below its marker.
Not here: which hides are due (domain/gc.py), the transactions (db/gc.py).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import structlog

from coordinator.db import gc
from coordinator.db.connection import Connections
from coordinator.db.gc import DisturbedError, Hide, Purged
from coordinator.db.jobs import Job
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import format_digest
from coordinator.gc.hide import CALLS_AT_ONCE, AskedOnce
from coordinator.storage.layout import blob_key, quarantine_key
from coordinator.storage.port import DELETE_LIMIT, VERSIONS_LIMIT, ObjectStore, Target

log = structlog.get_logger()

#: Of a batch's deletes that the store says are done, so many are looked at.
LOOKS = 16


class PurgeResult(NamedTuple):
    purged: Sequence[Purged] = ()
    #: They were needed meanwhile, or the store did not do it: looked at again later.
    left: int = 0


class Purger:
    """Purges batches. Safe to use from several threads."""

    def __init__(self, connections: Connections, store: ObjectStore) -> None:
        self._connections = connections
        self._store = store
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="purge")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def purge(self, job: Job, hides: Sequence[Hide], evidence: dict[str, Any]) -> PurgeResult:
        """Purge a batch of hides. `job` is the lease: it must be ours at every step.

        Raises TakenOverError, StoppedCollectingError, UnavailableError: then what was begun is ended
        later.
        """
        with self._connections.use() as connection:
            ours = gc.begin_purge(connection, job, hides, evidence)
        wanted = [each for each in hides if each.id in ours]
        sent = self._delete(job, [(each, target) for each in wanted for target in _targets(each)])
        # There were no bytes, and the marker is left.
        sent |= {each: True for each in wanted if not _targets(each)}
        done = self._gone(sent)
        self._delete(
            job, [(each.hide, Target(blob_key(each.hide.digest), each.hide.marker)) for each in done if each.marker]
        )
        with self._connections.use() as connection:
            gc.purged(connection, job, done)
        return PurgeResult(done, len(hides) - len(done))

    def _delete(self, job: Job, targets: Sequence[tuple[Hide, Target]]) -> dict[Hide, bool]:
        """Delete all but what is not to be deleted any more; return of each hide whether all of it is, by its word."""
        said: dict[Hide, bool] = {}
        for first in range(0, len(targets), DELETE_LIMIT):
            some = list(targets[first : first + DELETE_LIMIT])
            while some:
                numbers = sorted({hide.id for hide, _ in some})
                permit = AskedOnce(self._connections, job, numbers, BlobState.PURGING)
                try:
                    answers = self._store.delete_many([target for _, target in some], permit)
                except DisturbedError:
                    with self._connections.use() as connection:
                        free = gc.undisturbed(connection, numbers, BlobState.PURGING)
                    said |= {hide: False for hide, _ in some if hide.id not in free}
                    some = [(hide, target) for hide, target in some if hide.id in free]
                    continue
                errors = [answer.error for answer in answers if answer.error is not None]
                if errors:
                    log.warning("the object store did not delete", objects=len(errors), of=len(some), said=errors[0])
                for (hide, _), answer in zip(some, answers, strict=True):
                    said[hide] = said.get(hide, True) and answer.done
                break
        return said

    def _gone(self, sent: Mapping[Hide, bool]) -> list[Purged]:
        """Return those of which nothing is left, as far as a look at some of them tells."""
        sure = [hide for hide, done in sent.items() if done and len(hide.versions) + 1 < VERSIONS_LIMIT]
        trusted = set(sure) - set(sure[:: -(-len(sure) // LOOKS) or 1])
        found = self._look([hide for hide in sent if hide not in trusted])
        if any(found[hide] is None for hide in sure if hide not in trusted):
            found |= self._look([hide for hide in sent if hide in trusted])
        return [each for each in (found.get(hide, _below_marker(hide)) for hide in sent) if each is not None]

    def _look(self, hides: Sequence[Hide]) -> dict[Hide, Purged | None]:
        return dict(zip(hides, self._pool.map(self._seen, hides), strict=True))

    def _seen(self, hide: Hide) -> Purged | None:
        """Look whether what was to be deleted is gone; None if any of it is there."""
        if hide.marker is None:
            if self._store.head(quarantine_key(hide.digest, hide.id)) is not None:
                return None
            return _purged(hide)
        versions = self._store.versions(blob_key(hide.digest))
        recorded = {each.version for each in hide.versions}
        if any(each.version in recorded for each in versions):
            return None
        if all(each.is_marker for each in versions) or not any(each.latest and each.is_marker for each in versions):
            return _purged(hide)
        # Without the marker they would be served, by a blob that is said to be purged.
        log.warning("bytes that no hide recorded stay below a marker", digest=format_digest(hide.digest))
        return _below_marker(hide)


def _purged(hide: Hide) -> Purged:
    """What storage gave back if nothing is left of a hide."""
    if hide.marker is None:
        return Purged(hide, hide.size or 0, 1)
    return Purged(hide, sum(each.size for each in hide.versions), len(hide.versions) + 1, marker=True)


def _below_marker(hide: Hide) -> Purged:
    """The same where the marker stays."""
    return _purged(hide) if hide.marker is None else _purged(hide)._replace(deletes=len(hide.versions), marker=False)


def _targets(hide: Hide) -> list[Target]:
    if hide.marker is None:
        return [Target(quarantine_key(hide.digest, hide.id))]
    return [Target(blob_key(hide.digest), each.version) for each in hide.versions]
