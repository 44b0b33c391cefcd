"""Compare the table with storage: find missing blobs, orphans, wrong sizes and unfinished uploads.

Route: `baleen audit` -> `Audit.run`: merge the table with the listing of `blobs/` (domain/inventory.py); verify each
difference, many at a time, before it is reported; then look for unfinished uploads.
Blobs that are missing, or found again, are written to the table (reconcile/presence.py). Nothing else is changed,
except by `repair`, which removes delete markers from needed blobs, copies their bytes back from quarantine, and
verifies a claim (gc/mark_table.py); and by `take_up`, which adds orphans to the table as unreferenced blobs: garbage
collection then treats them like any other, with all its graces.

Some registries confirm a blob because their own database lists it (gc/claims.py): one that is not stored would be
accepted in a push, so it is looked for, too.

- An orphan is counted as listed, if the table did not know it then or later, and if it is older than the event of a
  push may take to come: a younger one is `recent`.
- An incomplete listing, or a store that does not answer, ends the audit with UnavailableError. A blob that a listing
  lacks is only suspected: it is missing if two look-ups do not find it either (scenarios 16 and 19).
Not here: reading the bytes (scrub.py), what the report looks like (commands/audit.py).
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from coordinator.audit import inventory, table
from coordinator.db.connection import Connections
from coordinator.domain.inventory import Discrepancy, Pair, StoredBlob, TableBlob, find_differing, find_discrepancies
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, PodName, format_digest
from coordinator.domain.perimeter import block_reasons
from coordinator.errors import BaleenError, ConflictError
from coordinator.gc import mark_table as mark
from coordinator.gc.claims import PodClaims
from coordinator.leftovers import unfinished_uploads as uploads
from coordinator.perimeter import root_listing
from coordinator.reconcile.presence import Presence
from coordinator.storage.layout import blob_key, quarantine_prefix
from coordinator.storage.port import (
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStore,
    ObjectVersion,
    copy_within,
    put_on_top,
)
from coordinator.table import lifecycle
from coordinator.table.lifecycle import KnownBlob

LOOKUPS_AT_ONCE = 16
#: Examples of each kind in a report; all are counted.
EXAMPLES = 100
#: Markers of one blob that are removed.
MARKERS_LIMIT = 10
#: States of a blob that are listed where only the newest counts.
TOP_STATES = 10
#: Quarantined copies of one blob that are tried.
COPIES_LIMIT = 10
#: States of blobs without a need, which are stored or not.
_NOT_COMPARED = frozenset({BlobState.UNREFERENCED, BlobState.PURGED})
#: Blobs of the table between two calls of `OnProgress`.
PROGRESS_EVERY = 10_000


class Progress(NamedTuple):
    """The progress of an audit."""

    doing: str
    #: From 0 to 1, by digest; None where it is not known.
    done: float | None = None
    blobs: int = 0
    objects: int = 0
    bytes: int = 0


OnProgress = Callable[[Progress], None]


#: Gives what each registry claims.
ReadClaims = Callable[[], Iterator[PodClaims]]


class ClaimsUnreadError(BaleenError):
    """A registry's database cannot be read."""


class Ages(NamedTuple):
    """Ages from which an object counts as left over: a younger one may be part of a push under way."""

    orphans: timedelta
    uploads: timedelta


class FoundObjects:
    """Findings of one kind: their count, their bytes, and examples. Safe to use from several threads."""

    def __init__(self, limit: int = EXAMPLES) -> None:
        """`limit` bounds the examples."""
        self._lock = threading.Lock()
        self._limit = limit
        self.count = 0
        self.bytes = 0
        self.examples: list[dict[str, Any]] = []

    def add(self, size: int, /, **example: Any) -> None:
        with self._lock:
            self.count += 1
            self.bytes += max(0, size)
            if len(self.examples) < self._limit:
                self.examples.append(example)

    def as_dict(self) -> dict[str, Any]:
        return {"count": self.count, "bytes": self.bytes, "examples": self.examples}


class Report:
    """What an audit has found so far. docs/AUDIT.md says what to do about each kind."""

    def __init__(self, examples: int = EXAMPLES) -> None:
        #: Blobs of the table, and those that are referenced.
        self.blobs = 0
        self.needed = 0
        #: Objects and bytes below `blobs/`.
        self.objects = 0
        self.bytes = 0
        #: Referenced, and not stored; `masked` are those of them that a delete marker hides.
        self.missing = FoundObjects(examples)
        self.masked = FoundObjects(examples)
        #: Were missing, and are stored; `repaired` are those of them that this audit repaired.
        self.found_again = FoundObjects(examples)
        self.repaired = FoundObjects(examples)
        #: Served by the table, unreferenced, and not stored: a later reference makes the restorer look for them.
        self.unserved = FoundObjects(examples)
        self.wrong_size = FoundObjects(examples)
        self.orphans = FoundObjects(examples)
        self.recent = FoundObjects(examples)
        #: Not stored, and listed by a registry's own database. `unread_claims` says why a pod's could not be read.
        self.claimed = FoundObjects(examples)
        self.unread_claims: dict[PodName, str] = {}
        #: Orphans that were added to the table for garbage collection.
        self.taken_up = 0
        self.odd_keys = FoundObjects(examples)
        self.abandoned_uploads = FoundObjects(examples)
        self.unfinished_uploads = FoundObjects(examples)
        #: Repositories, or folders of repositories, that no pod owns. They block garbage collection.
        self.unowned = FoundObjects(examples)
        #: The claim that is not verified, and why; None if there is none.
        self.claim: mark.PendingClaim | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether every blob that is referenced, or that a registry would confirm, is stored with its known size."""
        return not (self.missing.count or self.wrong_size.count or self.claimed.count or self.unread_claims)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much an audit has in memory; the defaults are those of production."""

    #: Digests that are verified together.
    batch: int = 256
    examples: int = EXAMPLES
    #: Stored blobs that are packed together, and how many of these blocks of one folder may wait.
    block: int = inventory.BLOCK
    blocks_waiting: int = inventory.BLOCKS_WAITING


PRODUCTION = Sizes()


class Audit:
    """An audit. Used once. `run` takes as long as a listing of the whole store."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        presence: Presence,
        ages: Ages,
        read_claims: ReadClaims = lambda: iter(()),
        *,
        repair: bool = False,
        take_up: bool = False,
        sizes: Sizes = PRODUCTION,
    ) -> None:
        self._connections = connections
        self._store = store
        self._presence = presence
        self._ages = ages
        self._read_claims = read_claims
        self._repair = repair
        self._take_up = take_up
        self._sizes = sizes
        self._report = Report(sizes.examples)

    def run(self, on_progress: OnProgress = lambda progress: None) -> Report:
        """Compare everything; raises UnavailableError, and ConflictError if orphans may not be taken up."""
        self._store.check()
        with self._connections.use() as connection:
            instance = mark.read_instance(connection)
        listing = root_listing.update_listing(self._connections, self._store)
        self._began_at = listing.began_at
        for name in listing.unowned:
            self._report.unowned.add(0, repository=name)
        if self._take_up and (holds := block_reasons(listing)):
            raise ConflictError(f"{holds[0]}. It may link blobs that the table does not know: no orphan is taken up.")
        with ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="audit") as self._pool:
            self._compare(on_progress)
            self._compare_claims(on_progress)
            on_progress(Progress("looking for unfinished uploads"))
            self._find_uploads()
        with self._connections.use() as connection:
            if self._repair:
                self._report.claim = mark.end_verified_claim(connection, self._began_at, instance)
            else:
                self._report.claim = mark.read_pending_claim(connection, self._began_at)
        return self._report

    def _compare(self, on_progress: OnProgress) -> None:
        on_progress(Progress("sorting the table's blobs"))
        with (
            self._connections.use() as connection,
            table.read_blobs(connection) as rows,
            inventory.list_stored_blobs(
                self._store, self._report_odd_key, self._sizes.block, self._sizes.blocks_waiting
            ) as objects,
        ):
            pairs = find_differing(self._count_rows(rows, on_progress), self._count_objects(objects))
            while batch := list(islice(pairs, self._sizes.batch)):
                self._check_again(batch)

    def _count_rows(self, rows: Iterable[TableBlob], on_progress: OnProgress) -> Iterator[TableBlob]:
        report = self._report
        for row in rows:
            if report.blobs % PROGRESS_EVERY == 0:
                done = int.from_bytes(row.digest[:4], "big") / 2**32
                on_progress(Progress("comparing", done, report.blobs, report.objects, report.bytes))
            report.blobs += 1
            report.needed += row.referenced
            yield row

    def _count_objects(self, objects: Iterable[StoredBlob]) -> Iterator[StoredBlob]:
        report = self._report
        for item in objects:
            report.objects += 1
            report.bytes += item.size
            yield item

    def _report_odd_key(self, entry: ObjectInfo) -> None:
        self._report.odd_keys.add(entry.size, key=entry.key, bytes=entry.size)

    # Verifying differences

    def _check_again(self, pairs: Sequence[Pair]) -> None:
        """Read the table again, then ask storage about differences that remain; report what is certainly wrong."""
        with self._connections.use() as connection:
            known = {blob.digest: blob for blob in lifecycle.read_blobs(connection, [pair.digest for pair in pairs])}
        orphans: list[StoredBlob] = []
        differing_blobs: list[KnownBlob] = []
        unserved: list[KnownBlob] = []
        for pair in pairs:
            blob = known.get(pair.digest)
            found = find_discrepancies(_as_table_blob(blob), pair.stored)
            if Discrepancy.ORPHAN in found:
                assert pair.stored is not None
                orphans.append(pair.stored)
            elif blob is not None and Discrepancy.UNSERVED in found:
                unserved.append(blob)
            elif blob is not None and found:
                differing_blobs.append(blob)
        old = [orphan for orphan in orphans if self._report_orphan(orphan)]
        if self._take_up and old:
            with self._connections.use() as connection:
                self._report.taken_up += table.insert_orphans(connection, old)
        if differing_blobs:
            self._resolve(differing_blobs)
        for move in self._presence.mark_unserved_purged([blob.digest for blob in unserved]) if self._repair else ():
            self._report.unserved.add(move.blob.size, digest=format_digest(move.blob.digest))

    def _resolve(self, differing_blobs: Sequence[KnownBlob]) -> None:
        """Look for these blobs in storage; write and report those that are missing or found again."""
        wanted = [blob.digest for blob in differing_blobs]
        heads = self._presence.head_blobs(wanted)
        found = {
            blob.digest: find_discrepancies(_as_table_blob(blob), _as_stored_blob(blob.digest, heads[blob.digest]))
            for blob in differing_blobs
        }
        self._presence.resolve(
            blob.digest
            for blob in differing_blobs
            if Discrepancy.FOUND in found[blob.digest]
            or (Discrepancy.MISSING in found[blob.digest] and blob.state is not BlobState.MISSING)
        )
        with self._connections.use() as connection:
            after = {blob.digest: blob for blob in lifecycle.read_blobs(connection, wanted)}
        missing = []
        for before in differing_blobs:
            blob, head = after[before.digest], heads[before.digest]
            if Discrepancy.MISSING in found[blob.digest] and blob.state is BlobState.MISSING:
                missing.append(blob)
            if Discrepancy.FOUND in found[blob.digest] and blob.state is BlobState.LIVE:
                self._report.found_again.add(blob.size, digest=format_digest(blob.digest))
            if Discrepancy.WRONG_SIZE in found[blob.digest] and head is not None:
                self._report.wrong_size.add(blob.size, **_example_of(blob), stored=head.size)
        for blob, versions in zip(missing, self._pool.map(self._list_versions, missing), strict=True):
            self._report_missing(blob, versions)

    def _list_versions(self, blob: KnownBlob) -> Sequence[ObjectVersion]:
        return self._store.list_versions(blob_key(blob.digest))

    def _report_orphan(self, orphan: StoredBlob) -> bool:
        """Report an orphan; return whether it is old enough to be one."""
        modified_at = datetime.fromtimestamp(orphan.modified, UTC)
        old = modified_at <= self._began_at - self._ages.orphans
        kind = self._report.orphans if old else self._report.recent
        kind.add(orphan.size, digest=format_digest(orphan.digest), bytes=orphan.size, modified_at=modified_at)
        return old

    def _report_missing(self, blob: KnownBlob, versions: Sequence[ObjectVersion]) -> None:
        """Report a missing blob and what the store still keeps of it; repair it if asked to and possible."""
        masked = bool(versions) and versions[0].is_marker
        whole = [each for each in versions if not each.is_marker]
        fitting = next((each for each in whole if blob.size in {-1, each.size}), None)
        if (
            self._repair
            and masked
            and fitting is not None
            and fitting == whole[0]
            and self._remove_markers(blob, fitting)
        ):
            example = {"digest": format_digest(blob.digest), "version": fitting.version}
            self._report.repaired.add(blob.size, **example)
            self._report.found_again.add(blob.size, **example)
            return
        if self._repair and not whole and (copy := self._copy_back(blob)) is not None:
            example = {"digest": format_digest(blob.digest), "copy": copy}
            self._report.repaired.add(blob.size, **example)
            self._report.found_again.add(blob.size, **example)
            return
        example = _example_of(blob) | {
            "masked_since": versions[0].modified_at if masked else None,
            "restorable_version": None if fitting is None else fitting.version,
        }
        self._report.missing.add(blob.size, **example)
        if masked:
            self._report.masked.add(blob.size, **example)

    def _remove_markers(self, blob: KnownBlob, version: ObjectVersion) -> bool:
        """Remove the markers above this version if its bytes are the blob's; return whether it is served now."""
        key = blob_key(blob.digest)
        if not self._is_whole_version(blob.digest, version.version):
            return False
        with self._connections.use() as connection:
            is_doubtful = mark.may_have_lost_history(connection)
        if is_doubtful:
            # A purge of the lost history may still delete what was below the marker.
            if not self._is_missing(blob.digest):
                return False
            with suppress(ObjectNotFoundError):
                put_on_top(self._store, key, version.version)
            return any(move.to is BlobState.LIVE for move in self._presence.resolve([blob.digest]))
        for _ in range(MARKERS_LIMIT):
            latest = self._store.list_versions(key, TOP_STATES)[0]
            if not latest.is_marker:
                break
            # List, then check, then remove exactly that marker: while the blob is missing no hide of it has left one
            # (gc/restore.py, rule 15), and reading the version may have taken longer than all the graces.
            if not self._is_missing(blob.digest):
                return False
            self._store.remove_marker(key, latest.version)
        return any(move.to is BlobState.LIVE for move in self._presence.resolve([blob.digest]))

    def _copy_back(self, blob: KnownBlob) -> str | None:
        """Copy a quarantined copy back if its bytes are the blob's; return its key, None if there is no such copy.

        No hide of the table owns it, since the blob is missing: a lost history made it, or an older state of this one.
        """
        for entry in self._store.list(quarantine_prefix(blob.digest), limit=COPIES_LIMIT):
            if blob.size not in {-1, entry.size} or not self._is_whole_copy(blob.digest, entry.key):
                continue
            if not self._is_missing(blob.digest):
                return None
            with suppress(ObjectNotFoundError, ConflictError):
                copy_within(self._store, entry.key, blob_key(blob.digest))
                if any(move.to is BlobState.LIVE for move in self._presence.resolve([blob.digest])):
                    return entry.key
        return None

    def _is_whole_copy(self, digest: Digest, key: str) -> bool:
        with suppress(ObjectNotFoundError), self._store.open(key) as opened:
            hashed = hashlib.sha256()
            for chunk in opened.chunks:
                hashed.update(chunk)
            return hashed.digest() == digest
        return False

    def _is_missing(self, digest: Digest) -> bool:
        with self._connections.use() as connection:
            (blob,) = lifecycle.read_blobs(connection, [digest])
        return blob.state is BlobState.MISSING

    def _is_whole_version(self, digest: Digest, version: str) -> bool:
        with suppress(ObjectNotFoundError), self._store.open_version(blob_key(digest), version) as opened:
            hashed = hashlib.sha256()
            for chunk in opened.chunks:
                hashed.update(chunk)
            return hashed.digest() == digest
        return False

    # Claims

    def _compare_claims(self, on_progress: OnProgress) -> None:
        for claims in self._read_claims():
            on_progress(Progress(f"comparing the registry database of {claims.pod}"))
            try:
                self._compare_claims_of(claims)
            except ClaimsUnreadError as error:
                self._report.unread_claims[claims.pod] = str(error)

    def _compare_claims_of(self, claims: PodClaims) -> None:
        """Report what is not stored, and would be confirmed; raises ClaimsUnreadError."""
        while True:
            with _reading_claims():
                batch = list(islice(claims.blobs, self._sizes.batch))
            if not batch:
                return
            asked = self._find_uncompared(batch)
            unstored = [digest for digest, found in self._presence.head_blobs(list(asked)).items() if found is None]
            # Without a link it is what a visit of the doctor left, or what the registry will remove.
            with _reading_claims():
                linked = claims.find_linked(unstored) if unstored else ()
            # Meanwhile one may have been hidden, for good reason.
            for digest, blob in self._find_uncompared([each for each in unstored if each in linked]).items():
                size = -1 if blob is None else blob.size
                self._report.claimed.add(size, digest=format_digest(digest), pod=claims.pod)

    def _find_uncompared(self, digests: Sequence[Digest]) -> dict[Digest, KnownBlob | None]:
        """Return those of these blobs that the comparison does not report when they are not stored."""
        with self._connections.use() as connection:
            known = {blob.digest: blob for blob in lifecycle.read_blobs(connection, digests)}
        found = {digest: known.get(digest) for digest in digests}
        return {digest: blob for digest, blob in found.items() if blob is None or blob.state in _NOT_COMPARED}

    # Unfinished uploads

    def _find_uploads(self) -> None:
        before = self._began_at - self._ages.uploads
        for session in uploads.list_sessions(self._store, self._pool):
            if session.begun_at <= before:
                self._report.abandoned_uploads.add(
                    session.bytes, key=session.prefix, begun_at=session.begun_at, bytes=session.bytes
                )
        for upload in self._store.list_unfinished(""):
            if upload.begun_at <= before:
                self._report.unfinished_uploads.add(0, key=upload.key, begun_at=upload.begun_at)


@contextmanager
def _reading_claims() -> Iterator[None]:
    try:
        yield
    except BaleenError as error:
        raise ClaimsUnreadError(str(error)) from error


def _as_table_blob(blob: KnownBlob | None) -> TableBlob | None:
    return None if blob is None else TableBlob(blob.digest, blob.size, blob.state, blob.referenced)


def _as_stored_blob(digest: Digest, found: ObjectInfo | None) -> StoredBlob | None:
    return None if found is None else StoredBlob(digest, found.size, found.modified_at.timestamp())


def _example_of(blob: KnownBlob) -> dict[str, Any]:
    return {
        "digest": format_digest(blob.digest),
        "size": None if blob.size < 0 else blob.size,
        "reference_count": blob.reference_count,
        "link_count": blob.link_count,
    }
