"""Pods, and what stands in the way of garbage collection for each.

Route: `holds` gathers, for each pod, everything that is open, `truths` what is known besides; pods and status show
it in sentences.
Every count is over a partial index that holds only what is open, but for repositories (an index-only count).
Dead letters of pods that are no longer registered are shown by the status alone.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.db.queries import paging
from coordinator.db.queries.session import reading
from coordinator.db.queries.views import Endpoint, Finding, Gaps, Pod, PodPage, Source
from coordinator.db.queries.watermarks import watermarks
from coordinator.domain.findings import Finding as Found
from coordinator.domain.findings import Verdict, hold, in_order
from coordinator.domain.names import PodName
from coordinator.domain.watermarks import PodWatermark, SourceView
from coordinator.errors import NotFoundError


class Open(NamedTuple):
    """What is not settled for one pod."""

    dead_letters: int = 0
    gaps: int = 0
    oldest_gap: dt.datetime | None = None
    doubtful_removals: int = 0
    unread_manifests: int = 0

    def reasons(self) -> list[str]:
        """Say what is open; empty if nothing is."""
        told = (
            (self.dead_letters, "open dead letter", "retry or discard with `baleen dead-letters`"),
            (self.gaps, "gap in which events may be lost", "a reconcile of the pod settles it"),
            (self.doubtful_removals, "doubtful removal", "settled by a look at the pod's links in storage"),
            (self.unread_manifests, "held manifest that could not be read", "tried again by the worker"),
        )
        return [f"{n} {what}{'' if n == 1 else 's'}: {remedy}" for n, what, remedy in told if n]


class Truth(NamedTuple):
    """What is known of one pod, and is not."""

    opened: Open
    mark: PodWatermark
    reconciled_at: dt.datetime | None
    #: When its first event was applied. What was pushed before is known by a later reconcile only.
    first_heard: dt.datetime | None = None
    #: When Kafka had what the last dead letter that was retried came to.
    retried_at: dt.datetime | None = None
    #: Of the last visit of a doctor.
    findings: Sequence[Found] = ()
    #: Processes that count and were first heard after it.
    newer: int = 0

    def reasons(self, pod: str) -> list[str]:
        """Say why garbage collection may not run for the pod; empty if it may."""
        told = self.opened.reasons()
        if self.reconciled_at is None:
            told.append(
                f"never reconciled: what it held before its first event is not known, `baleen pods reconcile {pod}`"
            )
        elif self.first_heard is not None and self.reconciled_at < self.first_heard:
            told.append("reconciled before its first event: what came in between is not known, a reconcile follows")
        if self.mark.waits_for:
            first, *others = self.mark.waits_for
            more = f" (and {len(others)} more: `baleen pods show {pod}`)" if others else ""
            told.append(f"watermark: {first}{more}")
        if self.retried_at is not None and (self.mark.at is None or self.mark.at <= self.retried_at):
            # Until then its events may wait in Kafka, behind a watermark that has passed them.
            told.append(
                "dead letter retried and perhaps not applied yet: the watermark has to pass "
                f"{self.retried_at:%Y-%m-%d %H:%M:%S} UTC"
            )
        examined = {found.check: found.verdict for found in self.findings}
        if (not_proved := hold(examined, pod, self.newer)) is not None:
            told.append(not_proved)
        return told


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

_RECONCILED = text("""
SELECT p.name, (SELECT max(j.began_at) FROM jobs j
                WHERE j.pod_id = p.id AND j.kind = 'reconcile' AND j.state = 'done') AS reconciled_at,
       (SELECT max(d.settled_at) FROM dead_letters d
        WHERE d.pod = p.name AND d.settled_at IS NOT NULL AND d.settlement = 'retried') AS retried_at,
       (SELECT min(s.first_seen) FROM sources s WHERE s.pod_id = p.id) AS first_heard
FROM pods p
""")

_FINDINGS = text("""
SELECT p.name, f."check", f.verdict, f.meaning, f.proof, f.mend, f.found_at
FROM findings f JOIN pods p ON p.id = f.pod_id
""")
_NEWER = text("""
SELECT p.name, count(*) AS n FROM sources s JOIN pods p ON p.id = s.pod_id
WHERE s.retired_at IS NULL AND s.dead_since IS NULL
  AND s.first_seen > (SELECT min(f.found_at) FROM findings f WHERE f.pod_id = p.id)
GROUP BY 1
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


async def truths(connection: AsyncConnection, silence: dt.timedelta) -> dict[str, Truth]:
    """Return what is known of every pod. A process that was not heard for `silence` is told as silent."""
    opened = await holds(connection)
    marks = await watermarks(connection, silence)
    examined = await _findings(connection)
    newer: dict[str, int] = {row.name: row.n for row in await connection.execute(_NEWER)}
    return {
        row.name: Truth(
            opened.get(row.name, Open()),
            marks[row.name],
            row.reconciled_at,
            row.first_heard,
            row.retried_at,
            examined.get(row.name, []),
            newer.get(row.name, 0),
        )
        for row in await connection.execute(_RECONCILED)
        # A pod that was added between the questions is told of the next time.
        if row.name in marks
    }


async def _findings(connection: AsyncConnection) -> dict[str, list[Found]]:
    """Return what doctors found out about each pod, in the order of the checks."""
    found: dict[str, list[Found]] = {}
    for row in await connection.execute(_FINDINGS):
        verdict = Verdict(row.verdict)
        each = Found(row.check, verdict, row.meaning, row.proof, row.mend, row.found_at)
        found.setdefault(row.name, []).append(each)
    return {name: in_order(each) for name, each in found.items()}


async def orphaned_dead_letters(connection: AsyncConnection) -> int:
    """Count open dead letters of pods that are not registered any more."""
    return int(await connection.scalar(_ORPHANS) or 0)


async def pod(engine: AsyncEngine, name: PodName, silence: dt.timedelta) -> Pod:
    """Return one pod; raises NotFoundError."""
    async with reading(engine) as connection:
        # The truths first, so that a pod that was removed meanwhile is not found.
        known = await truths(connection, silence)
        row = (await connection.execute(_ONE, {"name": name})).one_or_none()
        if row is None or name not in known:
            raise NotFoundError(f"There is no pod {name}: see `baleen pods list`.")
        return _pod(row, known[name])


async def pods(
    engine: AsyncEngine, silence: dt.timedelta, *, cursor: str | None = None, limit: int = paging.DEFAULT_LIMIT
) -> PodPage:
    """Return a page of pods by name."""
    after = paging.decode("pods", cursor, str) or ""
    async with reading(engine) as connection:
        rows = (await connection.execute(_PAGE, {"after": after, "limit": limit})).all()
        known = await truths(connection, silence)
    return PodPage(
        items=[_pod(row, known[row.name]) for row in rows if row.name in known],
        next=paging.encode("pods", rows[-1].name) if len(rows) == limit else None,
    )


def _pod(row: Row[Any], truth: Truth) -> Pod:
    opened = truth.opened
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
        reconciled_at=truth.reconciled_at,
        watermark=truth.mark.at,
        waits_for=truth.mark.waits_for,
        sources=[_source(source) for source in truth.mark.sources],
        endpoints=[Endpoint(**endpoint._asdict()) for endpoint in truth.mark.endpoints],
        findings=[_finding(found) for found in truth.findings],
        held_by=truth.reasons(row.name),
    )


def _finding(found: Found) -> Finding:
    return Finding(
        check=found.check,
        verdict=found.verdict.value,
        meaning=found.meaning,
        proof=found.proof,
        mend=found.mend,
        found_at=found.found_at,
    )


def _source(source: SourceView) -> Source:
    return Source(
        instance_id=source.instance_id,
        state=source.state.value,
        watermark=source.at,
        heard_at=source.heard_at,
        dead_since=source.dead_since,
        dead_why=source.dead_why,
        retired_at=source.retired_at,
        retired_why=source.retired_why,
        partitions={str(number): at for number, at in source.partitions.items()},
        dead_letters={str(number): at for number, at in source.dead_letters.items()},
    )
