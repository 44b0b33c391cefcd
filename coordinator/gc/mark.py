"""The mark in the bucket: which database collects garbage there, on which instance, and in which epoch.

A database that went back in time may hold hides that were undone since, and a purge of one of them would delete a
served blob. A bucket that went back in time serves blobs that the database has as hidden. Two Baleens on one bucket
each find blobs unreferenced that only the other knows. The mark shows all of these before a run does anything
(domain/mark.py has the rules), and the scheduler checks it every few seconds (`watch`), so that status shows it at
once.

The mark is written under a lock of the database, in three steps: commit that it is about to be written, write it,
read it back and commit that. After a crash the bucket has an earlier mark, which is harmless. Each writer compares
first: else workers of an older database would conceal that it is older. On a bucket with versions each write adds one.
What the mark cannot show: a restore that became final after a copy of the database's files was made, whose process died
before it wrote the mark, with no write since.
"""

import json
from datetime import timedelta
from typing import Any, NamedTuple

from coordinator.db.connection import Connections
from coordinator.domain.mark import EPOCHS_LIMIT, NOBODY, ForeignBucketError, FoundMark, Instance, Mark, refusal
from coordinator.errors import UnavailableError, UsageError
from coordinator.gc import mark_table as table
from coordinator.gc.mark_table import LOCK_TIMEOUT_S, Claimed
from coordinator.storage.layout import MARK
from coordinator.storage.port import ObjectNotFoundError, ObjectReader, ObjectStore

__all__ = [
    "ForeignBucketError",
    "FoundMark",
    "begin",
    "check",
    "claim",
    "find",
    "preview",
    "record",
    "watch",
    "write_epoch",
]

#: Bytes of a mark.
_LIMIT = 1000


def begin(connections: Connections, store: ObjectStore, lock_s: float = LOCK_TIMEOUT_S) -> None:
    """Begin a new epoch, and write the mark; raises ForeignBucketError if the bucket is not this database's."""
    check(connections, store)
    with connections.use() as connection:
        table.advance(connection)
    write_epoch(connections, store, lock_s)


def check(connections: Connections, store: ObjectReader) -> tuple[FoundMark | None, Mark]:
    """Return the bucket's mark, None if there is none, and the database's own; raises ForeignBucketError.

    Writes the result for status.
    """
    with connections.use() as connection:
        return _compare(connection, store)


def watch(connections: Connections, store: ObjectStore) -> None:
    """Compare bucket and database for status, and write the mark if the bucket is behind. For the scheduler.

    Raises UnavailableError.
    """
    try:
        record(connections, store)
    except ForeignBucketError:
        return  # written for status, and it blocks GC


def record(connections: Connections, store: ObjectStore) -> None:
    """Write the present epoch to a bucket that has our mark. The first run writes the first mark.

    Raises ForeignBucketError and UnavailableError.
    """
    _, ours = check(connections, store)
    if ours.writing:
        write_epoch(connections, store)


def write_epoch(connections: Connections, store: ObjectStore, lock_s: float = LOCK_TIMEOUT_S) -> None:
    """Write this database's epoch to the mark, if the bucket does not have it.

    A writer that hangs for longer than `lock_s` seconds is ended.

    Raises ForeignBucketError and UnavailableError.
    """
    with connections.use() as connection:
        if _is_written(*_compare(connection, store)):
            return
        # Use one connection: another one may lead to another server.
        with table.write_lock(connection, lock_s):
            found, ours = _compare(connection, store)
            if not _is_written(found, ours):
                _write(connection, store, ours)


class Preview(NamedTuple):
    """What a claim would change."""

    ours: Mark
    found: FoundMark | None
    #: Why a claim is needed; None if it is not.
    refusal: str | None
    pods: int
    hides: int
    #: Blobs that are referenced.
    needed: int


def preview(connections: Connections, store: ObjectReader) -> Preview:
    """Return what a claim would change; changes nothing. Raises StillRunningError."""
    with connections.use() as connection:
        table.refuse_if_running(connection)
        ours, found = table.read(connection), find(store)
        return Preview(ours, found, refusal(found, ours, ours, MARK), *table.extent(connection))


def claim(connections: Connections, store: ObjectStore, why: str, topic: str, delete_bound: timedelta) -> Claimed:
    """Make the bucket this database's, as gc/mark_table.py `claim` describes; `topic` is that of the events."""
    with connections.use() as connection:
        # Fail before anything is changed if the store does not answer.
        find(store)
        with table.write_lock(connection, LOCK_TIMEOUT_S):
            claimed = table.claim(connection, why, topic, delete_bound)
            _write(connection, store, table.read(connection))
    return claimed


def find(store: ObjectReader) -> FoundMark | None:
    """Return the bucket's mark, None if there is none; NOBODY for one that is not readable or not valid."""
    try:
        body = json.loads(store.get(MARK, _LIMIT))
        instance = body.get("instance")
        found = FoundMark(
            str(body["database"]), int(body["epoch"]), None if instance is None else Instance.parse(str(instance))
        )
    except ObjectNotFoundError:
        return None
    except (UsageError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return NOBODY
    return found if 0 <= found.epoch < EPOCHS_LIMIT else NOBODY


def _compare(connection: Any, store: ObjectReader) -> tuple[FoundMark | None, Mark]:
    # Read the bucket between the two reads of the table: it is written after `writing` and before `written`.
    before = table.read(connection)
    found = find(store)
    ours = table.read(connection)
    why = refusal(found, before, ours, MARK)
    if why != ours.refused:
        table.note_refusal(connection, why)
    if why is not None:
        raise ForeignBucketError(why)
    return found, ours


def _is_written(found: FoundMark | None, ours: Mark) -> bool:
    return found == FoundMark(ours.database, ours.epoch, ours.current) and (ours.written >= ours.epoch or ours.unsure)


def _write(connection: Any, store: ObjectStore, ours: Mark) -> None:
    """Write the mark; the caller holds the lock."""
    earlier = table.begin(connection, ours.epoch)
    written = FoundMark(ours.database, ours.epoch, ours.current)
    body = {"database": ours.database, "epoch": ours.epoch, "instance": str(ours.current)}
    store.put(MARK, json.dumps(body).encode())
    if find(store) != written:
        raise UnavailableError(f"The bucket does not have the mark {MARK} that was just written: try again.")
    table.confirm(connection, ours.epoch, earlier)
