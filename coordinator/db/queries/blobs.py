"""Who needs a blob: look-ups by digest, and browsing.

A look-up's price is the number of holdings that need the blob: they are found through the index over manifests'
references, and repositories are counted among them. Up to LIVE_LIMIT it is done at once. For a blob that more
holdings need it would take longer than a look-up may; it is done in one pass for all such blobs of the question, and
kept for HOT_SECONDS. `counted_at` says when.
"""

import asyncio
import datetime
from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.db.queries import paging
from coordinator.db.queries.session import reading, writing
from coordinator.db.queries.views import STATE_NUMBERS, STATES, Blob, BlobPage, BlobSummary, StateName
from coordinator.domain.names import Digest, PodName, format_digest
from coordinator.errors import NotFoundError, UsageError

LOOKUP_LIMIT = 1000
#: Holdings; about 3 µs each.
LIVE_LIMIT = 5_000
#: Much longer than counting takes (1 µs a holding), much shorter than anybody's decision.
HOT_SECONDS = 60.0
HOT_ENTRIES = 20_000
#: Blobs that one page looks at, at most, for those that match.
WALK = 100_000
#: The same where each must be asked about by itself.
POD_WALK = 4_000

Sort = Literal["first_seen", "unreferenced_since", "references"]

_ROW = (
    """b.id, b.digest, b.size, b.state, b.reference_count, b.link_count, b.first_seen, b.unreferenced_since"""
)

# OFFSET 0 keeps the planner from turning a walk along an index into a scan of a whole table.
_USAGE = """
LEFT JOIN LATERAL (
  SELECT count(*) AS repositories, array_agg(DISTINCT r.pod_id) AS pod_ids
  FROM (
    SELECT DISTINCT h.repository_id FROM (
      SELECT held.repository_id
      FROM manifests m
      CROSS JOIN LATERAL (SELECT repository_id FROM repository_manifests WHERE manifest_id = m.id OFFSET 0) held
      WHERE m.refs @> ARRAY[b.id] AND b.reference_count + b.link_count <= :live
      UNION ALL
      SELECT repository_id FROM repository_manifests
      WHERE manifest_id = b.id AND b.reference_count + b.link_count <= :live
      UNION ALL
      SELECT repository_id FROM repository_blobs
      WHERE blob_id = b.id AND b.reference_count + b.link_count <= :live
    ) h
  ) d
  CROSS JOIN LATERAL (SELECT pod_id FROM repositories WHERE id = d.repository_id OFFSET 0) r
) used ON true
"""

_LOOKUP = text(f"""
SELECT wanted.position, {_ROW}, now() AS counted_at, used.repositories,
       ARRAY(SELECT p.name FROM pods p WHERE p.id = ANY(used.pod_ids) ORDER BY p.name) AS pods
FROM unnest(CAST(:digests AS bytea[])) WITH ORDINALITY wanted (digest, position)
JOIN blobs b ON b.digest = wanted.digest
{_USAGE}
""")

# All of them in one pass: the more hot blobs are asked for, the more of them each manifest lists.
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
#: Millions of pairs are made distinct here; on disk that takes three times as long.
_HOT_MEMORY = text("SET LOCAL work_mem = '64MB'")


class Usage(NamedTuple):
    repositories: int
    pods: list[str]
    counted_at: datetime.datetime


class BlobQueries:
    """Look-ups with the memory for hot blobs. One per process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._hot: OrderedDict[int, tuple[float, Usage]] = OrderedDict()
        self._counting = asyncio.Lock()

    async def lookup(self, digests: Sequence[Digest]) -> list[Blob | None]:
        """Return what is known of each digest, in order; None for one that nobody has ever spoken of."""
        if len(digests) > LOOKUP_LIMIT:
            raise UsageError(f"At most {LOOKUP_LIMIT} digests can be looked up at once.")
        async with reading(self._engine) as connection:
            rows = (await connection.execute(_LOOKUP, {"digests": list(digests), "live": LIVE_LIMIT})).all()
        hot = await self._usage_of_hot([row.id for row in rows if _is_hot(row)])
        answers: list[Blob | None] = [None] * len(digests)
        for row in rows:
            usage = hot.get(row.id) if _is_hot(row) else None
            answers[row.position - 1] = _blob(row, usage or Usage(row.repositories, row.pods, row.counted_at))
        return answers

    async def get(self, digest: Digest) -> Blob:
        (blob,) = await self.lookup([digest])
        if blob is None:
            raise NotFoundError(f"No registry has spoken of {format_digest(digest)} yet: check the digest.")
        return blob

    async def browse(
        self,
        *,
        state: StateName | None = None,
        pod: PodName | None = None,
        min_references: int = 0,
        sort: Sort = "first_seen",
        cursor: str | None = None,
        limit: int = paging.DEFAULT_LIMIT,
    ) -> BlobPage:
        """Return a page of blobs; see the API's description of the parameters."""
        filters = {
            "state": None if state is None else STATE_NUMBERS[state],
            "min": min_references,
            "limit": limit,
        }
        if pod is not None:
            if sort != "first_seen":
                raise UsageError("A pod's blobs come in the order first_seen only: leave sort out.")
            return await self._browse_pod(pod, filters, cursor)
        if sort == "references":
            if cursor is not None:
                raise UsageError("sort=references has one page, the top ones: raise limit instead.")
            return await self._top(filters)
        if sort == "unreferenced_since":
            return await self._browse_unreferenced(filters, cursor)
        return await self._browse_by_id(filters, cursor)

    async def _browse_by_id(self, filters: dict[str, Any], cursor: str | None) -> BlobPage:
        after = paging.decode("blobs", cursor, int) or 0
        async with reading(self._engine) as connection:
            edge = None
            if filters["state"] is not None or filters["min"] > 0:
                edge = await connection.scalar(_ID_EDGE, {"after": after, "walk": WALK})
            rows = (await connection.execute(_BY_ID, filters | {"after": after, "edge": edge})).all()
        return BlobPage(items=[_summary(row) for row in rows], next=_next_by_id(rows, filters["limit"], edge))

    async def _browse_unreferenced(self, filters: dict[str, Any], cursor: str | None) -> BlobPage:
        key = paging.decode("unreferenced", cursor, tuple[datetime.datetime, int])
        since, after = key or (datetime.datetime.min.replace(tzinfo=datetime.UTC), 0)
        values = filters | {"since": since, "after": after, "walk": WALK}
        async with reading(self._engine) as connection:
            edge = (await connection.execute(_UNREFERENCED_EDGE, values)).one_or_none()
            end = (None, None) if edge is None else (edge.unreferenced_since, edge.id)
            bounds = {"edge_since": end[0], "edge_id": end[1]}
            rows = (await connection.execute(_UNREFERENCED, values | bounds)).all()
        last = edge
        if len(rows) == filters["limit"]:
            last = rows[-1]
        return BlobPage(
            items=[_summary(row) for row in rows],
            next=None if last is None else paging.encode("unreferenced", (last.unreferenced_since, last.id)),
        )

    async def _top(self, filters: dict[str, Any]) -> BlobPage:
        async with reading(self._engine) as connection:
            rows = (await connection.execute(_TOP, filters)).all()
        return BlobPage(items=[_summary(row) for row in rows], next=None)

    async def _browse_pod(self, pod: PodName, filters: dict[str, Any], cursor: str | None) -> BlobPage:
        """Walk blobs in order and keep those of the pod. Hot ones are asked for all at once."""
        after = paging.decode("blobs", cursor, int) or 0
        async with reading(self._engine) as connection:
            if await connection.scalar(text("SELECT id FROM pods WHERE name = :pod"), {"pod": pod}) is None:
                raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
            edge = await connection.scalar(_ID_EDGE, {"after": after, "walk": POD_WALK})
            values = filters | {"after": after, "edge": edge, "live": LIVE_LIMIT, "pod": pod}
            rows = (await connection.execute(_OF_POD, values)).all()
        hot = await self._usage_of_hot([row.id for row in rows if _is_hot(row)])
        kept = [row for row in rows if not _is_hot(row) or pod in hot[row.id].pods]
        return BlobPage(items=[_summary(row) for row in kept], next=_next_by_id(rows, filters["limit"], edge))

    async def _usage_of_hot(self, ids: Sequence[int]) -> dict[int, Usage]:
        if not ids:
            return {}
        async with self._counting:
            clock = asyncio.get_running_loop().time
            missing = [i for i in ids if i not in self._hot or self._hot[i][0] < clock()]
            if missing:
                async with writing(self._engine) as connection:
                    await connection.execute(_HOT_MEMORY)
                    rows = (await connection.execute(_HOT, {"ids": missing})).all()
                until = clock() + HOT_SECONDS
                for blob, of_blob in groupby(rows, key=lambda row: row.blob_id):
                    parts = list(of_blob)
                    usage = Usage(
                        sum(part.repositories for part in parts),
                        [part.pod for part in parts],
                        parts[0].counted_at,
                    )
                    self._hot[blob] = (until, usage)
                    self._hot.move_to_end(blob)
            answer = {i: self._hot[i][1] for i in ids if i in self._hot}
            while len(self._hot) > HOT_ENTRIES:
                self._hot.popitem(last=False)
        # A blob may have lost its last reference since its row was read.
        now = datetime.datetime.now(datetime.UTC)
        return {i: answer.get(i) or Usage(0, [], now) for i in ids}


_FILTER = """(CAST(:state AS smallint) IS NULL OR b.state = :state) AND b.reference_count >= :min"""

# The edge is found first and bounds the page: rows that come between two statements are neither skipped nor doubled.
_ID_EDGE = text("SELECT id FROM blobs WHERE id > :after ORDER BY id OFFSET :walk - 1 LIMIT 1")
_ID_RANGE = "b.id > :after AND (CAST(:edge AS bigint) IS NULL OR b.id <= :edge)"
_BY_ID = text(f"""
SELECT {_ROW} FROM blobs b WHERE {_ID_RANGE} AND {_FILTER} ORDER BY b.id LIMIT :limit
""")

_UNREFERENCED_EDGE = text("""
SELECT unreferenced_since, id FROM blobs
WHERE unreferenced_since IS NOT NULL AND (unreferenced_since, id) > (:since, :after)
ORDER BY unreferenced_since, id OFFSET :walk - 1 LIMIT 1
""")
_UNREFERENCED = text(f"""
SELECT {_ROW} FROM blobs b
WHERE b.unreferenced_since IS NOT NULL AND (b.unreferenced_since, b.id) > (:since, :after)
AND (CAST(:edge_id AS bigint) IS NULL OR (b.unreferenced_since, b.id) <= (CAST(:edge_since AS timestamptz), :edge_id))
AND {_FILTER} ORDER BY b.unreferenced_since, b.id LIMIT :limit
""")

_TOP = text(f"""
SELECT {_ROW} FROM blobs b WHERE {_FILTER} ORDER BY b.reference_count DESC, b.id LIMIT :limit
""")

# Hot ones pass here and are judged by the caller.
_OF_POD = text(f"""
SELECT {_ROW} FROM (SELECT * FROM blobs b WHERE {_ID_RANGE} AND {_FILTER} ORDER BY b.id OFFSET 0) b
{_USAGE}
WHERE (
  b.reference_count + b.link_count > :live
  OR (SELECT p.id FROM pods p WHERE p.name = :pod) = ANY(used.pod_ids)
) ORDER BY b.id LIMIT :limit
""")


def _next_by_id(rows: Sequence[Row[Any]], limit: int, edge: int | None) -> str | None:
    """Go on after the last row of a full page, or after the last one that was looked at."""
    last = rows[-1].id if len(rows) == limit else edge
    return None if last is None else paging.encode("blobs", last)


def _is_hot(row: Row[Any]) -> bool:
    return bool(row.reference_count + row.link_count > LIVE_LIMIT)


def _blob(row: Row[Any], usage: Usage) -> Blob:
    return Blob(
        digest=format_digest(Digest(row.digest)),
        size=None if row.size < 0 else row.size,
        state=STATES[row.state],
        reference_count=row.reference_count,
        link_count=row.link_count,
        repository_count=usage.repositories,
        pods=usage.pods,
        first_seen=row.first_seen,
        unreferenced_since=row.unreferenced_since,
        pinned=False,
        counted_at=usage.counted_at,
    )


def _summary(row: Row[Any]) -> BlobSummary:
    return BlobSummary(
        digest=format_digest(Digest(row.digest)),
        size=None if row.size < 0 else row.size,
        state=STATES[row.state],
        reference_count=row.reference_count,
        link_count=row.link_count,
        first_seen=row.first_seen,
        unreferenced_since=row.unreferenced_since,
        pinned=False,
    )
