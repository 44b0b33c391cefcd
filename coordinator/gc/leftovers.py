"""What a collection knows of leftovers: their kinds, how far a run is with each, and how it has them deleted.

Not here: finding and deleting them (leftovers/).
"""

import threading
from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from coordinator.gc.facts import FactsReader
from coordinator.jobs.work import Work


class Kind(StrEnum):
    """The names are fixed: progress, the table and settings have them."""

    UPLOADS = "uploads"
    PARTS = "parts"
    VERSIONS = "versions"
    LINKS = "links"
    COPIES = "copies"
    MARKERS = "markers"
    PROBES = "probes"


#: There are none, or they cannot be deleted safely, in a bucket that keeps no versions.
VERSIONED = frozenset({Kind.VERSIONS, Kind.LINKS, Kind.MARKERS, Kind.PROBES})


class State(StrEnum):
    """How far a run is with a kind."""

    NOT_DUE = "not due"
    #: The bucket keeps no versions.
    UNVERSIONED = "not without versions"
    WAITS = "waits"
    WALKS = "walks"
    DONE = "done"
    #: There may be more: as many as are watched at once are deleted.
    FULL = "more to come"
    #: Something holds collection since.
    HELD = "held"
    #: The store or the database did not answer.
    FAILED = "failed"


class Amounts(NamedTuple):
    """Of one kind: deleted, or in a dry run what would be."""

    things: int = 0
    #: Bytes.
    size: int = 0
    #: What the store did not delete, or what changed meanwhile: looked at again by the next run.
    left: int = 0
    #: Of which the table knows nothing: they stay.
    unknown: int = 0

    def __add__(self, other: object) -> "Amounts":
        assert isinstance(other, Amounts)
        return Amounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Tally:
    """What a run has done of each kind. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._amounts = dict.fromkeys(Kind, Amounts())
        self._states = dict.fromkeys(Kind, State.WAITS)

    def add(self, kind: Kind, amounts: Amounts) -> None:
        with self._lock:
            self._amounts[kind] += amounts

    def set(self, state: State, kinds: Iterable[Kind]) -> None:
        with self._lock:
            self._states.update(dict.fromkeys(kinds, state))

    def amounts(self, kind: Kind) -> Amounts:
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
    """Deletes them for a collection."""

    def settle(self, work: Work, request_bound: timedelta) -> None:
        """Look at the links that earlier runs have deleted, whatever holds collection. Raises UnavailableError."""

    def run(
        self, work: Work, read_facts: FactsReader, tally: Tally, *, versioned: bool, dry: bool, now: bool = False
    ) -> None:
        """Delete what is due, or only count it; with `now` also what was looked through lately.

        Raises TakenOverError, StoppedCollectingError, StoppedError.
        """
