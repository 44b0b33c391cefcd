"""Verify that referenced blobs have bytes in storage: one without becomes `missing`, and `live` once they are found.

Route: the scheduler, at intervals -> `Presence.round`: missing blobs, and manifests that could not be read;
audit/audit.py with blobs that a listing did not show -> `head_blobs`, `resolve`. Nothing else makes a blob missing.

Each absence is looked up twice: by `head_blobs`, without a lock, and again with the facts locked (db/locks.py), so that
"it is referenced" and "it has no bytes" are true at the same time, and a push that is applied later finds the state
that follows. The next round sees bytes that come just after the look-up.
An outage proves nothing (scenario 16): a store that answers with an error ends the look-up. So does a bucket without
any blob that the table needs, served or hidden, before the look-up or after it: it is probably another bucket, or empty
for a while.
A blob that may rightly have no bytes here (lifecycle.read_rightly_without_bytes) never becomes missing.
Not here: the rule (domain/lifecycle.py), hiding and restoring bytes.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import structlog

from coordinator.db import locks
from coordinator.db.connection import Connections
from coordinator.domain.lifecycle import BlobState, state_after_check
from coordinator.domain.names import Digest, format_digest
from coordinator.errors import UnavailableError
from coordinator.reconcile.resolve import NotHereError
from coordinator.storage.layout import blob_key, quarantine_prefix
from coordinator.storage.port import ObjectInfo, ObjectStore
from coordinator.table import lifecycle
from coordinator.table.lifecycle import KnownBlob, Transition

log = structlog.get_logger()

#: Blobs that one transaction verifies: all writers wait for it, so it must be short.
BATCH = 64
LOOKUPS_AT_ONCE = 16
LOOKUP_TIMEOUT_S = 5.0
#: Blobs of each kind that one round looks up; the next round continues after them.
ROUND_LIMIT = 1000
#: Newest rows, and oldest rows, among which a stored blob is sought: there is one if this is the right bucket.
SAMPLE_ROWS = 100
#: States of a blob that are listed, to find one with bytes.
TOP_STATES = 10
#: Digests that a log line names.
NAMES_SHOWN = 5


class Presence:
    """Looks up blobs in storage, and writes the states that follow. For one thread at a time."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        *,
        batch: int = BATCH,
        per_round: int = ROUND_LIMIT,
        lookups_at_once: int = LOOKUPS_AT_ONCE,
    ) -> None:
        self._connections = connections
        self._store = store
        self._batch = batch
        self._round = per_round
        self._lookups = ThreadPoolExecutor(lookups_at_once, thread_name_prefix="presence")
        #: blobs.id after which the next round continues.
        self._missing_after = self._unread_after = 0

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def round(self) -> list[Transition]:
        """Look up some missing blobs, and some manifests that could not be read; later rounds take the others."""
        with self._connections.use() as connection:
            missing = lifecycle.read_missing_blobs(connection, self._missing_after, self._round)
            unread = lifecycle.read_unread_manifests(connection, self._unread_after, self._round)
            excused = lifecycle.read_rightly_without_bytes(connection, [blob.id for blob in missing])
        found = self.head_blobs([blob.digest for blob in (*missing, *unread)])
        moves = self.resolve([blob.digest for blob in missing if found[blob.digest] is not None or blob.id in excused])
        moves += self.resolve([blob.digest for blob in unread if found[blob.digest] is None])
        self._missing_after = missing[-1].id if len(missing) == self._round else 0
        self._unread_after = unread[-1].id if len(unread) == self._round else 0
        _log_transitions(moves)
        return moves

    def head_blobs(self, wanted: Sequence[Digest], timeout: float | None = None) -> dict[Digest, ObjectInfo | None]:
        """Return what storage has of each blob; raises UnavailableError, also after `timeout` seconds."""
        try:
            found = list(self._lookups.map(lambda digest: self._store.head(blob_key(digest)), wanted, timeout=timeout))
        except TimeoutError as error:
            raise UnavailableError("The object store answers too slowly to look for blobs: try again.") from error
        return dict(zip(wanted, found, strict=True))

    def resolve(self, wanted: Iterable[Digest]) -> list[Transition]:
        """Look up these blobs again under the lock, and write the states that follow; return what changed.

        Raises NotHereError if blobs would become missing in a bucket that has none of the table's blobs, and
        UnavailableError, after it has perhaps done some of it.
        """
        moved: list[Transition] = []
        waiting = iter(wanted)
        while batch := list(islice(waiting, self._batch)):
            # Outside the lock: a store that is away must not stop the writers.
            self._store.check()
            stored_here = self._is_stored_here()
            with self._connections.use() as connection, connection.transaction():
                locks.lock_facts(connection, alone=True)
                needed = [blob for blob in lifecycle.read_blobs(connection, batch) if blob.referenced]
                found = self.head_blobs([blob.digest for blob in needed], LOOKUP_TIMEOUT_S)
                absent = [blob for blob in needed if found[blob.digest] is None]
                excused = lifecycle.read_rightly_without_bytes(connection, [blob.id for blob in absent])
                moves = _find_transitions(needed, found, excused)
                if any(each.to is BlobState.MISSING for each in moves) and not (stored_here and self._is_stored_here()):
                    raise _not_here_error(moves[0].blob)
                lifecycle.apply_transitions(connection, moves)
            moved += moves
        return moved

    def mark_unserved_purged(self, wanted: Iterable[Digest]) -> list[Transition]:
        """Make unreferenced blobs without bytes `purged`; return them.

        A later reference then makes the restorer look for the bytes: a blob must not become live without a look-up. A
        lost history may have hidden or purged it. Raises as `resolve`.
        """
        moved: list[Transition] = []
        waiting = iter(wanted)
        while batch := list(islice(waiting, self._batch)):
            self._store.check()
            with self._connections.use() as connection:
                some_live = bool(lifecycle.read_live_sample(connection, SAMPLE_ROWS))
            stored_here = self._is_stored_here()
            with self._connections.use() as connection, connection.transaction():
                locks.lock_facts(connection, alone=True)
                unneeded = [
                    blob
                    for blob in lifecycle.read_blobs(connection, batch)
                    if blob.state is BlobState.UNREFERENCED and not blob.referenced
                ]
                found = self.head_blobs([blob.digest for blob in unneeded], LOOKUP_TIMEOUT_S)
                moves = [Transition(blob, BlobState.PURGED) for blob in unneeded if found[blob.digest] is None]
                # Without live blobs none can show that this is the right bucket.
                if moves and some_live and not (stored_here and self._is_stored_here()):
                    raise _not_here_error(moves[0].blob)
                lifecycle.apply_transitions(connection, moves)
            moved += moves
        return moved

    def _is_stored_here(self) -> bool:
        """Whether any blob of a sample has bytes here: if not, the absence of others proves nothing.

        Hidden bytes count: a history that the database has lost may have hidden all that it calls live.
        """
        with self._connections.use() as connection:
            sample = lifecycle.read_live_sample(connection, SAMPLE_ROWS)
        return any(self._store.head(blob_key(digest)) is not None for digest in sample) or any(
            self._lookups.map(self._is_hidden_here, sample)
        )

    def _is_hidden_here(self, digest: Digest) -> bool:
        """Whether there are bytes below a delete marker, or a copy in quarantine."""
        if self._store.list(quarantine_prefix(digest), limit=1):
            return True
        on_top, *below = self._store.list_versions(blob_key(digest), TOP_STATES) or (None,)
        # Bytes on top, which a HEAD did not find, show a store that contradicts itself.
        return on_top is not None and on_top.is_marker and any(not each.is_marker for each in below)


def _find_transitions(
    needed: Sequence[KnownBlob], found: Mapping[Digest, ObjectInfo | None], excused: Container[int]
) -> list[Transition]:
    """Return the moves that follow from a look-up; `excused`: ids of blobs that may rightly have no bytes here."""
    moves = []
    for blob in needed:
        to = state_after_check(blob.state, referenced=True, stored=found[blob.digest] is not None)
        if to is BlobState.MISSING and blob.id in excused:
            to = state_after_check(blob.state, referenced=True, stored=True)
        if to is not blob.state:
            moves.append(Transition(blob, to))
    return moves


def _not_here_error(blob: KnownBlob) -> NotHereError:
    return NotHereError(
        f"Storage has neither {format_digest(blob.digest)} nor any other blob that was looked up. Check "
        "BALEEN_S3_BUCKET and BALEEN_S3_ROOT."
    )


def _log_transitions(moves: Sequence[Transition]) -> None:
    lost = [format_digest(each.blob.digest) for each in moves if each.to is BlobState.MISSING]
    found = [format_digest(each.blob.digest) for each in moves if each.to is BlobState.LIVE]
    if lost:
        log.error("referenced blobs have no bytes", blobs=len(lost), examples=lost[:NAMES_SHOWN])
    if found:
        log.info("missing blobs have their bytes again", blobs=len(found), examples=found[:NAMES_SHOWN])
