"""Bring back what was hidden: it is needed again, an operator asked for it, or the job that hid it came to no end.

Route: workers, all the time -> `Restorer.round`: what is needed, or was asked back, and is not served; the collection
-> `Restorer.restore` for what it found left over or disturbed.

A restore is *final* only when no delete of the hide can land any more (rule 8): until then the bytes are served again
and the hide stays, so that the next round looks again. It looks at that bound first and at the bytes last (rule 14),
and takes away exactly the markers that it saw before it made sure that the hide is not over (rule 15).
After commits were lost, a purge of the hide may be under way that the database does not know of, and would delete the
versions that the hide recorded. Until that has landed no marker is removed: the bytes are put on top anew.
Whoever does it, and however many at once: the same markers and the same bytes.
What is final is told to the bucket (mark.py): at the end of a round, or by whoever calls `restore`.
A round also gives back links that turn out to be needed (leftovers/links.py).
Not here: when a delete was let go (gc/table.py, `permit`), copies that are not needed any more (leftovers/run.py).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.names import Digest, format_digest
from coordinator.errors import ConflictError, UnavailableError
from coordinator.gc import mark
from coordinator.gc import mark_table as table
from coordinator.gc import table as gc
from coordinator.gc.table import Hide
from coordinator.reconcile.presence import Presence
from coordinator.storage.layout import blob_key, quarantine_key
from coordinator.storage.port import ObjectNotFoundError, ObjectStore, copy_within, put_on_top

log = structlog.get_logger()

#: Hides that are read and restored together.
ROUND = 500
RESTORES_AT_ONCE = 16
#: Markers that are taken off one blob at a time: one of each hide that was not undone, and of whoever else deleted it.
MARKERS_LIMIT = 10
#: States of a blob that are looked at for one that has bytes; below more markers there may be some, and rounds go on.
STATES_LIMIT = 100


class Restorer:
    """One `round` at a time; `restore` and `tell` are safe to use from several threads."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        presence: Presence,
        *,
        delete_bound: timedelta,
        give_links_back: Callable[[Connections, ObjectStore], int],
    ) -> None:
        """`give_links_back` writes deleted links of blobs that are needed again (leftovers/links.py)."""
        self._connections = connections
        self._give_links_back = give_links_back
        self._store = store
        self._presence = presence
        self._delete_bound = delete_bound
        #: Something is final of which the bucket was not told.
        self._untold = False
        self._pool = ThreadPoolExecutor(RESTORES_AT_ONCE, thread_name_prefix="restore")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def round(self) -> int:
        """Restore what is needed, or was asked back, and is not served; return how many are served again for good.

        Raises UnavailableError and NotHereError, with some of it done.
        """
        final = after = 0
        again: dict[Digest, None] = {}
        while True:
            with self._connections.use() as connection:
                hides, purged = gc.concealed(connection, ROUND, after)
            final += sum(self._pool.map(self._restore_quietly, hides))
            again |= dict.fromkeys(purged)
            if len(hides) < ROUND:
                break
            # Those that are served and cannot be final yet stay, and must not keep the others waiting.
            after = hides[-1].blob
        after = 0
        while True:
            with self._connections.use() as connection:
                asked = gc.asked_back(connection, ROUND, after)
            final += sum(self._pool.map(self._restore_quietly, asked))
            if len(asked) < ROUND:
                break
            after = asked[-1].id
        failed = None
        for rest in (self.tell, lambda: self._give_links_back(self._connections, self._store)):
            try:
                rest()
            except UnavailableError as error:
                failed = error  # perhaps of one object alone: the others must not wait for it
        # What was purged and is needed again was pushed again: its bytes have to be seen. Last, since it may be that
        # they are not, and then nothing else may wait for it.
        self._presence.settle(again)
        if failed is not None:
            raise failed
        return final

    def tell(self) -> None:
        """Tell the bucket of what is final since it was told last, if anything is. Raises UnavailableError."""
        if not self._untold:
            return
        self._untold = False
        try:
            mark.tell(self._connections, self._store)
        except mark.ForeignBucketError as error:
            # What is needed is served all the same, and the next run is refused.
            log.warning("the bucket is not told of restores", reason=str(error))
        except BaseException:
            self._untold = True
            raise

    def _restore_quietly(self, hide: Hide) -> bool:
        try:
            return self.restore(hide, "it is needed again" if hide.needed else f"it was asked back: {hide.asked}")
        except UnavailableError as error:
            log.warning("a hidden blob is not restored yet", digest=format_digest(hide.digest), reason=str(error))
        except Exception:
            # It comes first in the next round, too, and must not keep the others waiting for ever.
            log.exception("a hidden blob cannot be restored", digest=format_digest(hide.digest))
        return False

    def restore(self, hide: Hide, why: str) -> bool:
        """Let registries see a hidden blob again; True once that is final, and the hide over.

        Raises UnavailableError.
        """
        found = self._now(hide)
        if found is None:
            return True
        # Rule 14: the bound first, the bytes last.
        harmless = found.harmless(self._delete_bound)
        purging = found.purging_at is not None and not harmless
        # What a purge may still delete must not be seen: whoever saw it could link it.
        if not purging and not self._show(found):
            # Another one restored it meanwhile, or will.
            return False
        served = self._store.head(blob_key(found.digest)) is not None
        if not harmless and not (purging and served and self._is_another(found)):
            return False
        with self._connections.use() as connection:
            over = gc.shown(connection, found, why)
        if over:
            # Only ever set here: others restore at the same time.
            self._untold = True
        if over and not served:
            # Nobody misses what nothing needs; whether anything does is asked again.
            if self._presence.settle([found.digest]):
                log.error("a hidden blob is needed and has no bytes", digest=format_digest(found.digest), hide=found.id)
        elif over:
            log.info("blob restored", digest=format_digest(found.digest), hide=found.id, why=why)
        return over

    def _show(self, hide: Hide) -> bool:
        """Have the bytes served, if there are any; False if the hide turned out to be over, or more has to be done."""
        key = blob_key(hide.digest)
        for _ in range(MARKERS_LIMIT):
            versions = self._store.versions(key, STATES_LIMIT)
            on_top = next((each for each in versions if each.latest), None)
            bare = len(versions) < STATES_LIMIT and all(each.is_marker for each in versions)
            if on_top is None or not on_top.is_marker or bare:
                break
            # Rule 15: listed, then checked, then exactly that one.
            if self._now(hide) is None:
                return False
            if self._may_be_purged():
                self._put_on_top(hide)
                return True
            self._store.remove_marker(key, on_top.version)
        else:
            return False  # the next round goes on: below more of them there may be bytes
        if self._store.head(key) is None:
            self._copy_back(hide)
        return True

    def _may_be_purged(self) -> bool:
        with self._connections.use() as connection:
            return table.may_have_lost_history(connection)

    def _put_on_top(self, hide: Hide) -> None:
        key = blob_key(hide.digest)
        whole = next((each for each in self._store.versions(key) if not each.is_marker), None)
        if whole is None:
            return
        try:
            put_on_top(self._store, key, whole.version)
        except ObjectNotFoundError as error:
            digest = format_digest(hide.digest)
            raise UnavailableError(f"A version of {digest} was deleted while it was read.") from error

    def _copy_back(self, hide: Hide) -> None:
        key, copy = blob_key(hide.digest), quarantine_key(hide.digest, hide.id)
        if self._store.head(copy) is None or self._now(hide) is None:
            return
        try:
            copy_within(self._store, copy, key)
        except (ObjectNotFoundError, ConflictError) as error:
            raise UnavailableError(f"The copy of {format_digest(hide.digest)} changed while it was read.") from error

    def _is_another(self, hide: Hide) -> bool:
        """Whether what is served is not among what the purge of this hide deletes: it was pushed anew."""
        if hide.marker is None:
            return True  # a purge deletes nothing but the copy
        recorded = {each.version for each in hide.versions}
        states = self._store.versions(blob_key(hide.digest), STATES_LIMIT)
        return any(each.latest and each.version not in recorded for each in states)

    def _now(self, hide: Hide) -> Hide | None:
        with self._connections.use() as connection:
            return gc.hide(connection, hide.id)
