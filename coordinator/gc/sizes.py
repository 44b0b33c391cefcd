"""How much garbage collection does at once, how often it reads facts again, and how long it pauses."""

from dataclasses import dataclass

from coordinator.gc.mark_table import LOCK_TIMEOUT_S
from coordinator.storage.port import DELETE_LIMIT


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of production."""

    #: Blobs that are read, and processed, together: as many as one request deletes.
    page: int = 1000
    #: Pages that are processed at once.
    pages_at_once: int = 4
    #: How old the facts may be when a page is decided, in seconds.
    facts_s: float = 2.0
    #: Failed pages in a row, because storage or database do not answer, before the run gives up; and the pause after
    #: the first of them, doubled with each.
    failures_limit: int = 5
    pause_s: float = 1.0
    #: Versions that the hides of one batch record; beyond it each records few. It bounds memory and the table's rows.
    batch_versions: int = 100_000
    #: States of its blob that every hide lists and records at least. Versions that it did not record stay below its
    #: marker, and the purge leaves them to a following hide (purge.py).
    versions_at_least: int = 100
    #: Targets of one request of a purge.
    deletes: int = DELETE_LIMIT
    #: A writer of the mark that hangs for longer is ended, in seconds.
    mark_lock_s: float = LOCK_TIMEOUT_S


PRODUCTION = Sizes()
