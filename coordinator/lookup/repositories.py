"""Show repositories: their manifests, blobs and bytes, and the bytes that no other repository needs.

A blob is unique to a repository if the repository's holdings and link account for all of the blob's counts. So other
holdings need not be read, and the cost is that of the repository's own references (2 µs each). A list computes the
figures for repositories until `Sizes.list_manifests` is used up, and leaves the others null.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from coordinator.db import paging
from coordinator.db.session import read_connection
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.own import is_own
from coordinator.errors import NotFoundError
from coordinator.lookup.shapes import Repository, RepositoryPage
from coordinator.lookup.sizes import Sizes

_COLUMNS = """r.id, r.name, p.name AS pod,
  (SELECT count(*) FROM repository_manifests h WHERE h.repository_id = r.id) AS manifests"""
_ONE = text(f"SELECT {_COLUMNS} FROM repositories r JOIN pods p ON p.id = r.pod_id WHERE r.name = :name")

_FIGURES = text("""
WITH own AS MATERIALIZED (
  SELECT repository_id, manifest_id FROM repository_manifests WHERE repository_id = ANY(CAST(:ids AS integer[]))
), needs (repository_id, blob_id, holdings, links) AS (
  SELECT repository_id, manifest_id, 1, 0 FROM own
  UNION ALL
  SELECT own.repository_id, x.blob_id, 1, 0
  FROM own
  CROSS JOIN LATERAL (SELECT refs FROM manifests WHERE id = own.manifest_id OFFSET 0) m
  CROSS JOIN LATERAL unnest(m.refs) x (blob_id)
  UNION ALL
  SELECT repository_id, blob_id, 0, 1 FROM repository_blobs WHERE repository_id = ANY(CAST(:ids AS integer[]))
), needed AS MATERIALIZED (
  SELECT repository_id, blob_id, sum(holdings) AS holdings, sum(links) AS links FROM needs GROUP BY 1, 2
)
SELECT n.repository_id, count(*) AS blobs, sum(b.size) AS logical_bytes,
       coalesce(sum(b.size) FILTER (WHERE b.reference_count = n.holdings AND b.link_count = n.links), 0) AS unique_bytes
FROM needed n
CROSS JOIN LATERAL (
  SELECT greatest(size, 0) AS size, reference_count, link_count FROM blobs WHERE id = n.blob_id OFFSET 0
) b
GROUP BY n.repository_id
""")

# `~<~` and its like compare by bytes, as the index over names does. A prefix `team` stands for `team` and `team/…`:
# the names below it begin with `team/` and sort before `team0`. The prefixes of one query do not overlap.
_UNDER = """
SELECT below.id, below.pod_id, below.name FROM unnest(CAST(:prefixes AS text[])) x (prefix) CROSS JOIN LATERAL (
  (SELECT id, pod_id, name FROM repositories WHERE name = x.prefix AND name ~>~ :after)
  UNION ALL
  (SELECT id, pod_id, name FROM repositories
   WHERE name ~>=~ (x.prefix || '/') AND name ~<~ (x.prefix || '0') AND name ~>~ :after
   ORDER BY name USING ~<~ LIMIT :limit)
) below
"""
_ALL = "SELECT id, pod_id, name FROM repositories WHERE name ~>~ :after"
_PAGE = f"""
SELECT {_COLUMNS} FROM (
  SELECT * FROM ({{source}}) s ORDER BY name USING ~<~ LIMIT :limit
) r JOIN pods p ON p.id = r.pod_id ORDER BY r.name USING ~<~
"""
_PAGE_OF_ALL = text(_PAGE.format(source=_ALL))
_PAGE_UNDER = text(_PAGE.format(source=_UNDER))
_OWNED = text("SELECT prefix FROM pod_prefixes WHERE prefix = ANY(CAST(:prefixes AS text[]))")
_PREFIXES = text("SELECT ARRAY(SELECT prefix FROM pod_prefixes WHERE pod_id = p.id) FROM pods p WHERE p.name = :pod")


def read_repository(engine: Engine, name: RepositoryName) -> Repository:
    """Return a repository with its figures; raises NotFoundError."""
    with read_connection(engine) as connection:
        row = connection.execute(_ONE, {"name": name}).one_or_none()
        if row is None:
            raise NotFoundError(f"No pod has reported repository {name}: check the name.")
        figures = _read_figures(connection, [row.id])
    return _make_repository(row, figures)


def read_repository_page(
    engine: Engine,
    sizes: Sizes,
    *,
    pod: PodName | None = None,
    prefix: RepositoryName | None = None,
    cursor: str | None = None,
    limit: int = paging.DEFAULT_LIMIT,
) -> RepositoryPage:
    """Return a page of repositories in the order of their names' bytes, without those that Baleen made."""
    values: dict[str, Any] = {"after": paging.decode_cursor("repositories", cursor, str) or "", "limit": limit}
    with read_connection(engine) as connection:
        if pod is None and prefix is None:
            rows = connection.execute(_PAGE_OF_ALL, values).all()
        else:
            prefixes = _read_prefixes(connection, pod, prefix)
            rows = connection.execute(_PAGE_UNDER, values | {"prefixes": prefixes}).all()
        own = _find_own(connection, rows)
        shown = [row for row in rows if row.id not in own]
        budget, chosen = sizes.list_manifests, []
        for row in shown:
            if row.manifests <= budget:
                budget -= row.manifests
                chosen.append(row.id)
        figures = _read_figures(connection, chosen)
    return RepositoryPage(
        items=[_make_repository(row, figures) for row in shown],
        next=paging.encode_cursor("repositories", rows[-1].name) if len(rows) == limit else None,
    )


def _find_own(connection: Connection, rows: Sequence[Row[Any]]) -> set[int]:
    """Return the ids of those that Baleen itself made."""
    named = [row for row in rows if is_own(RepositoryName(row.name), {row.name.rpartition("/")[0]})]
    if not named:
        return set()
    above = [row.name.rpartition("/")[0] for row in named]
    owned = set(connection.scalars(_OWNED, {"prefixes": above}).all())
    return {row.id for row in named if is_own(RepositoryName(row.name), owned)}


def _read_prefixes(connection: Connection, pod: PodName | None, prefix: str | None) -> list[str]:
    """Return the prefixes to list: those of the pod, narrowed to the requested one."""
    if pod is None:
        return [] if prefix is None else [prefix]
    row = connection.execute(_PREFIXES, {"pod": pod}).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
    own: list[str] = list(row[0])
    if prefix is None:
        return own
    # A pod's repositories are below its prefixes, so list the narrower of the two.
    if any(f"{prefix}/".startswith(f"{each}/") for each in own):
        return [prefix]
    return [each for each in own if each.startswith(f"{prefix}/")]


def _read_figures(connection: Connection, ids: Sequence[int]) -> dict[int, Row[Any]]:
    if not ids:
        return {}
    rows = connection.execute(_FIGURES, {"ids": list(ids)}).all()
    found: dict[int, Any] = dict.fromkeys(ids)
    return found | {row.repository_id: row for row in rows}


def _make_repository(row: Row[Any], figures: dict[int, Any]) -> Repository:
    known, of = row.id in figures, figures.get(row.id)
    nothing = 0 if known else None
    return Repository(
        name=row.name,
        pod=row.pod,
        manifests=row.manifests,
        blobs=nothing if of is None else of.blobs,
        logical_bytes=nothing if of is None else int(of.logical_bytes),
        unique_bytes=nothing if of is None else int(of.unique_bytes),
    )
