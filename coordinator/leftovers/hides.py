"""Delete leftovers of ended hides: copies in `quarantine/`, and delete markers on `blobs/`.

A copy stays after a restore, since until then it might have been the only one (gc/restore.py). A marker stays where a
purge found bytes below it that no hide had recorded, or was interrupted.
Not here: which hides have ended (leftovers/table.py).
"""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from coordinator.domain.names import Digest
from coordinator.gc import table as gc
from coordinator.gc.leftovers import Amounts, LeftoverKind
from coordinator.leftovers import table
from coordinator.leftovers.sweep import PAGE_SIZE, Batch, Entry, Item, Sweep, split_pages
from coordinator.storage.layout import QUARANTINE, blob_key, parse_quarantine_key
from coordinator.storage.port import Permit

#: Digest and hide.
_Copy = tuple[Digest, int]


def delete_copies(sweep: Sweep) -> None:
    """Delete copies of ended hides."""
    before = sweep.cut_off(sweep.ages.delete_bound)

    @contextmanager
    def allow(items: Sequence[Item]) -> Iterator[Permit]:
        wanted = list({item.about for item in items})
        yield sweep.make_permit(lambda connection: table.permit_copies(connection, sweep.work.job, wanted))

    found = (
        (copy, each)
        for each in sweep.list_entries(QUARANTINE)
        if each.size is not None and each.modified_at <= before and (copy := parse_quarantine_key(each.key)) is not None
    )
    with sweep.batch(LeftoverKind.COPIES, allow) as batch:
        for page in split_pages(found, PAGE_SIZE):
            _add_copies(sweep, page, before, batch)


def _add_copies(sweep: Sweep, page: Sequence[tuple[_Copy, Entry]], before: datetime.datetime, batch: Batch) -> None:
    with sweep.connections.use() as connection:
        ended = {
            (each.digest, each.hide): each for each in table.read_ended_copies(connection, [copy for copy, _ in page])
        }
        under_way = gc.read_open_hides(connection, [digest for (digest, _), _ in page])
    unknown = sum(copy not in ended and copy not in under_way for copy, _ in page)
    sweep.tally.add(LeftoverKind.COPIES, Amounts(unknown=unknown))

    def is_needless(over: table.EndedCopy, entry: Entry) -> bool:
        """Whether the blob is served with the size of its copy, or purged and unreferenced."""
        served = sweep.store.head(blob_key(over.digest))
        return over.gone if served is None else served.size == entry.size

    over = [ended[copy] for copy, _ in page if copy in ended and ended[copy].ended_at <= before]
    known = {(each.digest, each.hide) for each in over}
    entries = [each for copy, each in page if copy in known]
    for each, entry, needless in zip(over, entries, sweep.pool.map(is_needless, over, entries), strict=True):
        if needless:
            batch.add(Item(entry.key, [entry.target], 1, entry.size or 0, about=(each.digest, each.hide)))


def delete_markers(sweep: Sweep) -> int:
    """Delete markers of purged blobs with nothing below; return the last entry of the ledger that was processed."""
    before = sweep.cut_off(sweep.ages.delete_bound)
    with sweep.connections.use() as connection:
        began = after = table.read_swept_entry(connection, LeftoverKind.MARKERS)

    @contextmanager
    def allow(items: Sequence[Item]) -> Iterator[Permit]:
        blobs = {item.about for item in items}
        yield sweep.make_permit(lambda connection: table.permit_markers(connection, sweep.work.job, blobs))

    with sweep.batch(LeftoverKind.MARKERS, allow) as batch:
        while True:
            sweep.work.check()
            with sweep.connections.use() as connection:
                page = table.read_purges(connection, after, before, PAGE_SIZE)
                free = sorted(table.read_not_hidden(connection, {each.digest for each in page}))
            if not page:
                break
            after = page[-1].id
            for digest, found in zip(free, sweep.pool.map(sweep.list_bare_markers, map(blob_key, free)), strict=True):
                if found and all(each.modified_at <= before for each in found):
                    batch.add(Item(found[0].key, [each.target for each in found], len(found), 0, about=digest))
                    if not found[0].latest:
                        sweep.tally.add(
                            LeftoverKind.MARKERS, Amounts(left=1)
                        )  # there are more than one request may delete
    # The next run tries markers again that were not deleted.
    return began if sweep.tally.amounts(LeftoverKind.MARKERS).left else after
