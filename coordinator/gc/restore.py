"""Restore hidden blobs that are needed again, that an operator asked for, or whose hide is unfinished.

Route: workers, all the time -> `Restorer.round`: blobs that are needed, or were asked back, and are not served; the
collection -> `Restorer.restore` for unfinished or disturbed hides. Both: make the bytes served, write the mark, end the
hides that are final.

A restore is *final* only when no delete of the hide can land any more (rule 8): until then the bytes are served again
and the hide stays, so that the next round checks again. It checks that bound first and the bytes last (rule 14), and
removes exactly the markers that it listed before it made sure that the hide has not ended (rule 15).
After commits were lost, a purge of the hide may be under way that the database does not know, and that would delete the
versions which the hide recorded. Until that has landed no marker is removed: the bytes are written again, on top.
Several processes may restore the same hide at once: all remove the same markers and write the same bytes.
The mark in the bucket (mark.py) is written before restores are committed as final, and again after that: a bucket that
is later rolled back to before a restore has an older mark than the database, and a database that loses the commit has
an older epoch than the bucket. The bytes are looked up once more between the mark and the commit.
A round also writes links back that turn out to be needed (leftovers/links.py).
Not here: when a delete was permitted (gc/table.py, `permit`), copies that are no longer needed (leftovers/run.py).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import NamedTuple, TypeVar

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.names import Digest, format_digest
from coordinator.errors import ConflictError, UnavailableError
from coordinator.gc import mark
from coordinator.gc import mark_table as table
from coordinator.gc import table as gc
from coordinator.gc.mark_table import LOCK_TIMEOUT_S
from coordinator.gc.table import Hide
from coordinator.reconcile.presence import Presence
from coordinator.storage.layout import blob_key, quarantine_key
from coordinator.storage.port import ObjectNotFoundError, ObjectStore, copy_within, put_on_top

log = structlog.get_logger()

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Hides that are read and restored together.
ROUND_LIMIT = 500
RESTORES_AT_ONCE = 16
#: Markers that one attempt removes from a blob: each unfinished hide may have left one, and so may other deletes.
MARKERS_LIMIT = 10
#: States of a blob that are searched for one with bytes. Below more markers there may be bytes, so rounds continue.
STATES_LIMIT = 100


class RestoreResult(NamedTuple):
    """The result of one attempt to restore some blobs."""

    #: Hides that have ended.
    final: int = 0
    #: Hides that stay, so that the next attempt checks them again.
    waiting: int = 0
    #: The last failure of a service about one blob.
    failed: UnavailableError | None = None
    #: Why the mark could not be written.
    unmarked: UnavailableError | None = None

    def __or__(self, other: "RestoreResult") -> "RestoreResult":
        return RestoreResult(
            self.final + other.final,
            self.waiting + other.waiting,
            other.failed or self.failed,
            other.unmarked or self.unmarked,
        )


class Served(NamedTuple):
    """A hide whose restore is final once it is committed."""

    hide: Hide
    why: str
    #: Its bytes are served; else it has none.
    is_served: bool
    #: Another process ended it.
    has_ended: bool = False


class Restorer:
    """Restores blobs. One `round` at a time; `restore` is safe to use from several threads."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        presence: Presence,
        *,
        delete_bound: timedelta,
        give_links_back: Callable[[Connections, ObjectStore], int],
        per_round: int = ROUND_LIMIT,
        at_once: int = RESTORES_AT_ONCE,
        mark_lock_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        """`give_links_back` writes back deleted links of blobs that are needed again (leftovers/links.py)."""
        self._connections = connections
        self._give_links_back = give_links_back
        self._store = store
        self._presence = presence
        self._delete_bound = delete_bound
        self._per_round = per_round
        self._mark_lock_s = mark_lock_s
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="restore")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def round(self) -> int:
        """Restore blobs that are needed, or were asked back, and are not served; return how many restores are final.

        Raises UnavailableError and NotHereError, after it has done some of it.
        """
        done, after = RestoreResult(), 0
        again: dict[Digest, None] = {}
        while True:
            with self._connections.use() as connection:
                hides, purged = gc.read_concealed(connection, self._per_round, after)
            done |= self.restore([(each, _why(each)) for each in hides])
            again |= dict.fromkeys(purged)
            if len(hides) < self._per_round:
                break
            # Restores that cannot be final yet stay in the list, and must not delay the others.
            after = hides[-1].blob
        after = 0
        while True:
            with self._connections.use() as connection:
                asked = gc.read_asked_back(connection, self._per_round, after)
            done |= self.restore([(each, _why(each)) for each in asked])
            if len(asked) < self._per_round:
                break
            after = asked[-1].id
        failed = done.unmarked
        try:
            self._give_links_back(self._connections, self._store)
        except UnavailableError as error:
            failed = error  # perhaps one object alone failed: the others must not wait for it
        # A purged blob that is needed again was pushed again: verify its bytes. Do it last, since they may be missing,
        # and nothing else may wait for that.
        self._presence.resolve(again)
        if failed is not None:
            raise failed
        return done.final

    def restore(self, wanted: Sequence[tuple[Hide, str]]) -> RestoreResult:
        """Make registries serve hidden blobs again, each for a reason, and end the hides where that is final.

        A failure concerns only some of them, and is in the result.
        """
        result = RestoreResult()
        ready: list[Served] = []
        for served, failed in self._pool.map(lambda each: self._try(each[0], self.serve, each), wanted):
            if served is not None:
                ready.append(served)
            result |= RestoreResult(waiting=int(served is None), failed=failed)
        if not ready:
            return result
        try:
            self._write_mark(mark.begin_epoch)
        except UnavailableError as error:
            return result._replace(waiting=len(wanted), unmarked=error)
        for over, failed in self._pool.map(lambda each: self._try(each.hide, self._end, each), ready):
            result |= RestoreResult(int(bool(over)), int(not over), failed)
        try:
            self._write_mark(mark.write_epoch)
        except UnavailableError as error:
            # The scheduler writes it again within seconds.
            result = result._replace(unmarked=error)
        return result

    def _write_mark(self, write: Callable[[Connections, ObjectStore, float], None]) -> None:
        try:
            write(self._connections, self._store, self._mark_lock_s)
        except mark.ForeignBucketError as error:
            # The restored blobs are served all the same, and the next run is refused.
            log.warning("mark in the bucket was not updated for restores", reason=str(error))

    def _try(self, hide: Hide, step: Callable[[_T], _R | None], value: _T) -> tuple[_R | None, UnavailableError | None]:
        try:
            return step(value), None
        except UnavailableError as error:
            log.warning("hidden blob is not restored yet", digest=format_digest(hide.digest), reason=str(error))
            return None, error
        except Exception:
            # It comes first in the next round, too, and must not delay the others for ever.
            log.exception("hidden blob cannot be restored", digest=format_digest(hide.digest))
            return None, None

    def serve(self, wanted: tuple[Hide, str]) -> Served | None:
        """Make a blob's bytes served; return it if its hide may end, and None if more has to be done."""
        hide, why = wanted
        found = self._read_hide(hide)
        if found is None:
            return Served(hide, why, is_served=True, has_ended=True)
        # Rule 14: the bound first, the bytes last.
        harmless = found.is_harmless(self._delete_bound)
        purging = found.purging_at is not None and not harmless
        # Do not show bytes that a purge may still delete: a registry that saw them could link them.
        if not purging and not self._serve_bytes(found):
            # Another process restored it meanwhile, or the next round will.
            return None
        is_served = self._store.head(blob_key(found.digest)) is not None
        if not harmless and not (purging and is_served and self._is_pushed_again(found)):
            return None
        return Served(found, why, is_served=is_served)

    def _end(self, served: Served) -> bool:
        """End a hide whose restore is final; return whether it has ended."""
        if served.has_ended:
            return True
        if served.is_served and self._store.head(blob_key(served.hide.digest)) is None:
            # An older replica took the bucket's place before the mark was written, which therefore does not show it.
            return False
        hide, digest = served.hide, format_digest(served.hide.digest)
        with self._connections.use() as connection:
            over = gc.end_hide(connection, hide, served.why)
        if over and not served.is_served:
            # Harmless if nothing needs the blob: verify that again.
            if self._presence.resolve([hide.digest]):
                log.error("hidden blob is needed and has no bytes", digest=digest, hide=hide.id)
        elif over:
            log.info("blob restored", digest=digest, hide=hide.id, why=served.why)
        return over

    def _serve_bytes(self, hide: Hide) -> bool:
        """Make the bytes served, if there are any; return False if the hide has ended, or more has to be done."""
        key = blob_key(hide.digest)
        for _ in range(MARKERS_LIMIT):
            versions = self._store.list_versions(key, STATES_LIMIT)
            on_top = next((each for each in versions if each.latest), None)
            bare = len(versions) < STATES_LIMIT and all(each.is_marker for each in versions)
            if on_top is None or not on_top.is_marker or bare:
                break
            # Rule 15: list, then check, then remove exactly that marker.
            if self.has_ended(hide):
                return False
            if self._may_be_purged():
                self._write_on_top(hide)
                return True
            self._store.remove_marker(key, on_top.version)
        else:
            return False  # the next round continues: below more markers there may be bytes
        if self._store.head(key) is None:
            self._copy_back(hide)
        return True

    def _may_be_purged(self) -> bool:
        with self._connections.use() as connection:
            return table.may_have_lost_history(connection)

    def _write_on_top(self, hide: Hide) -> None:
        key = blob_key(hide.digest)
        whole = next((each for each in self._store.list_versions(key) if not each.is_marker), None)
        if whole is None:
            return
        try:
            put_on_top(self._store, key, whole.version)
        except ObjectNotFoundError as error:
            digest = format_digest(hide.digest)
            raise UnavailableError(f"A version of {digest} was deleted while it was read.") from error

    def _copy_back(self, hide: Hide) -> None:
        key, copy = blob_key(hide.digest), quarantine_key(hide.digest, hide.id)
        if self._store.head(copy) is None or self.has_ended(hide):
            return
        try:
            copy_within(self._store, copy, key)
        except (ObjectNotFoundError, ConflictError) as error:
            raise UnavailableError(f"The copy of {format_digest(hide.digest)} changed while it was read.") from error

    def _is_pushed_again(self, hide: Hide) -> bool:
        """Whether the served bytes are none that this hide's purge deletes: the blob was pushed again."""
        if hide.marker is None:
            return True  # a purge deletes nothing but the copy
        recorded = {each.version for each in hide.versions}
        states = self._store.list_versions(blob_key(hide.digest), STATES_LIMIT)
        return any(each.latest and each.version not in recorded for each in states)

    def has_ended(self, hide: Hide) -> bool:
        """Whether a hide has ended: what hides the blob now is not its own then (rule 15)."""
        return self._read_hide(hide) is None

    def _read_hide(self, hide: Hide) -> Hide | None:
        with self._connections.use() as connection:
            return gc.read_hide(connection, hide.id)


def _why(hide: Hide) -> str:
    return "it is needed again" if hide.needed else f"it was asked back: {hide.asked}"
