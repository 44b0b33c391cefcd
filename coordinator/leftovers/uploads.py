"""Delete unfinished uploads, and old versions of ended ones in a bucket that keeps versions.

A registry keeps a session under `repositories/<name>/_uploads/<uuid>/` and, while it receives bytes, a multipart upload
in the store, which is no object before it is complete. When a session ends, the registry copies its bytes to `blobs/`
and deletes all its objects: with versions, that leaves a second copy of the layer below a marker.
Not here: how sessions are found (run.py, leftovers/unfinished_uploads.py).
"""

import datetime
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, groupby, islice

from coordinator.gc.leftovers import Amounts, Kind
from coordinator.leftovers.sweep import BEGINNING, Batch, Entry, Item, Sweep, pages
from coordinator.storage.layout import BASE, QUARANTINE, upload_session
from coordinator.storage.port import Unfinished

#: Marks an item: the markers of its key are to be deleted.
_UNMARK = object()


class Sessions:
    """Decides about sessions, one after another, and adds what is to be deleted to the batch of its kind."""

    def __init__(self, sweep: Sweep, kinds: Collection[Kind], uploads: Batch, versions: Batch) -> None:
        self._sweep = sweep
        self._kinds = kinds
        self._uploads = uploads
        self._versions = versions

    def decide(self, prefix: str, entries: Iterator[Entry]) -> None:
        """Decide about one session. Memory does not depend on its size."""
        sweep = self._sweep
        first = list(islice(entries, sweep.sizes.buffered))
        newest, served = BEGINNING, False
        for each in first:
            newest, served = max(newest, each.modified_at), served or each.served
        more = False
        for each in entries:
            newest, served, more = max(newest, each.modified_at), served or each.served, True
        before = sweep.before(sweep.ages.uploads)
        if served and newest <= before:
            if Kind.UPLOADS in self._kinds and self._is_quiet(prefix, before):
                self._delete_folder(prefix, before)
        elif Kind.VERSIONS in self._kinds and sweep.versioned:
            self._delete_versions(sweep.entries(prefix) if more else iter(first))

    def _is_quiet(self, prefix: str, before: datetime.datetime) -> bool:
        """Check again, in a new listing, that nothing of the session is recent, nor a multipart upload of it."""
        return all(each.modified_at <= before for each in self._sweep.entries(prefix)) and not any(
            each.begun_at > before for each in self._sweep.store.unfinished(prefix)
        )

    def _delete_folder(self, prefix: str, before: datetime.datetime) -> None:
        count = 1
        for some in pages(self._sweep.entries(prefix), self._sweep.sizes.deletes):
            if any(each.modified_at > before for each in some):
                return
            size = sum(each.size or 0 for each in some)
            self._uploads.add(Item(prefix, [each.target for each in some], count, size))
            count = 0

    def _delete_versions(self, entries: Iterator[Entry]) -> None:
        """Delete versions that are not served, of keys that did not change within the grace."""
        before = self._sweep.before(self._sweep.ages.versions)
        for key, states in groupby(entries, key=lambda each: each.key):
            marked, markers = False, 0
            for some in pages(states, self._sweep.sizes.deletes):
                if any(each.modified_at > before for each in some):
                    break
                marked = marked or any(each.latest and each.size is None for each in some)
                markers += sum(each.size is None for each in some)
                old = [each for each in some if each.size is not None and not each.latest]
                if old:
                    size = sum(each.size or 0 for each in old)
                    self._versions.add(Item(key, [each.target for each in old], len(old), size))
            else:
                if marked:
                    # Markers are deleted, and counted, once nothing is below them; a dry run assumes that.
                    self._versions.add(Item(key, [], markers if self._sweep.dry else 0, 0, about=_UNMARK))


def unmark(sweep: Sweep, items: Sequence[Item]) -> None:
    """Delete the markers of keys that have nothing else."""
    before = sweep.before(sweep.ages.versions)
    keys = [item.name for item in items if item.about is _UNMARK]
    with sweep.batch(Kind.VERSIONS, sweep.allow) as batch:
        for markers in sweep.pool.map(sweep.bare_markers, keys):
            if markers and all(each.modified_at <= before for each in markers):
                batch.add(Item(markers[0].key, [each.target for each in markers], len(markers), 0))


def give_up_parts(sweep: Sweep) -> None:
    """Abort unfinished multipart uploads of registries and of Baleen's own copies."""
    before = sweep.before(sweep.ages.parts)
    for upload in chain(sweep.store.unfinished(f"{BASE}/"), sweep.store.unfinished(QUARANTINE)):
        sweep.work.check()
        if upload.begun_at > before or _is_in_use(sweep, upload, before):
            continue
        amounts = Amounts(1, sweep.store.stored_parts(upload))
        if not sweep.dry:
            sweep.check_holds()
            sweep.store.abort(upload, sweep.asking(sweep.ours))
            sweep.note(Kind.PARTS, amounts, upload.key)
            sweep.pause(1)
        sweep.tally.add(Kind.PARTS, amounts)


def _is_in_use(sweep: Sweep, upload: Unfinished, before: datetime.datetime) -> bool:
    """Whether the upload belongs to a session in which something was done since `before`."""
    session = upload_session(upload.key)
    return session is not None and any(each.modified_at > before for each in sweep.entries(session))
