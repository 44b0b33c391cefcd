"""Count the repositories of blobs that thousands of holdings need, and cache the counts.

Counting costs 1 to 3 µs a holding, and no index makes it cheaper: distinct repositories are known only after all
holdings were read. So one pass counts many blobs, callers share a pass, and counts are cached long enough that counting
takes a small part of the time. `Usage.counted_at` says when a count was exact.
Not here: blobs with few holdings (blobs.py counts them at once).
"""

import asyncio
import datetime as dt
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Engine, Row, text

from coordinator.db.session import write_transaction
from coordinator.db.threads import in_thread
from coordinator.errors import UnavailableError
from coordinator.lookup.sizes import Sizes

HOT_ENTRIES = 20_000
#: Finished counts are cached even if the rest takes too long.
HOT_PATIENCE = 15.0

# All blobs in one pass: the more hot blobs are counted, the more of them each manifest lists.
_HOT = text("""
SELECT n.blob_id, p.name AS pod, count(*) AS repositories, now() AS counted_at
FROM (
  SELECT DISTINCT x.blob_id, held.repository_id
  FROM manifests m
  JOIN repository_manifests held ON held.manifest_id = m.id
  CROSS JOIN LATERAL unnest(m.refs) x (blob_id)
  WHERE m.refs && CAST(:ids AS bigint[]) AND x.blob_id = ANY(CAST(:ids AS bigint[]))
  UNION
  SELECT manifest_id, repository_id FROM repository_manifests WHERE manifest_id = ANY(CAST(:ids AS bigint[]))
  UNION
  SELECT blob_id, repository_id FROM repository_blobs WHERE blob_id = ANY(CAST(:ids AS bigint[]))
) n
JOIN repositories r ON r.id = n.repository_id
JOIN pods p ON p.id = r.pod_id
GROUP BY n.blob_id, p.name ORDER BY n.blob_id, p.name
""")
#: The query makes millions of pairs distinct; on disk that takes three times as long.
_HOT_MEMORY = text("SET LOCAL work_mem = '64MB'")


class Usage(NamedTuple):
    repositories: int
    pods: list[str]
    counted_at: dt.datetime


class HotUsage:
    """Counts hot blobs, with a cache for one process."""

    def __init__(self, engine: Engine, sizes: Sizes) -> None:
        self._engine = engine
        self._sizes = sizes
        self._hot: OrderedDict[int, tuple[float, Usage]] = OrderedDict()
        self._counting = asyncio.Lock()

    async def count_usage(self, rows: Sequence[Row[Any]]) -> dict[int, Usage]:
        if not rows:
            return {}
        clock = time.monotonic
        deadline = clock() + HOT_PATIENCE
        # One caller counts at a time: the others then find most of their blobs counted already.
        async with self._counting:
            missing = [row for row in rows if row.id not in self._hot or self._hot[row.id][0] < clock()]
            for group in _group_ids(missing, self._sizes.hot_group):
                if clock() > deadline:
                    raise UnavailableError(
                        "Counting so many references takes longer than one request may. Send the request again: it "
                        "continues."
                    )
                await in_thread(self._count, group)
            answer = {row.id: self._hot[row.id][1] for row in rows}
            while len(self._hot) > HOT_ENTRIES:
                self._hot.popitem(last=False)
        return answer

    def _count(self, ids: Sequence[int]) -> None:
        clock = time.monotonic
        began = clock()
        with write_transaction(self._engine) as connection:
            connection.execute(_HOT_MEMORY)
            rows = connection.execute(_HOT, {"ids": list(ids)}).all()
        until = clock() + max(self._sizes.hot_s, self._sizes.cost_factor * (clock() - began))
        # A blob that lost its last reference meanwhile is not among the rows.
        usages = dict.fromkeys(ids, Usage(0, [], dt.datetime.now(dt.UTC)))
        for blob, of_blob in groupby(rows, key=lambda row: row.blob_id):
            parts = list(of_blob)
            usages[blob] = Usage(sum(part.repositories for part in parts), [p.pod for p in parts], parts[0].counted_at)
        for blob, usage in usages.items():
            self._hot[blob] = (until, usage)
            self._hot.move_to_end(blob)


def _group_ids(rows: Sequence[Row[Any]], holdings: int) -> Iterator[list[int]]:
    """Split the blobs into groups, so that no pass reads many more than this number of holdings."""
    group: list[int] = []
    size = 0
    for row in sorted(rows, key=lambda row: row.reference_count, reverse=True):
        group.append(row.id)
        size += row.reference_count
        if size > holdings:
            yield group
            group, size = [], 0
    if group:
        yield group
