"""Apply a batch of facts to holdings and links, in memory.

Route: table/apply.py loads the part of the table that the facts touch (`Before`), `Fold` takes the facts in order,
and `Fold.changes` says what differs. Pure, so that one rule serves the worker, the simulation and the tests.

Rules (DESIGN, "The table: facts, not counters"):
- An addition is applied at once. A late or repeated one changes nothing.
- A removal is *doubtful*: the holding or link stays until the pod's own links in storage confirm the removal. Events
  report deletes of things that are still there (a delete that storage refused, a blob's delete that looks like a
  manifest's), and reading a link is cheap.
- If the pod's links cannot be read, nothing can confirm it. Then the removal is applied if it is newer than
  the addition by more than the clock-skew margin.
- A removal that is older than the addition by more than the margin was overtaken, and is dropped.
- An applied removal is remembered, so that an older addition that arrives later becomes doubtful and is not silently
  kept for ever.
- The known state distinguishes a blob's delete from a manifest's. If the repository has both, the removal is doubtful.

Invariant: a doubtful removal never removes.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from coordinator.domain.facts import BlobLinked, ManifestPushed, Removed
from coordinator.domain.names import Digest, RepositoryName

Key = tuple[RepositoryName, Digest]
T = TypeVar("T")


class Removal(NamedTuple):
    """A delete event, or a link that was found gone from storage; `at` is the registry's time of the event."""

    at: datetime
    doubtful: bool
    #: An event or an operator reported it; False if only storage shows it.
    reported: bool = True
    #: If nothing explains the removal yet: when the vanished link was added, by the registry's clock.
    added_at: datetime | None = None


class RemovalDecision(Enum):
    APPLY = "apply"
    DOUBTFUL = "doubtful"
    OVERTAKEN = "overtaken"


def decide_removal(added_at: datetime, removed_at: datetime, margin: timedelta) -> RemovalDecision:
    """Decide whether a removal applies to this addition. Both times are by registries' clocks."""
    if removed_at - added_at > margin:
        return RemovalDecision.APPLY
    if added_at - removed_at > margin:
        return RemovalDecision.OVERTAKEN
    # With a margin of zero, only equal times get here. Equal times prove no order.
    return RemovalDecision.DOUBTFUL


@dataclass(slots=True)
class Before:
    """The part of the table that the facts touch: holdings and links, with the registry's time of each addition."""

    holdings: dict[Key, datetime] = field(default_factory=dict)
    links: dict[Key, datetime] = field(default_factory=dict)
    removals: dict[Key, Removal] = field(default_factory=dict)


class Difference(NamedTuple, Generic[T]):
    """How a mapping changed: added keys, keys with a changed value, removed keys."""

    added: dict[Key, T]
    changed: dict[Key, T]
    removed: list[Key]


class Changes(NamedTuple):
    holdings: Difference[datetime]
    links: Difference[datetime]
    removals: Difference[Removal]


class Fold:
    """Apply facts one by one. Memory is bounded by the facts' own keys."""

    __slots__ = ("_before", "_by_report", "_margin", "holdings", "links", "overtaken", "removals")

    def __init__(self, before: Before, margin: timedelta, by_report: Container[RepositoryName] = ()) -> None:
        """`by_report`: repositories whose links cannot be read, so that their events must be trusted."""
        self._before = before
        self._margin = margin
        self._by_report = by_report
        self.holdings = dict(before.holdings)
        self.links = dict(before.links)
        self.removals = dict(before.removals)
        #: How many removals were older than what they would remove, for the metrics.
        self.overtaken = 0

    def apply(self, facts: Iterable[ManifestPushed | BlobLinked | Removed]) -> None:
        for fact in facts:
            if isinstance(fact, ManifestPushed):
                self._add_key(self.holdings, self.links, (fact.repository, fact.digest), fact.at)
            elif isinstance(fact, BlobLinked):
                self._add_key(self.links, self.holdings, (fact.repository, fact.digest), fact.at)
            else:
                self._remove_key((fact.repository, fact.digest), fact.at, entirely=fact.entirely)

    def changes(self) -> Changes:
        return Changes(
            _difference(self._before.holdings, self.holdings),
            _difference(self._before.links, self.links),
            _difference(self._before.removals, self.removals),
        )

    def _add_key(self, present: dict[Key, datetime], other: dict[Key, datetime], key: Key, at: datetime) -> None:
        known = present.get(key)
        if known is not None and known >= at:
            return
        present[key] = at
        removal = self.removals.get(key)
        if removal is not None:
            if min(at, other.get(key, at)) - removal.at > self._margin:
                # A later push resolves the doubtful removal: the digest is there. If the digest is also there in the
                # other role, that addition must be later, too, or the delete may have been of that role.
                del self.removals[key]
            else:
                self.removals[key] = removal._replace(doubtful=True)

    def _remove_key(self, key: Key, at: datetime, *, entirely: bool) -> None:
        held, linked = self.holdings.get(key), self.links.get(key)
        if held is None and linked is None:
            self._record_removal(key, at, doubtful=False)
        elif held is not None and linked is not None:
            if entirely:
                # The later one first: if its removal is doubtful, it stays so after the other is removed.
                first, second = self.holdings, self.links
                if held < linked:
                    first, second = second, first
                for present in (first, second):
                    self._remove_from(present, key, present[key], at)
                return
            self._remove_one_of_two(key, at, min(held, linked))
        elif held is not None:
            self._remove_from(self.holdings, key, held, at)
        elif linked is not None:
            self._remove_from(self.links, key, linked, at)

    def _remove_from(self, present: dict[Key, datetime], key: Key, added_at: datetime, at: datetime) -> None:
        result = decide_removal(added_at, at, self._margin)
        if result is RemovalDecision.OVERTAKEN:
            self.overtaken += 1
            return
        if result is RemovalDecision.APPLY and key[0] in self._by_report:
            del present[key]
            known = self.removals.get(key)
            # If the repository has neither any more, nothing is doubtful.
            doubtful = key in self.holdings or key in self.links
            self.removals[key] = Removal(at if known is None else max(at, known.at), doubtful)
        else:
            self._record_removal(key, at, doubtful=True)

    def _remove_one_of_two(self, key: Key, at: datetime, added_at: datetime) -> None:
        """Record a removal of a digest that is both a manifest and a blob: it is not known which one was deleted.

        `added_at` is of the older one: the removal was overtaken only if both are newer.
        """
        if decide_removal(added_at, at, self._margin) is RemovalDecision.OVERTAKEN:
            self.overtaken += 1
        else:
            self._record_removal(key, at, doubtful=True)

    def _record_removal(self, key: Key, at: datetime, *, doubtful: bool) -> None:
        known = self.removals.get(key)
        if known is None:
            self.removals[key] = Removal(at, doubtful)
            return
        # An event of an earlier delete does not explain why a link that was made since then is gone.
        explained = (
            known.added_at is None or decide_removal(known.added_at, at, self._margin) is not RemovalDecision.OVERTAKEN
        )
        reported = known.reported or explained
        if at > known.at or reported != known.reported:
            later = at > known.at
            self.removals[key] = Removal(
                max(at, known.at), doubtful if later else known.doubtful, reported, None if reported else known.added_at
            )


def _difference(before: dict[Key, T], after: dict[Key, T]) -> Difference[T]:
    added, changed = {}, {}
    for key, value in after.items():
        known = before.get(key)
        if known is None:
            added[key] = value
        elif known != value:
            changed[key] = value
    removed = [key for key in before if key not in after] if len(before) + len(added) != len(after) else []
    return Difference(added, changed, removed)
