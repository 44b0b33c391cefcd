"""Pods, and what stands in the way of garbage collection for each.

Route: `holds` gathers, for each pod, everything that is open; pods and status show it in sentences.
Every count is over a partial index that holds only what is open, but for repositories (an index-only count).
Dead letters of pods that are no longer registered are shown by the status alone.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.db.queries import paging
from coordinator.db.queries.session import reading
from coordinator.db.queries.views import Gaps, Pod, PodPage
from coordinator.domain.names import PodName
from coordinator.errors import NotFoundError


class Open(NamedTuple):
    """What is not settled for one pod."""

    dead_letters: int = 0
    gaps: int = 0
    oldest_gap: dt.datetime | None = None
    doubtful_removals: int = 0
    unread_manifests: int = 0

    def reasons(self) -> list[str]:
        """Say why garbage collection may not run for the pod; empty if nothing is open."""
        told = (
            (self.dead_letters, "open dead letter", "retry or discard with `baleen dead-letters`"),
            (self.gaps, "gap in which events may be lost", "a reconcile of the pod settles it"),
            (self.doubtful_removals, "doubtful removal", "settled by a look at the pod's links in storage"),
            (self.unread_manifests, "held manifest that could not be read", "tried again by the worker"),
        )
        return [f"{n} {what}{'' if n == 1 else 's'}: {remedy}" for n, what, remedy in told if n]


_OPEN = text("""
SELECT p.name, 'dead_letters' AS what, count(*) AS n, NULL::timestamptz AS oldest
FROM dead_letters d JOIN pods p ON p.name = d.pod WHERE d.settled_at IS NULL GROUP BY 1
UNION ALL
SELECT p.name, 'gaps', count(*), min(g.noticed_at)
FROM gaps g JOIN pods p ON p.id = g.pod_id WHERE g.settled_at IS NULL GROUP BY 1
UNION ALL
SELECT p.name, 'doubtful_removals', count(*), NULL
FROM removals x JOIN repositories r ON r.id = x.repository_id JOIN pods p ON p.id = r.pod_id
WHERE x.doubtful_since IS NOT NULL GROUP BY 1
UNION ALL
SELECT p.name, 'unread_manifests', count(DISTINCT m.id), NULL
FROM manifests m
JOIN repository_manifests h ON h.manifest_id = m.id
JOIN repositories r ON r.id = h.repository_id
JOIN pods p ON p.id = r.pod_id
WHERE m.refs IS NULL GROUP BY 1
""")
_ORPHANS = text("""
SELECT count(*) FROM dead_letters d
WHERE settled_at IS NULL AND NOT EXISTS (SELECT FROM pods p WHERE p.name = d.pod)
""")

_POD = """
SELECT p.name, p.mode, p.linker, p.registries, p.created_at,
       ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id ORDER BY prefix) AS prefixes,
       (SELECT count(*) FROM repositories r WHERE r.pod_id = p.id) AS repositories
FROM pods p
"""
_ONE = text(f"{_POD} WHERE p.name = :name")
_PAGE = text(f'{_POD} WHERE p.name > :after COLLATE "C" ORDER BY p.name COLLATE "C" LIMIT :limit')


async def holds(connection: AsyncConnection) -> dict[str, Open]:
    """Return what is open, for each pod that has any."""
    found: dict[str, Open] = {}
    for row in await connection.execute(_OPEN):
        values: dict[str, Any] = {row.what: row.n}
        if row.what == "gaps":
            values["oldest_gap"] = row.oldest
        found[row.name] = found.get(row.name, Open())._replace(**values)
    return found


async def orphaned_dead_letters(connection: AsyncConnection) -> int:
    """Count open dead letters of pods that are not registered any more."""
    return int(await connection.scalar(_ORPHANS) or 0)


async def pod(engine: AsyncEngine, name: PodName) -> Pod:
    """Return one pod; raises NotFoundError."""
    async with reading(engine) as connection:
        row = (await connection.execute(_ONE, {"name": name})).one_or_none()
        if row is None:
            raise NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
        return _pod(row, await holds(connection))


async def pods(engine: AsyncEngine, *, cursor: str | None = None, limit: int = paging.DEFAULT_LIMIT) -> PodPage:
    """Return a page of pods by name."""
    after = paging.decode("pods", cursor, str) or ""
    async with reading(engine) as connection:
        rows = (await connection.execute(_PAGE, {"after": after, "limit": limit})).all()
        held = await holds(connection)
    return PodPage(
        items=[_pod(row, held) for row in rows],
        next=paging.encode("pods", rows[-1].name) if len(rows) == limit else None,
    )


def _pod(row: Row[Any], held: Mapping[str, Open]) -> Pod:
    opened = held.get(row.name, Open())
    return Pod(
        name=row.name,
        mode=row.mode,
        linker=row.linker,
        prefixes=row.prefixes,
        registries=row.registries,
        created_at=row.created_at,
        repositories=row.repositories,
        gaps=Gaps(open=opened.gaps, oldest=opened.oldest_gap),
        dead_letters=opened.dead_letters,
        doubtful_removals=opened.doubtful_removals,
        unread_manifests=opened.unread_manifests,
        held_by=opened.reasons(),
    )
