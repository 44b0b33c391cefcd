"""The mark in the bucket: which database collects garbage there, and how far that database was.

A database that was restored from a backup is older than the bucket. It may hold hides that were undone since, and a
purge of one of them would delete what is served. Two Baleens on one bucket each find unreferenced what only the other
knows. Both are seen by the mark before a run does anything:

    the bucket's mark                   means
    none, and none was ever left        the first run
    none, but one was left              another bucket, or an older state of it
    of another database                 somebody else collects here
    later than this database ever told  this database is older than the bucket
    else                                go on

It is written after each epoch, and that it is about to be told, is committed (db/mark.py), so that a crash leaves it
behind, which is harmless. Who restores asks, too, before it writes: workers of an older database would hide that it is.
What it cannot see: a restore that was final after the backup, whose epoch no process lived to tell, with no run and no
restore since.
"""

import json
from typing import NamedTuple

from coordinator.db import mark as table
from coordinator.db.connection import Connections
from coordinator.db.mark import Claimed, Mark
from coordinator.errors import BaleenError, UnavailableError, UsageError
from coordinator.storage.layout import MARK
from coordinator.storage.port import ObjectNotFoundError, ObjectReader, ObjectStore

#: Bytes of a mark.
_LIMIT = 1000
#: The mark is written so often, where others write it at the same time.
TELLS = 5
#: More than any database has.
_EPOCHS = 2**62
_CLAIM = (
    "Nothing is collected. See `The database was restored from a backup` in docs/RUNBOOK.md, and `baleen gc claim`."
)


class ForeignBucketError(BaleenError):
    """The bucket's history of collection is not this database's."""


class Found(NamedTuple):
    """The mark in a bucket."""

    database: str
    epoch: int


_NOBODY = Found("nobody", 0)


def begin(connections: Connections, store: ObjectStore) -> None:
    """Begin an epoch; raises ForeignBucketError if the bucket is not this database's."""
    check(connections, store)
    with connections.use() as connection, connection.transaction():
        table.advance(connection)
    tell(connections, store)


def check(connections: Connections, store: ObjectReader) -> tuple[Found | None, Mark]:
    """Return the bucket's mark, None if none was ever left, and the database's own; raises ForeignBucketError."""
    # The bucket first: it is told after the database.
    found = find(store)
    with connections.use() as connection:
        ours = table.read(connection)
    if found is None:
        if ours.told:
            raise ForeignBucketError(
                f"The bucket has lost the mark {MARK} that this database left there: it is another bucket, was "
                f"emptied, or is in an older state. {_CLAIM}"
            )
    elif found.database != ours.database:
        raise ForeignBucketError(
            f"Another database ({found.database}, by {MARK}) collects garbage in this bucket: each would delete what "
            f"only the other knows. End one of both. {_CLAIM}"
        )
    elif found.epoch > (ours.told or ours.epoch):
        # Its own epoch says nothing: an older database grows, too, with what its workers restore.
        raise ForeignBucketError(
            "The database is older than the bucket: it was restored from a backup, and may hold hides of what is "
            f"served again. {_CLAIM}"
        )
    return found, ours


def tell(connections: Connections, store: ObjectStore) -> None:
    """Tell the bucket how far this database is, if it does not know. Raises ForeignBucketError and UnavailableError."""
    found, ours = check(connections, store)
    if found is not None and found.epoch >= ours.epoch:
        return
    for _ in range(TELLS):
        _leave(connections, store, ours)
        # Another may have told more while this was on its way, and be overwritten by it.
        found, ours = check(connections, store)
        if found is not None and found.epoch >= ours.told:
            return
    raise UnavailableError(f"The bucket does not show the mark {MARK} that was just left there: try again.")


def claim(connections: Connections, store: ObjectStore, why: str, topic: str) -> Claimed:
    """Make the bucket this database's, with all that db/mark.py says; `topic` is that of the events."""
    found = find(store)
    with connections.use() as connection:
        claimed = table.claim(connection, why, topic, 0 if found is None else found.epoch)
        ours = table.read(connection)
    _leave(connections, store, ours)
    return claimed


def _leave(connections: Connections, store: ObjectStore, ours: Mark) -> None:
    """Write the mark."""

    def told() -> None:
        with connections.use() as connection:
            table.told(connection, ours.epoch)

    if ours.told:
        told()
    store.put(MARK, json.dumps({"database": ours.database, "epoch": ours.epoch}).encode())
    if not ours.told:
        # The first one: until it is there, it cannot have been lost.
        told()


def find(store: ObjectReader) -> Found | None:
    """Return the bucket's mark, None if there is none; one that says nothing is of nobody."""
    try:
        told = json.loads(store.get(MARK, _LIMIT))
        found = Found(str(told["database"]), int(told["epoch"]))
    except ObjectNotFoundError:
        return None
    except (UsageError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return _NOBODY
    return found if 0 <= found.epoch < _EPOCHS else _NOBODY
