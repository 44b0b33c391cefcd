"""Look up blobs and their users by digest, and browse blobs.

The cost of a look-up grows with the holdings that need the blob: they are found through the index over manifests'
references, and their repositories are counted, at 1 to 3 µs each. Blobs of a request are counted at once, those with
the fewest holdings first, up to `Sizes.live` for one and `Sizes.live_total` for all. The others are *hot*: hot_blobs.py
counts them, and `counted_at` says when that was.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Engine, Row, text

from coordinator.db import paging
from coordinator.db.session import read_connection
from coordinator.db.threads import in_thread
from coordinator.domain.lifecycle import STATE_NUMBERS, STATES, BlobState, StateName
from coordinator.domain.names import Digest, PodName, format_digest
from coordinator.errors import NotFoundError, UsageError
from coordinator.lookup.coalesce import Coalescer
from coordinator.lookup.hot_blobs import HotUsage, Usage
from coordinator.lookup.ranking import Ranking
from coordinator.lookup.shapes import Blob, BlobPage, BlobSummary
from coordinator.lookup.sizes import Sizes

LOOKUP_LIMIT = 1000
#: Holdings of a pod that are searched for hot blobs, whose own look-up costs too much: in all, and of one repository.
SEEN, SEEN_OF_REPOSITORY = 5_000, 50

Sort = Literal["first_seen", "unreferenced_since", "references"]

_ROW = """b.id, b.digest, b.size, b.state, b.reference_count, b.link_count, b.first_seen, b.unreferenced_since,
EXISTS (SELECT FROM pins WHERE pins.digest = b.digest) AS pinned"""

# OFFSET 0 keeps the planner from turning a walk along an index into a scan of a whole table. `b.live` is false for
# blobs that cost too much, and then nothing below is read.
_USAGE = """
LEFT JOIN LATERAL (
  SELECT count(*) AS repositories, array_agg(DISTINCT r.pod_id) AS pod_ids
  FROM (
    SELECT DISTINCT h.repository_id FROM (
      SELECT held.repository_id
      FROM manifests m
      CROSS JOIN LATERAL (SELECT repository_id FROM repository_manifests WHERE manifest_id = m.id OFFSET 0) held
      WHERE m.refs @> ARRAY[b.id] AND b.live
      UNION ALL
      SELECT repository_id FROM repository_manifests WHERE manifest_id = b.id AND b.live
      UNION ALL
      SELECT repository_id FROM repository_blobs WHERE blob_id = b.id AND b.live
    ) h
  ) d
  CROSS JOIN LATERAL (SELECT pod_id FROM repositories WHERE id = d.repository_id OFFSET 0) r
) used ON true
"""

_LOOKUP = text(f"""
SELECT b.position, {_ROW}, b.live, now() AS counted_at, used.repositories,
       ARRAY(SELECT p.name FROM pods p WHERE p.id = ANY(used.pod_ids) ORDER BY p.name) AS pods
FROM (
  SELECT wanted.position, found.*,
         found.reference_count + found.link_count <= :live
         AND sum(found.reference_count + found.link_count)
             OVER (ORDER BY found.reference_count + found.link_count, position) <= :total AS live
  FROM unnest(CAST(:digests AS bytea[])) WITH ORDINALITY wanted (digest, position)
  JOIN blobs found ON found.digest = wanted.digest
  OFFSET 0
) b
{_USAGE}
""")


class BlobQueries:
    """Look-ups, with a cache for hot blobs. One per process."""

    def __init__(self, engine: Engine, sizes: Sizes) -> None:
        self._engine = engine
        self._sizes = sizes
        self._hot = HotUsage(engine, sizes)
        self._ranking = Ranking(engine, sizes)
        self._single: Coalescer[Digest, Row[Any] | None] = Coalescer(self._look_up)

    async def lookup(self, digests: Sequence[Digest]) -> list[Blob | None]:
        """Return what is known of each digest, in order; None for one that no registry has reported."""
        if len(digests) > LOOKUP_LIMIT:
            raise UsageError(f"At most {LOOKUP_LIMIT} digests can be looked up at once.")
        rows = await self._look_up(digests)
        hot = await self._hot.count_usage([row for row in rows if row is not None and not row.live])
        return [None if row is None else _make_blob(row, hot) for row in rows]

    async def get(self, digest: Digest) -> Blob:
        """Return what is known of one digest; raises NotFoundError."""
        row = await self._single.ask(digest)
        if row is None:
            raise NotFoundError(f"No registry has reported {format_digest(digest)} yet: check the digest.")
        return _make_blob(row, {} if row.live else await self._hot.count_usage([row]))

    async def _look_up(self, digests: Sequence[Digest]) -> list[Row[Any] | None]:
        return await in_thread(self._read_rows, digests)

    def _read_rows(self, digests: Sequence[Digest]) -> list[Row[Any] | None]:
        values = {"digests": list(digests), "live": self._sizes.live, "total": self._sizes.live_total}
        rows: list[Row[Any] | None] = [None] * len(digests)
        with read_connection(self._engine) as connection:
            for row in connection.execute(_LOOKUP, values):
                rows[row.position - 1] = row
        return rows

    async def read_page(
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
                raise UsageError("A pod's blobs can only be sorted by first_seen: leave out `sort`.")
            return await self._browse_pod(pod, filters, cursor)
        if sort == "references":
            return await self._browse_ranked(filters, cursor)
        if sort == "unreferenced_since":
            return await in_thread(self._browse_unreferenced, filters, cursor)
        return await in_thread(self._browse_by_id, filters, cursor)

    def _browse_by_id(self, filters: dict[str, Any], cursor: str | None) -> BlobPage:
        after = paging.decode_cursor("blobs", cursor, int) or 0
        with read_connection(self._engine) as connection:
            edge = None
            if filters["state"] == BlobState.MISSING:
                # They have an index of their own.
                rows = connection.execute(_MISSING, filters | {"after": after}).all()
                return BlobPage(items=_make_summaries(rows), next=_next_cursor(rows, filters["limit"], None))
            if filters["state"] is not None or filters["min"] > 0:
                edge = connection.scalar(_ID_EDGE, {"after": after, "walk": self._sizes.walk})
            rows = connection.execute(_BY_ID, filters | {"after": after, "edge": edge}).all()
        return BlobPage(items=_make_summaries(rows), next=_next_cursor(rows, filters["limit"], edge))

    def _browse_unreferenced(self, filters: dict[str, Any], cursor: str | None) -> BlobPage:
        key = paging.decode_cursor("unreferenced", cursor, tuple[dt.datetime, int])
        since, after = key or (dt.datetime.min.replace(tzinfo=dt.UTC), 0)
        values = filters | {"since": since, "after": after, "walk": self._sizes.walk}
        with read_connection(self._engine) as connection:
            edge = connection.execute(_UNREFERENCED_EDGE, values).one_or_none()
            end = (None, None) if edge is None else (edge.unreferenced_since, edge.id)
            bounds = {"edge_since": end[0], "edge_id": end[1]}
            rows = connection.execute(_UNREFERENCED, values | bounds).all()
        last = edge
        if len(rows) == filters["limit"]:
            last = rows[-1]
        return BlobPage(
            items=_make_summaries(rows),
            next=None if last is None else paging.encode_cursor("unreferenced", (last.unreferenced_since, last.id)),
        )

    async def _browse_ranked(self, filters: dict[str, Any], cursor: str | None) -> BlobPage:
        after = paging.decode_cursor("ranking", cursor, tuple[int, int])
        ranked = await self._ranking.read_page(filters["state"], filters["min"], after, filters["limit"])
        # A ranking is cached, so read the present pins.
        pinned = await in_thread(self._read_pinned, [bytes(row.digest) for row in ranked.rows])
        return BlobPage(
            items=[_make_summary(row, pinned=bytes(row.digest) in pinned) for row in ranked.rows],
            next=None if ranked.next is None else paging.encode_cursor("ranking", ranked.next),
            counted_at=ranked.counted_at,
        )

    def _read_pinned(self, digests: Sequence[bytes]) -> set[bytes]:
        with read_connection(self._engine) as connection:
            return {bytes(row.digest) for row in connection.execute(_PINNED, {"digests": digests})}

    async def _browse_pod(self, pod: PodName, filters: dict[str, Any], cursor: str | None) -> BlobPage:
        """Read blobs in order, and keep those of the pod. Hot ones are looked up together."""
        after = paging.decode_cursor("blobs", cursor, int) or 0
        rows, seen, edge = await in_thread(self._read_page_of_pod, pod, filters, after)
        hot = await self._hot.count_usage([row for row in rows if not row.live and row.id not in seen])
        kept = [row for row in rows if row.live or row.id in seen or pod in hot[row.id].pods]
        return BlobPage(items=_make_summaries(kept), next=_next_cursor(rows, filters["limit"], edge))

    def _read_page_of_pod(
        self, pod: PodName, filters: dict[str, Any], after: int
    ) -> tuple[Sequence[Row[Any]], set[int], int | None]:
        """Return blobs of the pod and hot ones, the hot ones that it surely has, and where the page ends."""
        with read_connection(self._engine) as connection:
            if connection.scalar(text("SELECT id FROM pods WHERE name = :pod"), {"pod": pod}) is None:
                raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
            edge = connection.scalar(_ID_EDGE, {"after": after, "walk": self._sizes.pod_walk})
            values = filters | {"after": after, "edge": edge, "live": self._sizes.live, "pod": pod}
            rows = connection.execute(_OF_POD, values).all()
            unknown = [row.id for row in rows if not row.live]
            found = connection.execute(_SEEN_IN_POD, {"pod": pod, "ids": unknown}) if unknown else ()
            return rows, {row.id for row in found}, edge


_PINNED = text("SELECT digest FROM pins WHERE digest = ANY(CAST(:digests AS bytea[]))")

_FILTER = """(CAST(:state AS smallint) IS NULL OR b.state = :state) AND b.reference_count >= :min"""

# The edge is found first and bounds the page: rows that come between two statements are neither skipped nor doubled.
_ID_EDGE = text("SELECT id FROM blobs WHERE id > :after ORDER BY id OFFSET :walk - 1 LIMIT 1")
_ID_RANGE = "b.id > :after AND (CAST(:edge AS bigint) IS NULL OR b.id <= :edge)"
_BY_ID = text(f"""
SELECT {_ROW} FROM blobs b WHERE {_ID_RANGE} AND {_FILTER} ORDER BY b.id LIMIT :limit
""")

_MISSING = text(f"""
SELECT {_ROW} FROM blobs b
WHERE b.state = {BlobState.MISSING:d} AND b.id > :after AND b.reference_count >= :min ORDER BY b.id LIMIT :limit
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

# Hot blobs pass this filter; the caller checks them.
_OF_POD = text(f"""
SELECT {_ROW}, b.live FROM (
  SELECT b.*, b.reference_count + b.link_count <= :live AS live
  FROM blobs b WHERE {_ID_RANGE} AND {_FILTER} ORDER BY b.id OFFSET 0
) b
{_USAGE}
WHERE NOT b.live OR (SELECT p.id FROM pods p WHERE p.name = :pod) = ANY(used.pod_ids)
ORDER BY b.id LIMIT :limit
""")

# Most pods of any size have a blob that thousands of holdings need, among the first holdings of their repositories.
_SEEN_IN_POD = text(f"""
SELECT DISTINCT x.id FROM (
  SELECT held.manifest_id FROM repositories r JOIN pods p ON p.id = r.pod_id
  CROSS JOIN LATERAL (
    SELECT manifest_id FROM repository_manifests WHERE repository_id = r.id LIMIT {SEEN_OF_REPOSITORY}
  ) held
  WHERE p.name = :pod LIMIT {SEEN}
) first_ones
JOIN manifests m ON m.id = first_ones.manifest_id
CROSS JOIN LATERAL unnest(m.refs || m.id) x (id)
WHERE x.id = ANY(CAST(:ids AS bigint[]))
""")


def _next_cursor(rows: Sequence[Row[Any]], limit: int, edge: int | None) -> str | None:
    """Return the cursor of the next page: after the last row of a full page, else after the last blob that was read."""
    last = rows[-1].id if len(rows) == limit else edge
    return None if last is None else paging.encode_cursor("blobs", last)


def _make_blob(row: Row[Any], hot: Mapping[int, Usage]) -> Blob:
    usage = Usage(row.repositories, row.pods, row.counted_at) if row.live else hot[row.id]
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
        pinned=row.pinned,
        counted_at=usage.counted_at,
    )


def _make_summaries(rows: Sequence[Row[Any]]) -> list[BlobSummary]:
    return [_make_summary(row, pinned=row.pinned) for row in rows]


def _make_summary(row: Row[Any], *, pinned: bool) -> BlobSummary:
    return BlobSummary(
        digest=format_digest(Digest(row.digest)),
        size=None if row.size < 0 else row.size,
        state=STATES[row.state],
        reference_count=row.reference_count,
        link_count=row.link_count,
        first_seen=row.first_seen,
        unreferenced_since=row.unreferenced_since,
        pinned=pinned,
    )
