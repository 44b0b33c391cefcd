"""Shapes of API answers about garbage collection: runs, decisions, the plan and controls.

The names of reasons are in domain/gc.py, those of decisions in table/ledger.py. Sizes are in bytes.
"""

import datetime as dt
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordinator.db.shapes import Next, View
from coordinator.domain.gc import Why
from coordinator.domain.lifecycle import StateName
from coordinator.table.ledger import Decision

StepName = Literal["hide", "purge", "keep"]
RunState = Literal["waiting", "running", "done", "failed"]


class Switch(View, frozen=True, kw_only=True):
    """The kill switch."""

    enabled: bool
    why: Annotated[str, Meta(description="The reason that was given for the last change.")]
    changed_at: Annotated[dt.datetime | None, Meta(description="Null if it was never changed.")]
    mark_pending: Annotated[
        bool,
        Meta(
            description="The mark in the bucket does not show the last change of pods, prefixes, the switch, holds or "
            "pins yet: an older state of the database would not be noticed."
        ),
    ]


class Hold(View, frozen=True, kw_only=True):
    """A hold. Any hold stops all garbage collection, because pods share blobs."""

    scope: Annotated[str, Meta(description="The pod, or the prefix of repository names, for which it was set.")]
    why: str
    held_at: dt.datetime


class HoldPage(View, frozen=True, kw_only=True):
    items: list[Hold]
    next: Next


class Pin(View, frozen=True, kw_only=True):
    """A blob that is never collected."""

    digest: str
    why: str
    pinned_at: dt.datetime
    state: Annotated[StateName | None, Meta(description="Null while no registry has reported it.")]


class PinPage(View, frozen=True, kw_only=True):
    items: list[Pin]
    next: Next


class Amount(View, frozen=True, kw_only=True):
    blobs: int = 0
    bytes: int = 0


class Planned(View, frozen=True, kw_only=True):
    hide: Amount
    purge: Amount


class Run(View, frozen=True, kw_only=True):
    """A garbage collection run."""

    id: int
    state: RunState
    why: Annotated[str, Meta(description="Why it was requested.")]
    dry_run: Annotated[bool, Meta(description="It changes nothing: `hidden` and `purged` count what a run would do.")]
    beyond_limits: Annotated[str | None, Meta(description="Why it may take more than the limits permit.")]
    leftovers: Annotated[
        bool, Meta(description="It looks for leftovers of registries, also if a recent run has done so.")
    ]
    asked_at: dt.datetime
    began_at: dt.datetime | None
    finished_at: dt.datetime | None
    step: Annotated[str | None, Meta(description="What it does now; null while it waits.")]
    blocked_by: Annotated[list[str], Meta(description="Why it could neither hide nor purge anything.")]
    planned: Annotated[Planned | None, Meta(description="The amounts of its plan; null until the plan is made.")]
    hidden: Annotated[Amount, Meta(description="Blobs that registries no longer see. Their bytes are kept.")]
    purged: Annotated[Amount, Meta(description="Deleted blobs; the bytes are those freed in storage.")]
    restored: Annotated[int, Meta(description="Hides that were undone.")]
    kept: Annotated[dict[str, int], Meta(description="Blobs that it considered and kept, by reason.")]
    progress: Annotated[dict[str, Any], Meta(description="The run's whole progress.")]
    error: Annotated[str | None, Meta(description="Why it was refused or failed, and what to do about it.")]


class RunPage(View, frozen=True, kw_only=True):
    items: list[Run]
    next: Next


class LedgerEntry(View, frozen=True, kw_only=True):
    """A decision about a blob, or its result."""

    id: int
    at: dt.datetime
    digest: str
    decision: Decision
    why: str
    run: Annotated[int | None, Meta(description="The run; null if a worker or an operator did it.")]


class DecisionPage(View, frozen=True, kw_only=True):
    items: list[LedgerEntry]
    next: Next


class PlanItem(View, frozen=True, kw_only=True):
    """The plan's decision about one blob."""

    digest: str
    size: Annotated[int | None, Meta(description="Bytes; null while it is not known.")]
    step: StepName
    since: Annotated[dt.datetime, Meta(description="Unreferenced since, or hidden since (`hidden`).")]
    hidden: Annotated[bool, Meta(description="It is hidden: registries are not served it.")]
    why: Annotated[Why | None, Meta(description="Why it is kept; null if it is hidden or purged.")]
    detail: Annotated[str | None, Meta(description="The same as a sentence.")]


class PlanTotals(View, frozen=True, kw_only=True):
    hide: Amount
    purge: Amount
    kept: Annotated[dict[str, Amount], Meta(description="Hidden and unreferenced blobs that are kept, by reason.")]
    unfinished: Annotated[int, Meta(description="Unfinished hides: the next run undoes or finishes them.")]


class PlanPage(View, frozen=True, kw_only=True):
    items: list[PlanItem]
    next: Next
    made_at: dt.datetime
    blocked_by: Annotated[list[str], Meta(description="What blocks all garbage collection now; empty if nothing does.")]
    hide_until: Annotated[
        dt.datetime | None, Meta(description="Blobs unreferenced since then or longer may be hidden; null: none.")
    ]
    purge_until: Annotated[
        dt.datetime | None, Meta(description="Blobs hidden since then or longer may be purged; null: none.")
    ]
    totals: Annotated[PlanTotals | None, Meta(description="Totals of the whole plan; on its first page only.")]


class Waiting(View, frozen=True, kw_only=True):
    """Blobs that are needed, or were asked back, and are not served."""

    hidden: Annotated[int, Meta(description="Hidden blobs: served again within seconds.")]
    unfinished: Annotated[
        int, Meta(description="Blobs of which a delete may be under way: the restore is final once it cannot land.")
    ]
    purged: Annotated[int, Meta(description="Purged blobs that were pushed again: their bytes must be verified.")]


class ShownByOthers(View, frozen=True, kw_only=True):
    """Purges that were called off, because others than Baleen had made the blob visible to registries."""

    count: Annotated[int, Meta(description="Since the ledger begins; at most 100,000.")]
    last_at: dt.datetime | None
    last_digest: str | None


class CollectionStatus(View, frozen=True, kw_only=True):
    """The state of garbage collection."""

    enabled: bool
    switch: Switch
    blocked_by: Annotated[list[str], Meta(description="Why nothing is collected now, the switch included.")]
    hide_until: Annotated[dt.datetime | None, Meta(description="As in the plan.")]
    purge_until: Annotated[dt.datetime | None, Meta(description="As in the plan.")]
    hide_waits_for: Annotated[str | None, Meta(description="What limits `hide_until`, if nothing blocks GC.")]
    purge_waits_for: Annotated[str | None, Meta(description="What limits `purge_until`, if nothing blocks GC.")]
    unreferenced: Annotated[Amount, Meta(description="Blobs that are unreferenced and served. As of `counted_at`.")]
    unreferenced_since: Annotated[dt.datetime | None, Meta(description="Of the oldest of these that is not pinned.")]
    hidden: Annotated[Amount, Meta(description="Blobs that are hidden, and not purged yet. As of `counted_at`.")]
    counted_at: dt.datetime
    restores_waiting: Waiting
    unfinished: Annotated[int, Meta(description="Unfinished hides: the next run undoes or finishes them.")]
    shown_by_others: Annotated[ShownByOthers, Meta(description="An alarm, if there are new ones.")]
    open_run: Annotated[Run | None, Meta(description="The run that waits or runs.")]
    last_run: Annotated[Run | None, Meta(description="The last run that has ended and was no dry run.")]
    next_run_at: Annotated[
        dt.datetime | None, Meta(description="When a scheduler requests the next run; null while the switch is off.")
    ]


class Undeletion(View, frozen=True, kw_only=True):
    """A blob that was asked back: workers restore it."""

    digest: str
    state: Annotated[StateName, Meta(description="Its state at the time of the request.")]
    pinned: bool
    detail: Annotated[str, Meta(description="What happens now.")]


def parse_amount(value: Any) -> Amount:
    """Read an amount of a run's progress."""
    return msgspec.convert(value, Amount) if value else Amount()
