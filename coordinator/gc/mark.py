"""The mark in the bucket: which database collects garbage there, on which instance, and in which epoch.

A database that went back in time may hold hides that were undone since, and a purge of one of them would delete a
served blob. A bucket that went back in time serves blobs that the database has as hidden. Two Baleens on one bucket
each find blobs unreferenced that only the other knows. The mark shows all of these before a run does anything
(domain/mark.py has the rules), and the scheduler checks it every few seconds (`record_mismatch`), so that status shows
it at once.

The mark is written under a lock of the database, in three steps: commit that it is about to be written, write it,
read it back and commit that. After a crash the bucket has an earlier mark, which is harmless. Each writer compares
first: else workers of an older database would conceal that it is older. On a bucket with versions each write adds one.

The bucket has the mark in two objects, and a writer compares the second after it has written the first. A bucket that
goes back between a comparison and the write after it would else lose the only object that shows that.

A reconcile writes it before it lists links and after that (`with_mark_moved`): a bucket that goes back to before the
listing has links again that the purges after it do not know.

A restore writes it before it is committed, and again after that (restore.py). What the mark cannot show: a copy of the
database's files that was made between the two, if the restore's process died before the second, with no write since.
Then a purge still looks before it deletes, and finds the blob served.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from coordinator.db.connection import Connections
from coordinator.domain.mark import (
    EPOCHS_LIMIT,
    MARK_OF_NOBODY,
    ForeignBucketError,
    FoundMark,
    Instance,
    Mark,
    describe_refusal,
)
from coordinator.errors import UnavailableError, UsageError
from coordinator.gc import mark_table as table
from coordinator.gc.mark_table import LOCK_TIMEOUT_S, ClaimResult
from coordinator.jobs.work import Ending, Runner, Work
from coordinator.storage.layout import MARK, MARK_COPY
from coordinator.storage.port import ObjectNotFoundError, ObjectReader, ObjectStore

__all__ = [
    "ForeignBucketError",
    "FoundMark",
    "begin_epoch",
    "check_mark",
    "claim_bucket",
    "find_mark",
    "preview_claim",
    "record_epoch",
    "record_mismatch",
    "with_mark_moved",
    "write_epoch",
]

#: Bytes of a mark.
_MARK_BYTES_LIMIT = 1000


def begin_epoch(connections: Connections, store: ObjectStore, lock_s: float = LOCK_TIMEOUT_S) -> None:
    """Begin a new epoch, and write the mark; raises ForeignBucketError if the bucket is not this database's."""
    check_mark(connections, store)
    with connections.use() as connection:
        table.advance_epoch(connection)
    write_epoch(connections, store, lock_s)


def check_mark(connections: Connections, store: ObjectReader) -> Mark:
    """Return the database's side of the mark if the bucket matches it; raises ForeignBucketError.

    Writes the result for status.
    """
    with connections.use() as connection:
        return _compare_with_database(connection, store)[1]


def record_mismatch(connections: Connections, store: ObjectStore) -> None:
    """Compare bucket and database for status, and write the mark if the bucket is behind. For the scheduler.

    Raises UnavailableError.
    """
    try:
        record_epoch(connections, store)
    except ForeignBucketError:
        return  # written for status, and it blocks GC


def record_epoch(connections: Connections, store: ObjectStore) -> None:
    """Write the present epoch to a bucket that has our mark. The first run writes the first mark.

    Raises ForeignBucketError and UnavailableError.
    """
    if check_mark(connections, store).writing:
        write_epoch(connections, store)


def with_mark_moved(runner: Runner, connections: Connections, store: ObjectStore) -> Runner:
    """Return `runner` with a move of the mark before its work, and another one before its last transaction.

    A mismatch does not stop it: it blocks GC until a claim, which asks for another reconcile of every pod. Raises
    UnavailableError, as the runner does.
    """

    def move() -> None:
        with connections.use() as connection:
            table.advance_epoch(connection)
        record_mismatch(connections, store)

    def run(work: Work) -> Ending:
        move()
        ending = runner(work)
        move()
        return ending

    return run


def write_epoch(connections: Connections, store: ObjectStore, lock_s: float = LOCK_TIMEOUT_S) -> None:
    """Write this database's epoch to the mark, if the bucket does not have it.

    A writer that hangs for longer than `lock_s` seconds is ended.

    Raises ForeignBucketError and UnavailableError.
    """
    with connections.use() as connection:
        if _is_written(*_compare_with_database(connection, store)):
            return
        # Use one connection: another one may lead to another server.
        with table.lock_mark(connection, lock_s):
            found, ours = _compare_with_database(connection, store)
            if not _is_written(found, ours):
                _write_mark(connection, store, ours, lambda: _compare_with_database(connection, store))


class ClaimPreview(NamedTuple):
    """What a claim would change."""

    ours: Mark
    found: FoundMark | None
    #: Why a claim is needed; None if it is not.
    refusal: str | None
    pods: int
    hides: int
    #: Blobs that are referenced.
    needed: int


def preview_claim(connections: Connections, store: ObjectReader) -> ClaimPreview:
    """Return what a claim would change; changes nothing. Raises StillRunningError."""
    with connections.use() as connection:
        table.refuse_if_running(connection)
        ours, found = table.read_mark(connection), _find_marks(store)
        return ClaimPreview(ours, found[MARK], _describe_refusal(found, ours, ours), *table.count_uncertain(connection))


def claim_bucket(
    connections: Connections, store: ObjectStore, why: str, topic: str, delete_bound: timedelta
) -> ClaimResult:
    """Make the bucket this database's, as gc/mark_table.py `claim_bucket` describes; `topic` is that of the events."""
    with connections.use() as connection:
        # Fail before anything is changed if the store does not answer.
        find_mark(store)
        with table.lock_mark(connection, LOCK_TIMEOUT_S):
            claimed = table.claim_bucket(connection, why, topic, delete_bound)
            # Whatever the bucket has is replaced.
            _write_mark(connection, store, table.read_mark(connection), lambda: None)
    return claimed


def find_mark(store: ObjectReader, key: str = MARK) -> FoundMark | None:
    """Return the bucket's mark, None if there is none; MARK_OF_NOBODY for one that is not readable or not valid."""
    try:
        body = json.loads(store.get(key, _MARK_BYTES_LIMIT))
        instance = body.get("instance")
        found = FoundMark(
            str(body["database"]), int(body["epoch"]), None if instance is None else Instance.parse(str(instance))
        )
    except ObjectNotFoundError:
        return None
    except (UsageError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return MARK_OF_NOBODY
    return found if 0 <= found.epoch < EPOCHS_LIMIT else MARK_OF_NOBODY


def _find_marks(store: ObjectReader) -> dict[str, FoundMark | None]:
    """Return what the bucket has, by key."""
    return {key: find_mark(store, key) for key in (MARK, MARK_COPY)}


def _compare_with_database(connection: Any, store: ObjectReader) -> tuple[dict[str, FoundMark | None], Mark]:
    # Read the bucket between the two reads of the table: it is written after `writing` and before `written`.
    before = table.read_mark(connection)
    found = _find_marks(store)
    ours = table.read_mark(connection)
    why = _describe_refusal(found, before, ours)
    if why != ours.refused:
        table.record_refusal(connection, why)
    if why is not None:
        raise ForeignBucketError(why)
    return found, ours


def _describe_refusal(found: dict[str, FoundMark | None], before: Mark, after: Mark) -> str | None:
    reasons = (describe_refusal(each, before, after, key) for key, each in found.items())
    return next((why for why in reasons if why is not None), None)


def _is_written(found: dict[str, FoundMark | None], ours: Mark) -> bool:
    present = FoundMark(ours.database, ours.epoch, ours.current)
    return set(found.values()) == {present} and (ours.written >= ours.epoch or ours.unsure)


def _write_mark(connection: Any, store: ObjectStore, ours: Mark, compare: Callable[[], object]) -> None:
    """Write the mark; the caller holds the lock. `compare` is called between the two writes."""
    earlier = table.begin_mark_write(connection, ours.epoch)
    written = FoundMark(ours.database, ours.epoch, ours.current)
    body = json.dumps({"database": ours.database, "epoch": ours.epoch, "instance": str(ours.current)}).encode()
    store.put(MARK_COPY, body)
    # If the bucket went back before that, only the other object shows it; if it does after this, only the copy.
    compare()
    store.put(MARK, body)
    missing = [key for key, found in _find_marks(store).items() if found != written]
    if missing:
        raise UnavailableError(f"The bucket does not have the mark {missing[0]} that was just written: try again.")
    table.confirm_mark_write(connection, ours.epoch, earlier)
