"""List the holdings that need a blob, in the order (manifest, repository).

There are two ways to find them. The index over references costs about 1 µs per manifest that lists the blob, however
few of them the page shows: it is used up to `Sizes.indexed`. Beyond that, manifests are read in the order of the page
and filtered, at most `Sizes.manifests_walk` of them: 8 ms, and the page may be short.
"""

from typing import Any, NamedTuple

from sqlalchemy import Engine, Row, text

from coordinator.db import paging
from coordinator.db.session import read_connection
from coordinator.domain.names import Digest, format_digest
from coordinator.domain.references import ManifestKind, reference_kind
from coordinator.errors import NotFoundError
from coordinator.lookup.shapes import Reference, ReferencePage
from coordinator.lookup.sizes import Sizes


class Key(NamedTuple):
    manifest: int
    repository: int


# OFFSET 0: else the planner may choose the walk as cheaper, and then walks without bound.
_BY_INDEX = """
(
  SELECT id, kind, refs FROM manifests WHERE refs @> ARRAY[CAST(:id AS bigint)] AND id >= :manifest
  UNION ALL
  SELECT id, kind, refs FROM manifests WHERE id = :id AND id >= :manifest
  OFFSET 0
)
"""
_BY_WALK = """
(
  SELECT id, kind, refs FROM manifests
  WHERE id >= :manifest AND (CAST(:edge AS bigint) IS NULL OR id < :edge) ORDER BY id OFFSET 0
)
"""
_PAGE = """
SELECT n.manifest_id, n.repository_id, n.kind, n.position, n.pushed_at, n.implied,
       b.digest, r.name AS repository, p.name AS pod
FROM (
  SELECT held.manifest_id, held.repository_id, held.pushed_at, held.implied, m.kind,
         array_position(m.refs, CAST(:id AS bigint)) AS position
  FROM {manifests} m JOIN repository_manifests held ON held.manifest_id = m.id
  WHERE (CAST(:id AS bigint) = ANY(m.refs) OR m.id = :id)
    AND (held.manifest_id, held.repository_id) > (:manifest, :repository)
  ORDER BY m.id, held.repository_id LIMIT :limit
) n
JOIN blobs b ON b.id = n.manifest_id
JOIN repositories r ON r.id = n.repository_id
JOIN pods p ON p.id = r.pod_id
ORDER BY n.manifest_id, n.repository_id
"""
_FROM_INDEX = text(_PAGE.format(manifests=_BY_INDEX))
_FROM_WALK = text(_PAGE.format(manifests=_BY_WALK))
_EDGE = text("SELECT id FROM manifests WHERE id >= :manifest ORDER BY id OFFSET :walk LIMIT 1")
_BLOB = text("SELECT id, reference_count FROM blobs WHERE digest = :digest")

#: Repository ids begin at 1, so this key is before every holding of its manifest.
BEFORE_REPOSITORIES = 0


def read_references(
    engine: Engine, sizes: Sizes, digest: Digest, *, cursor: str | None = None, limit: int = paging.DEFAULT_LIMIT
) -> ReferencePage:
    """Return a page of the holdings that need the blob."""
    manifest, repository = paging.decode_cursor("references", cursor, Key) or Key(0, BEFORE_REPOSITORIES)
    with read_connection(engine) as connection:
        blob = connection.execute(_BLOB, {"digest": digest}).one_or_none()
        if blob is None:
            raise NotFoundError(f"No registry has reported {format_digest(digest)} yet: check the digest.")
        walks = blob.reference_count > sizes.indexed
        key = {"manifest": manifest, "repository": repository, "id": blob.id, "limit": limit}
        edge = None
        if walks:
            # Find the edge first, to bound the page: rows that come between the two statements are not skipped.
            edge = connection.scalar(_EDGE, {"manifest": manifest, "walk": sizes.manifests_walk})
            rows = connection.execute(_FROM_WALK, key | {"edge": edge}).all()
        else:
            rows = connection.execute(_FROM_INDEX, key).all()
    after: Key | None = None
    if len(rows) == limit:
        after = Key(rows[-1].manifest_id, rows[-1].repository_id)
    elif edge is not None:
        after = Key(edge, BEFORE_REPOSITORIES)
    return ReferencePage(
        items=[_make_reference(row) for row in rows],
        next=None if after is None else paging.encode_cursor("references", after),
    )


def _make_reference(row: Row[Any]) -> Reference:
    kind = "self"
    if row.position is not None:
        kind = reference_kind(ManifestKind(row.kind), row.position - 1).name.lower()
    return Reference(
        pod=row.pod,
        repository=row.repository,
        manifest=format_digest(Digest(row.digest)),
        kind=kind,  # type: ignore[arg-type]
        since=row.pushed_at,
        implied=row.implied,
    )
