"""List links that vanished without a delete event. Not here: accepting them (table/vanished_links.py)."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Engine, text

from coordinator.db import paging
from coordinator.db.session import read_connection
from coordinator.domain.names import Digest, PodName, RepositoryName, format_digest
from coordinator.errors import NotFoundError
from coordinator.pods.shapes import VanishedLink, VanishedPage

#: Links of a pod that a sentence names.
EXAMPLES = 3

_PAGE = text("""
SELECT r.id, r.name AS repository, x.digest, x.vanished_kind AS kind, x.vanished_since, x.vanished_added_at
FROM removals x JOIN repositories r ON r.id = x.repository_id JOIN pods p ON p.id = r.pod_id
WHERE p.name = :pod AND x.vanished_since IS NOT NULL AND (x.repository_id, x.digest) > (:number, :digest)
  AND (CAST(:repository AS text) IS NULL OR r.name = :repository)
ORDER BY x.repository_id, x.digest LIMIT :limit
""")
_HAS_POD = text("SELECT EXISTS (SELECT FROM pods WHERE name = :pod)")
_EXAMPLES = text("""
SELECT p.name AS pod, x.repository, x.digest FROM pods p CROSS JOIN LATERAL (
    SELECT r.name AS repository, x.digest FROM removals x JOIN repositories r ON r.id = x.repository_id
    WHERE r.pod_id = p.id AND x.vanished_since IS NOT NULL ORDER BY x.repository_id, x.digest LIMIT :limit
) x WHERE p.name = ANY(CAST(:pods AS text[])) ORDER BY 1, 2, 3
""")


class Key(NamedTuple):
    repository: int
    digest: bytes


def read_vanished_page(
    engine: Engine,
    pod: PodName,
    *,
    repository: RepositoryName | None = None,
    cursor: str | None = None,
    limit: int = paging.DEFAULT_LIMIT,
) -> VanishedPage:
    """Return a page of the pod's links that vanished; raises NotFoundError."""
    after = paging.decode_cursor("vanished", cursor, Key) or Key(-1, b"")
    with read_connection(engine) as connection:
        if not connection.scalar(_HAS_POD, {"pod": pod}):
            raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
        values = {"pod": pod, "number": after.repository, "digest": after.digest, "repository": repository}
        rows = connection.execute(_PAGE, values | {"limit": limit}).all()
    return VanishedPage(
        items=[
            VanishedLink(
                repository=row.repository,
                digest=format_digest(Digest(row.digest)),
                kind=row.kind,
                noticed_at=row.vanished_since,
                added_at=row.vanished_added_at,
            )
            for row in rows
        ],
        next=paging.encode_cursor("vanished", Key(rows[-1].id, bytes(rows[-1].digest))) if len(rows) == limit else None,
    )


def read_examples(connection: Connection, pods: Sequence[str]) -> dict[str, list[str]]:
    """Return a few vanished links of each pod, as `repository@digest`."""
    found: dict[str, list[str]] = {}
    for row in connection.execute(_EXAMPLES, {"pods": list(pods), "limit": EXAMPLES}):
        found.setdefault(row.pod, []).append(f"{row.repository}@{format_digest(Digest(row.digest))}")
    return found
