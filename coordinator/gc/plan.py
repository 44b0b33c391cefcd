"""The plan of a collection: for each blob whether it is hidden, purged or kept, and why. A plan is data.

A plan is made from the table alone, page by page: it needs no request to storage, and little memory. A run does what
the plan says, unless a look-up in storage, or an event that is applied meanwhile, contradicts it.
Not here: the rules (domain/gc.py), the plan that the API shows page by page (gc/view.py), by the same rules and the
same conditions (gc/table.py).
"""

import datetime
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from coordinator.db.connection import Connections
from coordinator.domain.gc import Amount, Facts, Kept, Policy, hide_policy, hide_reasons, purge_policy, purge_reasons
from coordinator.domain.names import Digest
from coordinator.gc import table as gc
from coordinator.gc.sizes import PRODUCTION
from coordinator.gc.table import BEGINNING, Candidate, Hide, Position

T = TypeVar("T", Candidate, Hide)


class Step(StrEnum):
    HIDE = "hide"
    PURGE = "purge"
    KEEP = "keep"


class PlannedStep(NamedTuple):
    """The plan's decision about one blob."""

    digest: Digest
    #: Bytes; -1 while it is not known.
    size: int
    step: Step
    #: t_u of a blob that is not hidden, t_h of one that is.
    since: datetime.datetime
    #: Why it is kept; None if it is hidden or purged.
    kept: Kept | None


class Totals(NamedTuple):
    hide: Amount
    purge: Amount


def decide_hide(policy: Policy, found: Candidate) -> PlannedStep:
    reasons = hide_reasons(policy, found.unreferenced_since, pinned=found.pinned, claimed_by=found.claimed_by)
    kept = next(reasons, None)
    return PlannedStep(
        found.digest, found.size, Step.HIDE if kept is None else Step.KEEP, found.unreferenced_since, kept
    )


def decide_purge(policy: Policy, found: Hide) -> PlannedStep:
    assert found.hidden_at is not None
    reasons = purge_reasons(
        policy, found.hidden_at, needed=found.needed, disturbed=found.disturbed, pinned=found.pinned
    )
    kept = next(reasons, None)
    size = -1 if found.size is None else found.size
    return PlannedStep(found.digest, size, Step.PURGE if kept is None else Step.KEEP, found.hidden_at, kept)


def count_totals(connections: Connections, facts: Facts) -> Totals:
    """Count what a run would hide and purge now."""
    to_hide, to_purge = hide_policy(facts).until, purge_policy(facts).until
    with connections.use() as connection:
        return Totals(
            Amount(0, 0) if to_hide is None else gc.count_to_hide(connection, to_hide),
            Amount(0, 0) if to_purge is None else gc.count_to_purge(connection, to_purge),
        )


def read_candidate_pages(
    connections: Connections, until: datetime.datetime | None = None, size: int = PRODUCTION.page
) -> Iterator[list[Candidate]]:
    """Give unreferenced blobs, the longest unreferenced first, up to a time."""
    return _read_pages(connections, lambda connection, after: gc.read_candidates(connection, after, until, size))


def read_due_pages(
    connections: Connections, until: datetime.datetime | None = None, size: int = PRODUCTION.page
) -> Iterator[list[Hide]]:
    """Give hides, the longest hidden first, up to a time."""
    return _read_pages(connections, lambda connection, after: gc.read_due_hides(connection, after, until, size))


def _read_pages(connections: Connections, read: Callable[[Any, Position], list[T]]) -> Iterator[list[T]]:
    after = BEGINNING
    while True:
        with connections.use() as connection:
            page = read(connection, after)
        if not page:
            return
        yield page
        after = page[-1].position


def walk_plan(connections: Connections, facts: Facts) -> Iterator[PlannedStep]:
    """Give the plan's decision about every hidden or unreferenced blob."""
    hide, purge = hide_policy(facts), purge_policy(facts)
    for due in read_due_pages(connections):
        yield from (decide_purge(purge, each) for each in due)
    for page in read_candidate_pages(connections):
        yield from (decide_hide(hide, each) for each in page)
