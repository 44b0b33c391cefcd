"""Delete unfinished uploads, and old versions of ended ones in a bucket that keeps versions.

A registry keeps a session under `repositories/<name>/_uploads/<uuid>/` and, while it receives bytes, a multipart upload
in the store, which is no object before it is complete. When a session ends, the registry copies its bytes to `blobs/`
and deletes all its objects: with versions, that leaves a second copy of the layer below a marker.
Not here: how sessions are found (run.py, leftovers/unfinished_uploads.py).
"""

import datetime
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, groupby, islice

from coordinator.gc.leftovers import Amounts, LeftoverKind
from coordinator.leftovers.sweep import BEGINNING, Batch, Entry, Item, Sweep, split_pages
from coordinator.storage.layout import BASE, QUARANTINE, parse_upload_session
from coordinator.storage.port import UnfinishedUpload

#: Marks an item: the markers of its key are to be deleted.
_UNMARK = object()


class SessionDeleter:
    """Decides about sessions, one after another, and adds what is to be deleted to the batch of its kind."""

    def __init__(self, sweep: Sweep, kinds: Collection[LeftoverKind], uploads: Batch, versions: Batch) -> None:
        self._sweep = sweep
        self._kinds = kinds
        self._uploads = uploads
        self._versions = versions

    def decide_session(self, prefix: str, entries: Iterator[Entry]) -> None:
        """Decide about one session. Memory does not depend on its size."""
        sweep = self._sweep
        first = list(islice(entries, sweep.sizes.buffered))
        newest, served = BEGINNING, False
        for each in first:
            newest, served = max(newest, each.modified_at), served or each.served
        more = False
        for each in entries:
            newest, served, more = max(newest, each.modified_at), served or each.served, True
        before = sweep.cut_off(sweep.ages.uploads)
        if served and newest <= before:
            if LeftoverKind.UPLOADS in self._kinds and self._is_inactive(prefix, before):
                self._add_folder(prefix, before)
        elif LeftoverKind.VERSIONS in self._kinds and sweep.versioned:
            self._add_versions(sweep.list_entries(prefix) if more else iter(first))

    def _is_inactive(self, prefix: str, before: datetime.datetime) -> bool:
        """Check again, in a new listing, that nothing of the session is recent, nor a multipart upload of it."""
        return all(each.modified_at <= before for each in self._sweep.list_entries(prefix)) and not any(
            each.begun_at > before for each in self._sweep.store.list_unfinished(prefix)
        )

    def _add_folder(self, prefix: str, before: datetime.datetime) -> None:
        count = 1
        for some in split_pages(self._sweep.list_entries(prefix), self._sweep.sizes.deletes):
            if any(each.modified_at > before for each in some):
                return
            size = sum(each.size or 0 for each in some)
            self._uploads.add(Item(prefix, [each.target for each in some], count, size))
            count = 0

    def _add_versions(self, entries: Iterator[Entry]) -> None:
        """Delete versions that are not served, of keys that did not change within the grace."""
        before = self._sweep.cut_off(self._sweep.ages.versions)
        for key, states in groupby(entries, key=lambda each: each.key):
            marked, markers = False, 0
            for some in split_pages(states, self._sweep.sizes.deletes):
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


def delete_bare_markers(sweep: Sweep, items: Sequence[Item]) -> None:
    """Delete the markers of keys that have nothing else."""
    before = sweep.cut_off(sweep.ages.versions)
    keys = [item.name for item in items if item.about is _UNMARK]
    with sweep.batch(LeftoverKind.VERSIONS, sweep.allow) as batch:
        for markers in sweep.pool.map(sweep.list_bare_markers, keys):
            if markers and all(each.modified_at <= before for each in markers):
                batch.add(Item(markers[0].key, [each.target for each in markers], len(markers), 0))


def abort_old_uploads(sweep: Sweep) -> None:
    """Abort unfinished multipart uploads of registries and of Baleen's own copies."""
    before = sweep.cut_off(sweep.ages.parts)
    for upload in chain(sweep.store.list_unfinished(f"{BASE}/"), sweep.store.list_unfinished(QUARANTINE)):
        sweep.work.check()
        if upload.begun_at > before or _is_in_use(sweep, upload, before):
            continue
        amounts = Amounts(1, sweep.store.count_stored_bytes(upload))
        if not sweep.dry:
            sweep.check_holds()
            sweep.store.abort_upload(upload, sweep.make_permit(sweep.check_ours))
            sweep.record_deleted(LeftoverKind.PARTS, amounts, upload.key)
            sweep.pause(1)
        sweep.tally.add(LeftoverKind.PARTS, amounts)


def _is_in_use(sweep: Sweep, upload: UnfinishedUpload, before: datetime.datetime) -> bool:
    """Whether the upload belongs to a session in which something was done since `before`."""
    session = parse_upload_session(upload.key)
    return session is not None and any(each.modified_at > before for each in sweep.list_entries(session))
