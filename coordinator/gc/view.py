"""Show the plan of garbage collection page by page, and the state of collection.

A page of the plan reads hidden blobs, the longest hidden first, and then unreferenced ones, the longest unreferenced
first. It applies the rules (domain/gc.py) to each, with the same conditions as a run (gc/table.py). A run reads the
same lists, so it does what the plan says, unless storage shows otherwise.
Not here: facts about pods (conditions.py), runs (runs.py), doing it (collect.py).
"""

import asyncio
import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, text

from coordinator.db import paging
from coordinator.db.session import read_connection
from coordinator.db.threads import in_thread
from coordinator.domain.gc import (
    Facts,
    Kept,
    Policy,
    Why,
    block_reasons,
    hide_policy,
    hide_reasons,
    purge_policy,
    purge_reasons,
)
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, format_digest
from coordinator.gc import controls_view, runs
from coordinator.gc.conditions import ReadFacts
from coordinator.gc.shapes import (
    Amount,
    CollectionStatus,
    PlanItem,
    PlanPage,
    PlanTotals,
    ShownByOthers,
    StepName,
    Waiting,
)
from coordinator.gc.table import IS_CANDIDATE, IS_CONCEALED, IS_DUE, IS_NOT_PINNED, IS_WANTED, UNDISTURBED
from coordinator.table.ledger import Decision

#: Limit of counts that are seldom high.
COUNT_LIMIT = 100_000

_BEGINNING = dt.datetime(1, 1, 2, tzinfo=dt.UTC)

_DUE = text(f"""
SELECT h.id, b.digest, h.size, h.hidden_at AS at, p.digest IS NOT NULL AS pinned,
       b.unreferenced_since IS NULL AS needed, ({UNDISTURBED}) IS NOT TRUE AS disturbed
FROM hides h JOIN blobs b ON b.id = h.blob_id LEFT JOIN pins p ON p.digest = b.digest
WHERE {IS_DUE} AND (h.hidden_at, h.id) > (:at, :after) ORDER BY h.hidden_at, h.id LIMIT :limit
""")
_CANDIDATES = text(f"""
SELECT b.id, b.digest, b.size, b.unreferenced_since AS at, p.digest IS NOT NULL AS pinned, c.pod AS claimed_by
FROM blobs b LEFT JOIN pins p ON p.digest = b.digest LEFT JOIN claims c ON c.blob_id = b.id
WHERE {IS_CANDIDATE} AND (b.unreferenced_since, b.id) > (:at, :after) ORDER BY b.unreferenced_since, b.id LIMIT :limit
""")
_SUMS = "count(*) AS blobs, coalesce(sum({size}) FILTER (WHERE {size} > 0), 0) AS bytes"
_CANDIDATE_TOTALS = text(f"""
SELECT p.digest IS NOT NULL AS pinned, b.unreferenced_since <= CAST(:until AS timestamptz) AS passes,
       c.pod IS NOT NULL AS claimed, {_SUMS.format(size="b.size")}
FROM blobs b LEFT JOIN pins p ON p.digest = b.digest LEFT JOIN claims c ON c.blob_id = b.id
WHERE {IS_CANDIDATE} GROUP BY 1, 2, 3
""")
_DUE_TOTALS = text(f"""
SELECT p.digest IS NOT NULL AS pinned, b.unreferenced_since IS NULL AS needed,
       ({UNDISTURBED}) IS NOT TRUE AS disturbed, h.hidden_at <= CAST(:until AS timestamptz) AS passes,
       {_SUMS.format(size="h.size")}
FROM hides h JOIN blobs b ON b.id = h.blob_id LEFT JOIN pins p ON p.digest = b.digest
WHERE {IS_DUE} GROUP BY 1, 2, 3, 4
""")
_UNFINISHED = text("""
SELECT count(*) FROM (
  SELECT FROM hides h WHERE (hidden_at IS NULL OR purging_at IS NOT NULL) AND NOT EXISTS (
    SELECT FROM jobs j WHERE j.id = h.run_id AND j.taken = h.taken AND j.state = 'running') LIMIT :limit) unfinished
""")
_SHOWN = text(f"""
SELECT count(*) AS n FROM (SELECT FROM gc_ledger WHERE decision = '{Decision.SHOWN}' LIMIT :limit) shown
""")
_LAST_SHOWN = text(f"SELECT at, digest FROM gc_ledger WHERE decision = '{Decision.SHOWN}' ORDER BY id DESC LIMIT 1")
_OLDEST = text(f"""
SELECT b.unreferenced_since FROM blobs b WHERE {IS_CANDIDATE} AND {IS_NOT_PINNED}
ORDER BY b.unreferenced_since, b.id LIMIT 1
""")
_ALL_CANDIDATES = text(f"SELECT {_SUMS.format(size='b.size')}, now() AS counted_at FROM blobs b WHERE {IS_CANDIDATE}")
_ALL_HIDDEN = text(f"SELECT {_SUMS.format(size='h.size')} FROM hides h WHERE h.hidden_at IS NOT NULL")
_WAITING = text(f"""
SELECT state, count(*) AS n FROM (
  (SELECT b.state FROM blobs b WHERE {IS_WANTED} LIMIT :limit)
  UNION ALL
  (SELECT b.state FROM hides h JOIN blobs b ON b.id = h.blob_id
   WHERE h.asked_at IS NOT NULL AND b.unreferenced_since IS NOT NULL AND {IS_CONCEALED} LIMIT :limit)
) waiting GROUP BY state
""")
_LAST_ASKED = text("""
SELECT max(began_at) FROM jobs WHERE kind = 'gc' AND NOT coalesce((options ->> 'dry')::bool, false)
""")


class _PlanPosition(NamedTuple):
    """Where a page of the plan continues: in which list, and after which of its rows."""

    hidden: bool
    at: dt.datetime
    after: int


_FIRST, _UNREFERENCED = _PlanPosition(True, _BEGINNING, 0), _PlanPosition(False, _BEGINNING, 0)


def read_plan(
    engine: Engine,
    read_facts: ReadFacts,
    *,
    walk: int,
    step: StepName | None = None,
    despite_holds: bool = False,
    cursor: str | None = None,
    limit: int = paging.DEFAULT_LIMIT,
) -> PlanPage:
    """Return a page of the plan; with `despite_holds` as if nothing blocked GC.

    To find blobs of one step the page reads at most `walk` blobs.
    """
    place: _PlanPosition | None = paging.decode_cursor("plan", cursor, _PlanPosition) or _FIRST
    with read_connection(engine) as connection:
        facts = read_facts(connection)
        hide, purge = _make_policies(facts, despite_holds=despite_holds)
        totals = _read_totals(connection, hide, purge) if cursor is None else None
        items: list[PlanItem] = []
        walked = 0
        while place is not None and len(items) < limit and walked < max(walk, limit):
            # Without a filter every row is shown: read no more than fit.
            wanted = limit - len(items) if step is None else max(walk - walked, 1)
            rows = _read_rows(connection, place, wanted)
            walked += len(rows)
            for row in rows:
                item = _make_item(row, purge if place.hidden else hide, hidden=place.hidden)
                place = _PlanPosition(place.hidden, row.at, row.id)
                if step in {None, item.step}:
                    items.append(item)
                if len(items) == limit:
                    break
            if len(rows) < wanted and len(items) < limit:
                place = _UNREFERENCED if place.hidden else None
    return PlanPage(
        items=items,
        next=None if place is None else paging.encode_cursor("plan", place),
        made_at=facts.now,
        blocked_by=block_reasons(facts),
        hide_until=hide.until,
        purge_until=purge.until,
        totals=totals,
    )


def _make_policies(facts: Facts, *, despite_holds: bool) -> tuple[Policy, Policy]:
    hide, purge = hide_policy(facts), purge_policy(facts)
    if despite_holds:
        hide, purge = hide._replace(holds=()), purge._replace(holds=())
    return hide, purge


def _read_rows(connection: Connection, place: _PlanPosition, limit: int) -> Sequence[Row[Any]]:
    values = {"at": place.at, "after": place.after, "limit": limit}
    return connection.execute(_DUE if place.hidden else _CANDIDATES, values).all()


def _reasons_to_keep(row: Row[Any], policy: Policy, *, hidden: bool) -> Iterator[Kept]:
    if hidden:
        return purge_reasons(policy, row.at, needed=row.needed, disturbed=row.disturbed, pinned=row.pinned)
    return hide_reasons(policy, row.at, pinned=row.pinned, claimed_by=row.claimed_by)


def _make_item(row: Row[Any], policy: Policy, *, hidden: bool) -> PlanItem:
    kept = next(_reasons_to_keep(row, policy, hidden=hidden), None)
    return PlanItem(
        digest=format_digest(Digest(row.digest)),
        size=None if row.size is None or row.size < 0 else row.size,
        step="keep" if kept is not None else "purge" if hidden else "hide",
        since=row.at,
        hidden=hidden,
        why=None if kept is None else kept.why,
        detail=None if kept is None else kept.detail,
    )


def _read_totals(connection: Connection, hide: Policy, purge: Policy) -> PlanTotals:
    kept: dict[str, Amount] = {}
    go = {False: Amount(), True: Amount()}
    for hidden, policy, question in ((False, hide, _CANDIDATE_TOTALS), (True, purge, _DUE_TOTALS)):
        for row in connection.execute(question, {"until": policy.until}):
            why = _common_reason(row, policy, hidden=hidden)
            if why is None:
                go[hidden] = _add_row(go[hidden], row)
            else:
                kept[why.value] = _add_row(kept.get(why.value, Amount()), row)
    unfinished = int(connection.scalar(_UNFINISHED, {"limit": COUNT_LIMIT}) or 0)
    return PlanTotals(hide=go[False], purge=go[True], kept=kept, unfinished=unfinished)


def _common_reason(row: Row[Any], policy: Policy, *, hidden: bool) -> Why | None:
    """Return why a row's blobs are kept, as `_make_item` does for one; of the bounds, which ascend, the first."""
    if hidden and row.disturbed:
        return Why.NEEDED if row.needed else Why.DISTURBED
    if policy.holds:
        return Why.HELD
    if row.pinned:
        return Why.PINNED
    if not row.passes:
        return policy.bounds[0].kept.why
    return Why.CLAIMED if not hidden and row.claimed else None


def _add_row(amount: Amount, row: Row[Any]) -> Amount:
    return Amount(blobs=amount.blobs + row.blobs, bytes=amount.bytes + int(row.bytes))


class Figures(NamedTuple):
    """Totals of unreferenced and of hidden blobs."""

    unreferenced: Amount
    hidden: Amount
    counted_at: dt.datetime


class FiguresReader:
    """Counts totals, and caches them for one process: counting takes long if many blobs are hidden.

    They are cached for so many seconds, or `cost_factor` times as long as counting took, if that is more.
    """

    def __init__(self, engine: Engine, cached_s: float, cost_factor: float) -> None:
        self._engine = engine
        self._cached_s = cached_s
        self._cost_factor = cost_factor
        self._kept: tuple[float, float, Figures] | None = None
        self._reading = asyncio.Lock()

    async def read(self) -> Figures:
        clock = asyncio.get_running_loop().time
        # One caller counts, and the others wait for its result.
        async with self._reading:
            began = clock()
            if self._kept is not None:
                read_at, cost, figures = self._kept
                if began - read_at < max(self._cached_s, self._cost_factor * cost):
                    return figures
            figures = await in_thread(self._count)
            self._kept = clock(), clock() - began, figures
            return figures

    def _count(self) -> Figures:
        with read_connection(self._engine) as connection:
            candidates, hidden = connection.execute(_ALL_CANDIDATES).one(), connection.execute(_ALL_HIDDEN).one()
        return Figures(_add_row(Amount(), candidates), _add_row(Amount(), hidden), candidates.counted_at)


def count_waiting(connection: Connection) -> Waiting:
    """Count blobs that are needed, or were asked back, and are not served; each count up to COUNTED."""
    rows = connection.execute(_WAITING, {"limit": COUNT_LIMIT})
    counts: dict[int, int] = {row.state: row.n for row in rows}
    return Waiting(
        hidden=counts.get(BlobState.HIDDEN, 0),
        unfinished=counts.get(BlobState.HIDING, 0) + counts.get(BlobState.PURGING, 0),
        purged=counts.get(BlobState.PURGED, 0),
    )


def read_shown_by_others(connection: Connection) -> ShownByOthers:
    """Return the count of purges that were called off with an alarm, up to COUNTED, and the last of them."""
    count = int(connection.scalar(_SHOWN, {"limit": COUNT_LIMIT}) or 0)
    last = connection.execute(_LAST_SHOWN).one_or_none()
    return ShownByOthers(
        count=count,
        last_at=None if last is None else last.at,
        last_digest=None if last is None else format_digest(Digest(last.digest)),
    )


def read_oldest_candidate(connection: Connection) -> dt.datetime | None:
    """Return the earliest `unreferenced_since` of candidates that are not pinned; None if there are none."""
    found: dt.datetime | None = connection.scalar(_OLDEST)
    return found


def read_collection_status(
    engine: Engine, read_facts: ReadFacts, counted: Figures, every: dt.timedelta
) -> CollectionStatus:
    with read_connection(engine) as connection:
        facts = read_facts(connection)
        switch = controls_view.read_switch_on(connection)
        last_asked: dt.datetime | None = connection.scalar(_LAST_ASKED)
        due = facts.now if last_asked is None else max(facts.now, last_asked + every)
        hide, purge = hide_policy(facts), purge_policy(facts)
        return CollectionStatus(
            enabled=switch.enabled,
            switch=switch,
            blocked_by=block_reasons(facts),
            hide_until=hide.until,
            purge_until=purge.until,
            hide_waits_for=hide.waits_for,
            purge_waits_for=purge.waits_for,
            unreferenced=counted.unreferenced,
            unreferenced_since=read_oldest_candidate(connection),
            hidden=counted.hidden,
            counted_at=counted.counted_at,
            restores_waiting=count_waiting(connection),
            unfinished=int(connection.scalar(_UNFINISHED, {"limit": COUNT_LIMIT}) or 0),
            shown_by_others=read_shown_by_others(connection),
            open_run=runs.read_open_run(connection),
            last_run=runs.read_last_run(connection),
            next_run_at=due if switch.enabled else None,
        )
