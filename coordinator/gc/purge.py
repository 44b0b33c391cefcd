"""Purge hides: verify that their blobs are still concealed, delete exactly what they recorded, count freed bytes.

    versioned    the recorded versions; the marker only after a look-up showed that they are gone
    unversioned  the hide's own copy

No delete names a key that a later hide or upload could own (rule 4). The marker is deleted last, and never on the
store's answer alone: without it a version that is not deleted yet would be served, could be linked, and would be lost
when it is deleted. Markers that stay are leftovers: they are deleted after a check once no delete can land any more
(leftovers/hides.py). The next job repeats an unfinished purge, with the same names.

Rule 17, the check before each delete: a purge relies on no client having been served the blob since t_h. Others than
Baleen can break that, by removing the marker. So each request of deletes first checks every hide in it:

    on top is                                  means                        the hide
    the hide's own marker; nothing at all      concealed since t_h          is purged
    versioned: bytes that it did not record    a client pushed it again     is given back
    unversioned: a live key                    pushed again, or put back    is given back
    anything else                              shown by others              is given back, with an alarm
    not known, the store gives no answer       unknown                      waits for the next run

To give a hide back is to void it in the database (gc/table.py, `void_hides`) and to restore the blob: a later hide
begins with a new t_h. The check is made after the request was signed and before the database permits it
(`Purger._check_all`). The store refuses a signature older than SIGNATURE_S, which bounds the time from check to delete
however long the sender was suspended. In that window a marker may still be removed, and a blob that is then relied on
is lost: see docs/adr/0021.

A hide records a bounded number of versions (hide.py). Versions that it did not record are not deleted: they are found
below the marker afterwards, and the hide is given back, so that a following hide takes the rest.
Freed bytes are those that the hide had listed and that the store says are deleted. That answer is not trusted
(scenario 20): of each batch a sample is verified, all blobs without a plain answer, and every one as soon as one is
found to exist. Verifying each would take longer than the deletes. A false answer that is not noticed is a leak: a copy
is found among leftovers, a version stays below its marker.
Not here: which hides are due (domain/gc.py), the transactions (gc/table.py), restoring (restore.py).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, PodName, format_digest
from coordinator.errors import UnavailableError
from coordinator.gc import table as gc
from coordinator.gc.claims import Claims
from coordinator.gc.hide import CALLS_AT_ONCE, CountedPermit
from coordinator.gc.sizes import PRODUCTION, Sizes
from coordinator.gc.table import DisturbedError, Hide, PurgedHide
from coordinator.jobs.table import Job
from coordinator.storage.layout import blob_key, quarantine_key
from coordinator.storage.port import ObjectStore, ObjectVersion, Target
from coordinator.table.ledger import Decision

log = structlog.get_logger()

#: Deletes of a batch that are verified, of those that the store says are done.
VERIFIED_SAMPLE = 16
#: States of a blob that the check before a delete lists: the one on top is among the first.
TOP_STATES = 10


class Concealment(Enum):
    """All outcomes of the check of a blob just before its delete."""

    CONCEALED = "registries are not served it"
    ANEW = "it was pushed again after it was hidden"
    #: Not given back: the next run checks again.
    UNKNOWN = "the store does not answer for this blob, though it answers for others"
    #: An unversioned bucket does not show which of the two happened.
    SERVED = "it is served again: a client pushed it again, or others than Baleen put it back"
    #: Rule 18: a mount, or a manifest, may have been accepted on the strength of it since the blob was hidden.
    CLAIMED = "a registry's database lists it, so clients may rely on it without asking the object store"
    SHOWN = "others than Baleen removed its delete marker, or replaced it, while it was hidden"


class _Remainder(Enum):
    """What is left of a hide after its deletes."""

    RECORDED = "some versions that its hide recorded"
    OTHERS = "versions that its hide did not record are below the marker: a following hide takes them"


class PurgeResult(NamedTuple):
    purged: Sequence[PurgedHide] = ()
    #: Blobs that were needed meanwhile, or that the store did not delete: a later run takes them.
    left: int = 0
    #: Hides to restore, and why: their blobs are served, or have more versions than the hide recorded.
    given_back: Sequence[tuple[Hide, str]] = ()
    #: How many of those given back others than Baleen had shown: an alarm.
    shown: int = 0
    #: Bytes freed of those given back.
    freed: int = 0


class Purger:
    """Purges batches. Safe to use from several threads."""

    def __init__(self, connections: Connections, store: ObjectStore, claims: Claims, sizes: Sizes = PRODUCTION) -> None:
        self._connections = connections
        self._store = store
        self._claims = claims
        self._sizes = sizes
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="purge")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def purge(self, job: Job, hides: Sequence[Hide], evidence: dict[str, Any]) -> PurgeResult:
        """Purge a batch of hides. `job` is the lease: it must be ours at every step.

        The caller restores what is given back. Raises TakenOverError, StoppedCollectingError, UnavailableError: then
        a later run finishes what was begun.
        """
        with self._connections.use() as connection:
            ours = gc.begin_purge(connection, job, hides, evidence)
        wanted = [each for each in hides if each.id in ours]
        found: dict[Hide, Concealment] = {}
        sent = self._delete(job, [(each, target) for each in wanted for target in targets_of(each)], found)
        # Hides without versions to delete: only the marker is left.
        sent |= {each: True for each in wanted if not targets_of(each)}
        after = self._verify_gone({hide: done for hide, done in sent.items() if hide not in found})
        done = [each for each in after.values() if isinstance(each, PurgedHide)]
        self._delete(
            job, [(each.hide, Target(blob_key(each.hide.digest), each.hide.marker)) for each in done if each.marker]
        )
        partly = [_purged_below_marker(hide) for hide, rest in after.items() if rest is _Remainder.OTHERS]
        with self._connections.use() as connection:
            gc.record_purged(connection, job, done)
            if partly:
                gc.void_hides(connection, job, [_remainder_entry(each) for each in partly])
        void = {hide: check for hide, check in found.items() if check is not Concealment.UNKNOWN}
        return PurgeResult(
            done,
            len(hides) - len(done) - len(void) - len(partly),
            [(hide, check.value) for hide, check in void.items()]
            + [(each.hide, _Remainder.OTHERS.value) for each in partly],
            sum(check is Concealment.SHOWN for check in void.values()),
            sum(each.freed for each in partly),
        )

    def check_concealed(self, hide: Hide) -> Concealment:
        """Check whether a blob is still concealed before its delete (rule 17)."""
        key = blob_key(hide.digest)
        if hide.marker is None:
            return Concealment.CONCEALED if self._store.head(key) is None else Concealment.SERVED
        on_top = next((each for each in self._store.list_versions(key, TOP_STATES) if each.latest), None)
        if on_top is None or on_top.version == hide.marker:
            return Concealment.CONCEALED
        recorded = {each.version for each in hide.versions}
        states = self._store.list_versions(key)
        if not any(each.version in recorded for each in states):
            # An earlier purge of this hide has deleted everything but the marker.
            return Concealment.CONCEALED
        if (
            not on_top.is_marker
            and on_top.version not in recorded
            and any(_is_marker_of(each, hide) for each in states)
        ):
            return Concealment.ANEW
        return Concealment.SHOWN

    def find_claimed(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:
        """Return which of these blobs the database of a registry lists, and its pod (rule 18)."""
        return self._claims.find_claims(blobs)

    def _check_concealed_or_unknown(self, hide: Hide) -> Concealment:
        """As `check_concealed`, but return UNKNOWN if the store refuses this one and answers.

        Raises UnavailableError.
        """
        try:
            return self.check_concealed(hide)
        except UnavailableError:
            self._store.check()
            return Concealment.UNKNOWN

    def find_unconcealed(self, job: Job, hides: Sequence[Hide]) -> dict[Hide, Concealment]:
        """Check hides just before their deletes; return those that must not be deleted, voided if necessary."""
        claimed = self.find_claimed([hide.digest for hide in hides])
        found: dict[Hide, Concealment] = {
            hide: Concealment.CLAIMED if check is Concealment.CONCEALED else check
            for hide, check in zip(hides, self._pool.map(self._check_concealed_or_unknown, hides), strict=True)
            if check is not Concealment.CONCEALED or hide.digest in claimed
        }
        for hide, check in found.items():
            write = log.error if check is Concealment.SHOWN else log.warning
            write("purge was called off", digest=format_digest(hide.digest), hide=hide.id, reason=check.value)
        void = [_void_entry(hide, check) for hide, check in found.items() if check is not Concealment.UNKNOWN]
        if void:
            with self._connections.use() as connection:
                gc.void_hides(connection, job, void)
        return found

    def _delete(
        self, job: Job, targets: Sequence[tuple[Hide, Target]], found: dict[Hide, Concealment] | None = None
    ) -> dict[Hide, bool]:
        """Delete all targets that may still be deleted; return for each hide whether the store says that all are.

        With `found` each request checks first (rule 17), and adds the hides that are not concealed to it.
        """
        done: dict[Hide, bool] = {}
        for first in range(0, len(targets), self._sizes.deletes):
            some = list(targets[first : first + self._sizes.deletes])
            while some:
                hides = list(dict.fromkeys(hide for hide, _ in some))
                numbers = sorted(each.id for each in hides)
                check = _nothing if found is None else partial(self._check_all, job, hides, found)
                permit = CountedPermit(self._connections, job, numbers, BlobState.PURGING, check)
                try:
                    answers = self._store.delete_many([target for _, target in some], permit)
                except DisturbedError:
                    with self._connections.use() as connection:
                        free = gc.read_undisturbed(connection, numbers, BlobState.PURGING)
                    free -= {hide.id for hide in found or ()}
                    done |= {hide: False for hide, _ in some if hide.id not in free}
                    some = [(hide, target) for hide, target in some if hide.id in free]
                    continue
                errors = [answer.error for answer in answers if answer.error is not None]
                if errors:
                    log.warning("the object store did not delete", objects=len(errors), of=len(some), error=errors[0])
                for (hide, _), answer in zip(some, answers, strict=True):
                    done[hide] = done.get(hide, True) and answer.done
                break
        return done

    def _check_all(self, job: Job, hides: Sequence[Hide], found: dict[Hide, Concealment]) -> None:
        """Void hides that are not concealed, and add them to `found`; raises DisturbedError: try the rest again."""
        unconcealed = self.find_unconcealed(job, hides)
        if unconcealed:
            found.update(unconcealed)
            raise DisturbedError(f"{len(unconcealed)} of {len(hides)} blobs may be served again.")

    def _verify_gone(self, sent: Mapping[Hide, bool]) -> dict[Hide, PurgedHide | _Remainder]:
        """Return the result of each hide, of which a sample is verified."""
        # A hide that recorded as many states as it listed may not have recorded all.
        sure = [hide for hide, done in sent.items() if done and len(hide.versions) + 1 < self._sizes.versions_at_least]
        trusted = set(sure) - set(sure[:: -(-len(sure) // VERIFIED_SAMPLE) or 1])
        found = self._find_remainders([hide for hide in sent if hide not in trusted])
        if any(found[hide] is _Remainder.RECORDED for hide in sure if hide not in trusted):
            found |= self._find_remainders([hide for hide in sent if hide in trusted])
        return {hide: found[hide] if hide in found else _purged_below_marker(hide) for hide in sent}

    def _find_remainders(self, hides: Sequence[Hide]) -> dict[Hide, PurgedHide | _Remainder]:
        return dict(zip(hides, self._pool.map(self._find_remainder, hides), strict=True))

    def _find_remainder(self, hide: Hide) -> PurgedHide | _Remainder:
        """Verify that everything that was to be deleted is gone."""
        if hide.marker is None:
            if self._store.head(quarantine_key(hide.digest, hide.id)) is not None:
                return _Remainder.RECORDED
            return _purged_whole(hide)
        versions = self._store.list_versions(blob_key(hide.digest))
        recorded = {each.version for each in hide.versions}
        if any(each.version in recorded for each in versions):
            return _Remainder.RECORDED
        if all(each.is_marker for each in versions) or not any(each.latest and each.is_marker for each in versions):
            return _purged_whole(hide)
        # Keep the marker: without it they would be served, though the blob is purged.
        return _Remainder.OTHERS


def _nothing() -> None:
    """No check."""


def _is_marker_of(state: ObjectVersion, hide: Hide) -> bool:
    return state.version == hide.marker


def _void_entry(hide: Hide, check: Concealment) -> tuple[Hide, Decision, str, dict[str, Any]]:
    return hide, Decision.SHOWN if check is Concealment.SHOWN else Decision.KEPT, check.value, {"marker": hide.marker}


def _remainder_entry(partly: PurgedHide) -> tuple[Hide, Decision, str, dict[str, Any]]:
    return partly.hide, Decision.KEPT, _Remainder.OTHERS.value, {"freed_bytes": partly.freed, "deleted": partly.deletes}


def _purged_whole(hide: Hide) -> PurgedHide:
    """Return what was freed if nothing is left of a hide."""
    if hide.marker is None:
        return PurgedHide(hide, hide.size or 0, 1)
    return PurgedHide(hide, sum(each.size for each in hide.versions), len(hide.versions) + 1, marker=True)


def _purged_below_marker(hide: Hide) -> PurgedHide:
    """Return the same where the marker stays."""
    return (
        _purged_whole(hide)
        if hide.marker is None
        else _purged_whole(hide)._replace(deletes=len(hide.versions), marker=False)
    )


def targets_of(hide: Hide) -> list[Target]:
    """Return what a purge of a hide deletes: what the hide recorded, or its own copy (rule 4)."""
    if hide.marker is None:
        return [Target(quarantine_key(hide.digest, hide.id))]
    return [Target(blob_key(hide.digest), each.version) for each in hide.versions]
