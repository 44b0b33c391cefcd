"""The kinds of leftovers, the progress of a run with each, and the interface that deletes them.

Not here: finding and deleting them (leftovers/).
"""

import threading
from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from coordinator.gc.conditions import FactsReader
from coordinator.jobs.work import Work


class LeftoverKind(StrEnum):
    """Kinds of leftovers. The names are fixed: progress, the table and settings use them."""

    UPLOADS = "uploads"
    PARTS = "parts"
    VERSIONS = "versions"
    LINKS = "links"
    COPIES = "copies"
    MARKERS = "markers"
    PROBES = "probes"


#: Kinds that a bucket without versions does not have, or from which they cannot be deleted safely.
VERSIONED_KINDS = frozenset({LeftoverKind.VERSIONS, LeftoverKind.LINKS, LeftoverKind.MARKERS, LeftoverKind.PROBES})


class LeftoverState(StrEnum):
    """The state of a kind in a run."""

    NOT_DUE = "not due"
    #: The bucket keeps no versions.
    UNVERSIONED = "not without versions"
    WAITS = "waits"
    WALKS = "walks"
    DONE = "done"
    #: There may be more: the limit of those watched at once is reached.
    FULL = "more to come"
    #: A hold blocks GC by now.
    HELD = "held"
    #: The store or the database did not answer.
    FAILED = "failed"


class Amounts(NamedTuple):
    """Counts of one kind: deleted or, in a dry run, what a run would delete."""

    things: int = 0
    #: Bytes.
    size: int = 0
    #: Not deleted by the store, or changed meanwhile: the next run tries again.
    left: int = 0
    #: Not known to the table: they stay.
    unknown: int = 0

    def __add__(self, other: object) -> "Amounts":
        assert isinstance(other, Amounts)
        return Amounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Tally:
    """The counts and states of all kinds in a run. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._amounts = dict.fromkeys(LeftoverKind, Amounts())
        self._states = dict.fromkeys(LeftoverKind, LeftoverState.WAITS)

    def add(self, kind: LeftoverKind, amounts: Amounts) -> None:
        with self._lock:
            self._amounts[kind] += amounts

    def set(self, state: LeftoverState, kinds: Iterable[LeftoverKind]) -> None:
        with self._lock:
            self._states.update(dict.fromkeys(kinds, state))

    def amounts(self, kind: LeftoverKind) -> Amounts:
        with self._lock:
            return self._amounts[kind]

    def progress(self) -> dict[str, Any]:
        with self._lock:
            return {
                kind.value: {
                    "state": self._states[kind].value,
                    "count": amounts.things,
                    "bytes": amounts.size,
                    "left": amounts.left,
                    "unknown": amounts.unknown,
                }
                for kind, amounts in self._amounts.items()
            }


class Leftovers(Protocol):
    """Deletes leftovers for a collection."""

    def resolve(self, work: Work, request_bound: timedelta) -> None:
        """Check the links that earlier runs deleted, also while GC is blocked. Raises UnavailableError."""

    def run(
        self, work: Work, read_facts: FactsReader, tally: Tally, *, versioned: bool, dry: bool, now: bool = False
    ) -> None:
        """Delete leftovers of the kinds that are due, or only count them; with `now` of all kinds.

        Raises TakenOverError, StoppedCollectingError, StoppedError.
        """
