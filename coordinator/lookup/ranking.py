"""Rank the blobs with most references: one read of all blobs serves every page for a while.

There is no index by reference count. The counts of popular blobs change most often, and an index would turn each of
these updates, which write one page now, into a write of every index of the table.
Not here: other orders (blobs.py).
"""

import asyncio
import datetime as dt
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine, Row, text

from coordinator.db.session import read_connection
from coordinator.db.threads import in_thread
from coordinator.lookup.sizes import Sizes

#: Count and id of the last blob of a page.
Key = tuple[int, int]

_TOP = text("""
SELECT b.id, b.digest, b.size, b.state, b.reference_count, b.link_count, b.first_seen, b.unreferenced_since,
       now() AS counted_at
FROM blobs b WHERE CAST(:state AS smallint) IS NULL OR b.state = :state
ORDER BY b.reference_count DESC, b.id LIMIT :ranked
""")


class RankedPage(NamedTuple):
    rows: Sequence[Row[Any]]
    next: Key | None
    counted_at: dt.datetime | None


class _CachedRanking(NamedTuple):
    """A ranking; times are the event loop's, in seconds."""

    read_at: float
    cost: float
    rows: Sequence[Row[Any]]


class Ranking:
    """Ranks blobs, with a cache for one process: one ranking for each requested state, and one for all states."""

    def __init__(self, engine: Engine, sizes: Sizes) -> None:
        self._engine = engine
        self._sizes = sizes
        self._kept: dict[int | None, _CachedRanking] = {}
        self._reading = asyncio.Lock()

    async def read_page(self, state: int | None, minimum: int, after: Key | None, limit: int) -> RankedPage:
        """Return up to `limit` rows with at least `minimum` references, of those that are ranked, after a key."""
        rows = await self._cached_rows(state)
        begin = 0 if after is None else bisect_right(rows, (-after[0], after[1]), key=_sort_key)
        page = [row for row in rows[begin : begin + limit] if row.reference_count >= minimum]
        more = len(page) == limit and begin + limit < len(rows)
        return RankedPage(page, (page[-1].reference_count, page[-1].id) if more else None, _counted_at(rows))

    async def _cached_rows(self, state: int | None) -> Sequence[Row[Any]]:
        clock, sizes = asyncio.get_running_loop().time, self._sizes
        # One caller reads, and the others wait for its result.
        async with self._reading:
            kept = self._kept.get(state)
            began = clock()
            if kept is None or began - kept.read_at >= max(sizes.ranking_s, sizes.cost_factor * kept.cost):
                rows = await in_thread(self._read_rows, state)
                kept = self._kept[state] = _CachedRanking(clock(), clock() - began, rows)
            return kept.rows

    def _read_rows(self, state: int | None) -> Sequence[Row[Any]]:
        with read_connection(self._engine) as connection:
            return connection.execute(_TOP, {"state": state, "ranked": self._sizes.ranked}).all()


def _sort_key(row: Row[Any]) -> tuple[int, int]:
    return (-row.reference_count, row.id)


def _counted_at(rows: Sequence[Row[Any]]) -> dt.datetime | None:
    return rows[0].counted_at if rows else None
