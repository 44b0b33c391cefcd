"""What a run of facts does to holdings and links.

Route: table/apply.py loads the part of the table that the facts touch (`Before`), `Fold` takes the facts in order,
and `Fold.changes` says what differs. Pure, so that one rule serves the worker, the simulation and the tests.

Rules (DESIGN, "The table: facts, not counters"):
- An addition is applied at once. A late or repeated one changes nothing.
- A removal is *doubtful*: the thing is kept until somebody has looked at the pod's own links in storage. Events say
  that things went which are still there (facts: a delete that storage refused, a blob's delete that looks like a
  manifest's), and a look is cheap.
- Where nobody can look, because the pod's links are not in shared storage, a registry's word is believed if the removal
  is newer than the addition by more than the clock-skew margin.
- A removal that is older than the addition by more than the margin was overtaken, and is dropped.
- An applied removal is remembered, so that an older addition which arrives after it is doubtful too, not silently
  kept for ever.
- Known state tells a blob's delete from a manifest's. If the repository has both, the removal is doubtful.

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
    """A delete event that was seen, or a link that was found gone; `at` is the registry's time of the event."""

    at: datetime
    doubtful: bool
    #: An event, or an operator, says so, and not only a look at storage.
    reported: bool = True
    #: Of one that nothing explains yet: when what vanished was added, by the registry's clock.
    added_at: datetime | None = None


class Verdict(Enum):
    APPLY = "apply"
    DOUBTFUL = "doubtful"
    OVERTAKEN = "overtaken"


def judge(added_at: datetime, removed_at: datetime, margin: timedelta) -> Verdict:
    """Decide whether a removal is of this addition. Both times are by registries' clocks."""
    if removed_at - added_at > margin:
        return Verdict.APPLY
    if added_at - removed_at > margin:
        return Verdict.OVERTAKEN
    # With no margin, equal times are left. A removal cannot precede what it removes, so a tie is no proof.
    return Verdict.DOUBTFUL


@dataclass(slots=True)
class Before:
    """The part of the table that the facts touch: holdings and links with the registry's time of the addition."""

    holdings: dict[Key, datetime] = field(default_factory=dict)
    links: dict[Key, datetime] = field(default_factory=dict)
    removals: dict[Key, Removal] = field(default_factory=dict)


class Difference(NamedTuple, Generic[T]):
    """How a mapping changed: new keys, keys with another value, keys that went."""

    added: dict[Key, T]
    changed: dict[Key, T]
    removed: list[Key]


class Changes(NamedTuple):
    holdings: Difference[datetime]
    links: Difference[datetime]
    removals: Difference[Removal]


class Fold:
    """Takes facts one by one. Holds no more than the facts' own keys."""

    __slots__ = ("_before", "_by_word", "_margin", "holdings", "links", "overtaken", "removals")

    def __init__(self, before: Before, margin: timedelta, by_word: Container[RepositoryName] = ()) -> None:
        """`by_word`: repositories whose links nobody can look at."""
        self._before = before
        self._margin = margin
        self._by_word = by_word
        self.holdings = dict(before.holdings)
        self.links = dict(before.links)
        self.removals = dict(before.removals)
        #: Removals that were older than what they would remove: counted, so that they can be seen.
        self.overtaken = 0

    def take(self, facts: Iterable[ManifestPushed | BlobLinked | Removed]) -> None:
        for fact in facts:
            if isinstance(fact, ManifestPushed):
                self._add(self.holdings, self.links, (fact.repository, fact.digest), fact.at)
            elif isinstance(fact, BlobLinked):
                self._add(self.links, self.holdings, (fact.repository, fact.digest), fact.at)
            else:
                self._remove((fact.repository, fact.digest), fact.at, entirely=fact.entirely)

    def changes(self) -> Changes:
        return Changes(
            _difference(self._before.holdings, self.holdings),
            _difference(self._before.links, self.links),
            _difference(self._before.removals, self.removals),
        )

    def _add(self, present: dict[Key, datetime], other: dict[Key, datetime], key: Key, at: datetime) -> None:
        known = present.get(key)
        if known is not None and known >= at:
            return
        present[key] = at
        removal = self.removals.get(key)
        if removal is not None:
            if min(at, other.get(key, at)) - removal.at > self._margin:
                # A later push settles the doubt about an earlier delete: the thing is there. If the digest is also
                # there in the other way, that must be later too, or the delete may have been of it.
                del self.removals[key]
            else:
                self.removals[key] = removal._replace(doubtful=True)

    def _remove(self, key: Key, at: datetime, *, entirely: bool) -> None:
        held, linked = self.holdings.get(key), self.links.get(key)
        if held is None and linked is None:
            self._remember(key, at, doubtful=False)
        elif held is not None and linked is not None:
            if entirely:
                # The later one first: a doubt about it outlasts that the other is surely gone.
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
        verdict = judge(added_at, at, self._margin)
        if verdict is Verdict.OVERTAKEN:
            self.overtaken += 1
            return
        if verdict is Verdict.APPLY and key[0] in self._by_word:
            del present[key]
            known = self.removals.get(key)
            # With nothing left there is nothing left to doubt.
            doubtful = key in self.holdings or key in self.links
            self.removals[key] = Removal(at if known is None else max(at, known.at), doubtful)
        else:
            self._remember(key, at, doubtful=True)

    def _remove_one_of_two(self, key: Key, at: datetime, added_at: datetime) -> None:
        """The digest is both held as a manifest and linked as a blob: which one went cannot be told.

        `added_at` is of the older one: the removal was overtaken only if it was by both.
        """
        if judge(added_at, at, self._margin) is Verdict.OVERTAKEN:
            self.overtaken += 1
        else:
            self._remember(key, at, doubtful=True)

    def _remember(self, key: Key, at: datetime, *, doubtful: bool) -> None:
        known = self.removals.get(key)
        if known is None:
            self.removals[key] = Removal(at, doubtful)
            return
        # An event of an earlier delete does not explain why a link that was made since then is gone.
        explained = known.added_at is None or judge(known.added_at, at, self._margin) is not Verdict.OVERTAKEN
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
