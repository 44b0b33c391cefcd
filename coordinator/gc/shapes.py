"""What questions about garbage collection answer: runs, decisions, the plan, its controls, and a blob's story.

The names of reasons are domain/gc.py's, those of decisions table/ledger.py's. Bytes are bytes.
"""

import datetime as dt
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from coordinator.db.shapes import Next, Reference, StateName, View
from coordinator.domain.gc import Why
from coordinator.domain.story import Outcome
from coordinator.table.ledger import Decision

StepName = Literal["hide", "purge", "keep"]
RunState = Literal["waiting", "running", "done", "failed"]


class Switch(View, frozen=True, kw_only=True):
    """The kill switch."""

    enabled: bool
    why: Annotated[str, Meta(description="As it was said when it was turned.")]
    changed_at: Annotated[dt.datetime | None, Meta(description="Null while nobody has ever turned it.")]
    mark_pending: Annotated[
        bool,
        Meta(
            description="The mark in the bucket does not show the last change of pods, prefixes, the switch, holds or "
            "pins yet: a database from before it would not be noticed."
        ),
    ]


class Hold(View, frozen=True, kw_only=True):
    """While it is there nothing of any pod is collected: pods share the bytes."""

    scope: Annotated[str, Meta(description="A pod, or a prefix of repositories' names: for whom it is held.")]
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
    state: Annotated[StateName | None, Meta(description="Null while no registry has spoken of it.")]


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
    """A collection."""

    id: int
    state: RunState
    why: Annotated[str, Meta(description="Why it was asked for.")]
    dry_run: Annotated[bool, Meta(description="It changes nothing: `hidden` and `purged` are what would have been.")]
    beyond_limits: Annotated[str | None, Meta(description="Why it may take more than the limits let it.")]
    leftovers: Annotated[
        bool, Meta(description="It looks for what registries leave behind, whenever that was last done.")
    ]
    asked_at: dt.datetime
    began_at: dt.datetime | None
    finished_at: dt.datetime | None
    step: Annotated[str | None, Meta(description="What it does now; null while it waits.")]
    held_by: Annotated[list[str], Meta(description="Why it could take nothing away.")]
    planned: Annotated[Planned | None, Meta(description="What its plan found; null until then.")]
    hidden: Annotated[Amount, Meta(description="What registries see no more. The bytes are kept.")]
    purged: Annotated[Amount, Meta(description="What is deleted; the bytes are what storage gave back.")]
    restored: Annotated[int, Meta(description="Hides that were undone.")]
    kept: Annotated[dict[str, int], Meta(description="Blobs that it looked at and kept, by reason.")]
    progress: Annotated[dict[str, Any], Meta(description="All that it says of itself.")]
    error: Annotated[str | None, Meta(description="Why it was refused or failed, and what to do about it.")]


class RunPage(View, frozen=True, kw_only=True):
    items: list[Run]
    next: Next


class LedgerEntry(View, frozen=True, kw_only=True):
    """A decision about a blob, or what came of it."""

    id: int
    at: dt.datetime
    digest: str
    decision: Decision
    why: str
    run: Annotated[int | None, Meta(description="The run; null of what a worker or an operator did.")]


class DecisionPage(View, frozen=True, kw_only=True):
    items: list[LedgerEntry]
    next: Next


class PlanItem(View, frozen=True, kw_only=True):
    """What the plan says of one blob."""

    digest: str
    size: Annotated[int | None, Meta(description="Bytes; null while it is not known.")]
    step: StepName
    since: Annotated[dt.datetime, Meta(description="Unreferenced since, or hidden since (`hidden`).")]
    hidden: Annotated[bool, Meta(description="Registries are not served it already.")]
    why: Annotated[Why | None, Meta(description="Why it is kept; null if it goes.")]
    detail: Annotated[str | None, Meta(description="The same as a sentence.")]


class PlanTotals(View, frozen=True, kw_only=True):
    hide: Amount
    purge: Amount
    kept: Annotated[dict[str, Amount], Meta(description="Of what is hidden or unreferenced, by the reason.")]
    unfinished: Annotated[int, Meta(description="Hides that no run has ended: the next one undoes or ends them.")]


class PlanPage(View, frozen=True, kw_only=True):
    items: list[PlanItem]
    next: Next
    made_at: dt.datetime
    held_by: Annotated[list[str], Meta(description="Why nothing at all goes now; empty if nothing holds collection.")]
    hide_until: Annotated[
        dt.datetime | None, Meta(description="What is unreferenced since then or longer may be hidden; null: nothing.")
    ]
    purge_until: Annotated[
        dt.datetime | None, Meta(description="What is hidden since then or longer may be purged; null: nothing.")
    ]
    totals: Annotated[PlanTotals | None, Meta(description="Of the whole plan; with its first page only.")]


class Waiting(View, frozen=True, kw_only=True):
    """What is needed, or was asked back, and is not served."""

    hidden: Annotated[int, Meta(description="Served again within seconds.")]
    unsettled: Annotated[
        int, Meta(description="A delete of it may be on its way: served again for good once that can land no more.")
    ]
    purged: Annotated[int, Meta(description="Pushed again: its bytes have to be seen.")]


class ShownByOthers(View, frozen=True, kw_only=True):
    """Purges that were called off, since others than Baleen had let registries see the blob."""

    count: Annotated[int, Meta(description="Since the ledger begins; at most 100,000.")]
    last_at: dt.datetime | None
    last_digest: str | None


class CollectionStatus(View, frozen=True, kw_only=True):
    """How garbage collection is doing."""

    enabled: bool
    switch: Switch
    held_by: Annotated[list[str], Meta(description="Why nothing is collected now, the switch included.")]
    hide_until: Annotated[dt.datetime | None, Meta(description="As in the plan.")]
    purge_until: Annotated[dt.datetime | None, Meta(description="As in the plan.")]
    hide_waits_for: Annotated[str | None, Meta(description="What keeps `hide_until` where it is, if nothing holds it.")]
    purge_waits_for: Annotated[str | None, Meta(description="The same of `purge_until`.")]
    unreferenced: Annotated[Amount, Meta(description="What nothing references and is served. As of `counted_at`.")]
    unreferenced_since: Annotated[dt.datetime | None, Meta(description="Of the oldest of these that nobody pinned.")]
    hidden: Annotated[Amount, Meta(description="What is hidden, and not purged yet. As of `counted_at`.")]
    counted_at: dt.datetime
    restores_waiting: Waiting
    unfinished: Annotated[int, Meta(description="Hides that no run has ended: the next one undoes or ends them.")]
    shown_by_others: Annotated[ShownByOthers, Meta(description="An alarm, if there are new ones.")]
    open_run: Annotated[Run | None, Meta(description="The one that waits or runs.")]
    last_run: Annotated[Run | None, Meta(description="The last one that has ended and was no dry run.")]
    next_run_at: Annotated[
        dt.datetime | None, Meta(description="When a scheduler asks for the next; null while the switch is off.")
    ]


class Reason(View, frozen=True, kw_only=True):
    """One thing that keeps a blob."""

    why: Why
    detail: str
    until: Annotated[dt.datetime | None, Meta(description="When it keeps it no more, where that is known.")]


class DirectLink(View, frozen=True, kw_only=True):
    pod: str
    repository: str
    linked_at: dt.datetime
    counts_until: Annotated[dt.datetime | None, Meta(description="Null: until a delete event (pods of mode `link`).")]


class MountMade(View, frozen=True, kw_only=True):
    """A mount that was made, of the last days."""

    at: dt.datetime
    repository: str
    source: Annotated[str, Meta(description="The repository that the blob was mounted from.")]


class OpenHide(View, frozen=True, kw_only=True):
    """A hide that is not over."""

    id: int
    run: int
    intended_at: dt.datetime
    hidden_at: dt.datetime | None
    purging_at: dt.datetime | None
    bytes: Annotated[int | None, Meta(description="That it conceals.")]
    asked_at: Annotated[dt.datetime | None, Meta(description="When an operator asked for it back.")]
    asked_why: str | None


class Chapter(LedgerEntry, frozen=True, kw_only=True):
    """An entry of a blob's story, with what it was decided on."""

    evidence: dict[str, Any]


class Explanation(View, frozen=True, kw_only=True):
    digest: str
    state: StateName
    size: Annotated[int | None, Meta(description="Bytes; null while no registry has said.")]
    outcome: Annotated[Outcome, Meta(description="What is so now, in a word.")]
    summary: Annotated[str, Meta(description="The same as a sentence.")]
    reasons: Annotated[
        list[Reason], Meta(description="Everything that keeps it now; of what nothing keeps it is empty.")
    ]
    story: Annotated[list[str], Meta(description="How it came to that, in sentences, the newest last.")]
    reference_count: int
    link_count: int
    repository_count: int
    pods: list[str]
    references: Annotated[list[Reference], Meta(description="Some of the holdings that need it.")]
    links: Annotated[list[DirectLink], Meta(description="Some of the repositories that link it directly.")]
    mounts: Annotated[list[MountMade], Meta(description="The last mounts of it, the newest first.")]
    first_seen: dt.datetime
    unreferenced_since: dt.datetime | None
    pin: Pin | None
    hide: OpenHide | None
    history: Annotated[list[Chapter], Meta(description="What the ledger has of it, the newest last.")]
    earlier: Annotated[bool, Meta(description="The ledger has older entries that are left out.")]


class Undeletion(View, frozen=True, kw_only=True):
    """A blob that was asked back: workers bring it back."""

    digest: str
    state: Annotated[StateName, Meta(description="When it was asked for.")]
    pinned: bool
    detail: Annotated[str, Meta(description="What happens now.")]


def amount(told: Any) -> Amount:
    """Read an amount of a run's progress."""
    return msgspec.convert(told, Amount) if told else Amount()
