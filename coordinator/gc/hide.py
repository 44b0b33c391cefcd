"""Hide unreferenced blobs: registries no longer see them, and their bytes stay.

One batch: look up the links of former referrers (rule 5) and the claims of registries (rule 18), write the intents
(rule 13), copy the bytes away if the bucket keeps no versions, sign the deletes, check the copies, get a permit, send
the deletes as one request, list what is below the markers, and only then read t_h (rules 1 and 12). An error after the
intent leaves a hide that the next job undoes.

    bucket       where the bytes are then                      recorded
    versioned    below a delete marker                         the marker, and all versions below it
    unversioned  in quarantine/<digest>/<hide id>, a copy      nothing more: the key contains the hide's id

Not here: which blobs (plan.py), the transactions (gc/table.py), undoing (restore.py).
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.gc import Kept, Why, describe_claim
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, PodName, RepositoryName, format_digest
from coordinator.errors import BaleenError, ConflictError, UnavailableError
from coordinator.gc import table as gc
from coordinator.gc.claims import Claims
from coordinator.gc.sizes import PRODUCTION, Sizes
from coordinator.gc.table import Candidate, DisturbedError, HiddenBlob, Intent, Version
from coordinator.jobs.table import Job
from coordinator.storage.layout import blob_key, layer_link_key, quarantine_key, revision_link_key
from coordinator.storage.port import (
    UNVERSIONED,
    VERSIONS_LIMIT,
    DeleteResult,
    ObjectNotFoundError,
    ObjectStore,
    Target,
    copy_within,
)

log = structlog.get_logger()

CALLS_AT_ONCE = 16
#: Attempts for a batch, each without the hides disturbed since the last one, before the rest is left to be undone.
ATTEMPTS = 5


class KeptBlobs(NamedTuple):
    """Blobs of a batch that are not hidden, against the plan."""

    #: Whose link was found in storage: the digest, and the repository that links it.
    linked: Mapping[Digest, str] = {}
    #: That a registry would confirm without asking the object store, and its pod.
    claimed: Mapping[Digest, PodName] = {}

    @property
    def digests(self) -> set[Digest]:
        return {*self.linked, *self.claimed}


class HideResult(NamedTuple):
    hidden: Sequence[HiddenBlob] = ()
    #: Blobs that were needed again, or for which something failed: their hides are undone later.
    left: int = 0


class CountedPermit:
    """A permit for the store (storage/port.py) that asks the database, and counts how often it was asked."""

    def __init__(
        self,
        connections: Connections,
        job: Job,
        hides: Sequence[int],
        state: BlobState,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` is called before the database is asked, and raises DisturbedError where nothing may be deleted."""
        self._connections = connections
        self._job = job
        self._hides = hides
        self._state = state
        self._check = check
        self.asked = 0

    def was_asked_once(self) -> bool:
        """Whether the delete was sent once: no other one can land after its answer (rule 12)."""
        return self.asked == 1

    def __call__(self) -> None:
        self.asked += 1
        self._check()
        with self._connections.use() as connection:
            gc.permit_deletes(connection, self._job, self._hides, self._state)


class Hider:
    """Hides batches. Safe to use from several threads."""

    def __init__(self, connections: Connections, store: ObjectStore, claims: Claims, sizes: Sizes = PRODUCTION) -> None:
        self._connections = connections
        self._store = store
        self._claims = claims
        self._sizes = sizes
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="hide")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def find_linked(self, wanted: Sequence[Candidate]) -> dict[Digest, str]:
        """Return which of these blobs a former referrer still links, and the repository (rule 5)."""
        with self._connections.use() as connection:
            former = gc.read_former_referrers(connection, [each.blob for each in wanted])
        digests = {each.blob: each.digest for each in wanted}
        # One manifest may have needed many of these.
        asked: dict[str, list[tuple[int, RepositoryName]]] = {}
        for each in former:
            # A registry serves a manifest by either link (reconcile/linked_manifests.py).
            for link_key in (layer_link_key,) if each.direct else (revision_link_key, layer_link_key):
                key = link_key(each.repository, each.digest)
                asked.setdefault(key, []).append((each.blob, each.repository))
        there = self._pool.map(lambda key: self._store.head(key) is not None, asked)
        return {
            digests[blob]: repository
            for needed, found in zip(asked.values(), there, strict=True)
            if found
            for blob, repository in needed
        }

    def find_claimed(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:
        """Return which of these blobs the database of a registry lists, and its pod (rule 18)."""
        return self._claims.find_claims(blobs)

    def update_claims(self, asked: Sequence[Candidate]) -> None:
        """Look up and write which of these a registry claims; raises UnavailableError."""
        claimed = self.find_claimed([each.digest for each in asked])
        with self._connections.use() as connection:
            gc.update_claims(connection, asked, claimed)

    def keep(self, job: Job, wanted: Sequence[Candidate]) -> KeptBlobs:
        """Look up which of these must not be hidden, and write it; raises UnavailableError."""
        linked = self.find_linked(wanted)
        claimed = self.find_claimed([each.digest for each in wanted if each.digest not in linked])
        kept = {
            digest: Kept(Why.LINKED, f"repository {repository} links it, though its events say otherwise")
            for digest, repository in linked.items()
        }
        if wanted:
            with self._connections.use() as connection:
                for digest in gc.update_claims(connection, wanted, claimed):
                    kept[digest] = Kept(Why.CLAIMED, describe_claim(claimed[digest]))
                gc.record_kept(connection, job, kept)
        return KeptBlobs(linked, claimed)

    def hide(self, job: Job, wanted: Sequence[Candidate], evidence: dict[str, Any], *, versioned: bool) -> HideResult:
        """Hide a batch of at most DELETE_LIMIT, right after `keep`. `job` is the lease: it must be ours at every step.

        Raises TakenOverError, StoppedCollectingError, UnavailableError, UnsafeStoreError: then hides that were begun
        are undone later.
        """
        if versioned:
            # Check again: looking up links may have taken long, and while versioning is suspended a delete destroys.
            self._store.keeps_versions()
        with self._connections.use() as connection:
            intents = gc.write_intents(connection, job, wanted, evidence)
        seen = self._delete_versioned(job, intents) if versioned else self._move_to_quarantine(job, intents)
        with self._connections.use() as connection:
            recorded = gc.record_hidden(connection, job, seen)
        hidden = [each for each in seen if each.id in recorded]
        return HideResult(hidden, len(intents) - len(hidden))

    def _delete_versioned(self, job: Job, intents: Sequence[Intent]) -> list[HiddenBlob]:
        markers = self._delete(job, intents, lambda each: blob_key(each.digest))
        room = _VersionBudget(self._sizes)
        found = self._pool.map(lambda intent: self._list_below_marker(intent, markers[intent], room), markers)
        return [each for each in found if each is not None]

    def _list_below_marker(self, intent: Intent, marker: str | None, room: "_VersionBudget") -> HiddenBlob | None:
        """List what the marker conceals. While it is on top, everything else is below it, whenever it came."""
        versions = self._store.list_versions(blob_key(intent.digest), room.limit())
        room.take(len(versions))
        on_top = next((each for each in versions if each.latest), None)
        if on_top is None or on_top.version != marker or marker == UNVERSIONED:
            # The blob was pushed again, or something else deletes here, or versioning is suspended (then the next
            # upload takes the marker's place and its name): the marker cannot be relied on.
            log.warning("hide will be undone: its marker is not on top", digest=format_digest(intent.digest))
            return None
        # Include markers of others: the length of the record then shows whether there may be more versions.
        below = [Version(each.version, each.size or 0) for each in versions if not each.latest]
        return HiddenBlob(intent.id, intent.blob, intent.digest, sum(each.size for each in below), marker, below)

    def _move_to_quarantine(self, job: Job, intents: Sequence[Intent]) -> list[HiddenBlob]:
        sizes = self._copy_all(intents)
        there = {each: size for each, size in sizes.items() if size is not None}
        deleted = list(self._delete(job, list(there), lambda each: blob_key(each.digest), there)) if there else []
        served = set(self._pool.map(self._check_still_served, deleted))
        gone = [each for each in sizes if sizes[each] is None or (each in deleted and each not in served)]
        return [HiddenBlob(each.id, each.blob, each.digest, sizes[each] or 0) for each in gone]

    def _copy_all(self, intents: Sequence[Intent]) -> dict[Intent, int | None]:
        """Copy the bytes of each blob; return the sizes of those that could be copied, None for one without bytes."""
        found = list(zip(intents, self._pool.map(self._copy_or_error, intents), strict=True))
        errors = [size for _, size in found if isinstance(size, BaleenError)]
        if errors:
            if len(errors) == len(intents):
                raise UnavailableError(f"No blob can be copied to quarantine/: {errors[0]}") from errors[0]
            log.warning("blobs cannot be copied", blobs=len(errors), of=len(intents), reason=str(errors[0]))
        return {intent: size for intent, size in found if not isinstance(size, BaleenError)}

    def _copy_or_error(self, intent: Intent) -> int | BaleenError | None:
        """As `_copy_to_quarantine`, but return its error while the store answers: one blob must not stop the others."""
        try:
            return self._copy_to_quarantine(intent)
        except ConflictError as error:
            return error
        except UnavailableError as error:
            self._store.check()
            return error

    def _check_still_served(self, intent: Intent) -> Intent | None:
        """Return the intent if its blob is still served after the delete, whatever the store answered; else None."""
        if self._store.head(blob_key(intent.digest)) is None:
            return None
        # It was pushed again, or not deleted at all: the bytes of its purge would be counted and not be free.
        log.warning("hide will be undone: its blob is served", digest=format_digest(intent.digest))
        return intent

    def _copy_to_quarantine(self, intent: Intent) -> int | None:
        """Copy the bytes to a key that only this hide uses; return their size, None if there are none."""
        key, copy = blob_key(intent.digest), quarantine_key(intent.digest, intent.id)
        try:
            copy_within(self._store, key, copy)
        except ObjectNotFoundError:
            return None
        # The original may be gone by now.
        there = self._store.head(key) or self._store.head(copy)
        if there is None:
            raise UnavailableError(f"There is no copy of {format_digest(intent.digest)}: nothing was deleted.")
        return there.size

    def _find_incomplete(self, copies: Mapping[Intent, int]) -> set[Intent]:
        """Return those of these blobs whose copies do not have their size."""
        heads = self._pool.map(lambda each: self._store.head(quarantine_key(each.digest, each.id)), copies)
        found = {each for each, head in zip(copies, heads, strict=True) if head is None or head.size != copies[each]}
        if found:
            log.warning("copies are incomplete: these blobs are not deleted", blobs=len(found), of=len(copies))
        return found

    def _delete(
        self,
        job: Job,
        intents: Sequence[Intent],
        key: Callable[[Intent], str],
        copies: Mapping[Intent, int] | None = None,
    ) -> dict[Intent, str | None]:
        """Delete in one request; return those that were certainly deleted, and only once, with their markers.

        `copies`: the sizes of the copies, which the permit compares after the request was signed: copying a batch may
        take long, and meanwhile the bucket may have lost some.
        """
        wanted = list(intents)
        incomplete: set[Intent] = set()

        def check_copies() -> None:
            if copies is not None and (found := self._find_incomplete({each: copies[each] for each in wanted})):
                incomplete.update(found)
                raise DisturbedError(f"The copies of {len(found)} of {len(wanted)} blobs are incomplete.")

        for _ in range(ATTEMPTS):
            permit = CountedPermit(self._connections, job, [each.id for each in wanted], BlobState.HIDING, check_copies)
            answers: Sequence[DeleteResult] | None = None
            with suppress(DisturbedError):
                answers = self._store.delete_many([Target(key(each)) for each in wanted], permit)
            if not permit.was_asked_once():
                break
            if answers is None:
                with self._connections.use() as connection:
                    free = gc.read_undisturbed(connection, [each.id for each in wanted], BlobState.HIDING)
                wanted = [each for each in wanted if each.id in free and each not in incomplete]
                if not wanted:
                    break
                continue
            errors = [answer.error for answer in answers if answer.error is not None]
            if errors:
                log.warning("the object store did not delete", blobs=len(errors), of=len(wanted), error=errors[0])
            return {each: answer.marker for each, answer in zip(wanted, answers, strict=True) if answer.error is None}
        return {}


class _VersionBudget:
    """Counts how many versions the hides of a batch may still record. Safe to use from several threads."""

    def __init__(self, sizes: Sizes) -> None:
        self._lock = threading.Lock()
        self._left = sizes.batch_versions
        self._at_least = sizes.versions_at_least

    def limit(self) -> int:
        """Return how many states the next hide may list."""
        with self._lock:
            return max(self._at_least, min(VERSIONS_LIMIT, self._left))

    def take(self, versions: int) -> None:
        with self._lock:
            self._left -= versions
