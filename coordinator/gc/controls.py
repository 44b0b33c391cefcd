"""The GC controls: the kill switch, pins and holds. All fail closed: one that cannot be read stops collection.

They are read in the same transactions that act (gc/table.py), so that they take effect at once and in every process.
Each change is made within `changing`, or within `advancing` (table/epochs.py) on a connection of the caller's own: the
epoch advances, so that an older state of the database is noticed. An operator's decisions about a single blob are in
the ledger, too.
Not here: showing them (gc/controls_view.py), restoring an undeleted blob (gc/restore.py: only workers touch storage).
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from psycopg import Connection
from sqlalchemy import Engine

from coordinator.db.session import driver_connection
from coordinator.domain.lifecycle import CONCEALED, BlobState
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.domain.reasons import check_reason
from coordinator.errors import ConflictError, NotFoundError
from coordinator.table import epochs
from coordinator.table.epochs import advancing
from coordinator.table.ledger import Decision


class SwitchState(NamedTuple):
    enabled: bool
    why: str
    changed_at: datetime.datetime | None


#: The switch if it was never changed.
NEVER_SWITCHED_ON = SwitchState(enabled=False, why="it was never switched on: `baleen gc on --why …`", changed_at=None)

_SET_SWITCH = """
INSERT INTO gc_switch (enabled, why) VALUES (%s, %s)
ON CONFLICT (id) DO UPDATE SET enabled = excluded.enabled, why = excluded.why, changed_at = now()
"""
_SET_HOLD = "INSERT INTO holds (scope, why) VALUES (%s, %s) ON CONFLICT (scope) DO UPDATE SET why = excluded.why"
_DELETE_HOLD = "DELETE FROM holds WHERE scope = %s"
_SET_PIN = "INSERT INTO pins (digest, why) VALUES (%s, %s) ON CONFLICT (digest) DO UPDATE SET why = excluded.why"
_DELETE_PIN = "DELETE FROM pins WHERE digest = %s RETURNING why"
_WRITE_LEDGER = "INSERT INTO gc_ledger (digest, decision, why) VALUES (%s, %s, %s)"


def read_switch(connection: Connection[Any]) -> SwitchState:
    row = connection.execute("SELECT enabled, why, changed_at FROM gc_switch").fetchone()
    return NEVER_SWITCHED_ON if row is None else SwitchState(*row)


@contextmanager
def changing(engine: Engine) -> Iterator[Connection[Any]]:
    """Yield the driver's connection for a change, as table/epochs.py `epoch_transaction` does."""
    with epochs.epoch_transaction(engine) as connection:
        yield driver_connection(connection)


def set_switch(connection: Connection[Any], why: str, *, on: bool) -> None:
    """Turn the kill switch, with a connection of the caller's own."""
    with advancing(connection):
        put_switch(connection, why, on=on)


def put_switch(connection: Connection[Any], why: str, *, on: bool) -> None:
    """Turn the kill switch. Once an `off` is committed, no transaction permits a delete."""
    connection.execute(_SET_SWITCH, (on, check_reason(why)))


def put_hold(connection: Connection[Any], scope: RepositoryName, why: str) -> None:
    connection.execute(_SET_HOLD, (scope, check_reason(why)))


def remove_hold(connection: Connection[Any], scope: RepositoryName) -> None:
    """Raises NotFoundError."""
    if not connection.execute(_DELETE_HOLD, (scope,)).rowcount:
        raise NotFoundError(f"{scope} is not held: see `baleen gc holds`.")


def put_pin(connection: Connection[Any], digest: Digest, why: str) -> None:
    connection.execute(_SET_PIN, (digest, check_reason(why)))
    _write_ledger(connection, digest, Decision.PINNED, check_reason(why))


def remove_pin(connection: Connection[Any], digest: Digest) -> None:
    """Raises NotFoundError."""
    row = connection.execute(_DELETE_PIN, (digest,)).fetchone()
    if row is None:
        raise NotFoundError(f"{format_digest(digest)} is not pinned: see `baleen gc pins`.")
    _write_ledger(connection, digest, Decision.UNPINNED, f"it was pinned for: {row[0]}")


class UndeleteResult(NamedTuple):
    #: The blob's state at the time of the request.
    state: BlobState
    pinned: bool


def undelete(engine: Engine, digest: Digest, why: str, *, pin: bool) -> UndeleteResult:
    """Ask for a hidden blob back, whether or not anything needs it.

    Its time without references starts again, so that its hide is *disturbed*: a collection gets no more permits for it
    (gc/table.py). `pin` prevents that it is hidden again after the grace.
    Raises NotFoundError, and ConflictError for a blob that is not hidden, or whose bytes are deleted.
    """
    why = check_reason(why)
    with changing(engine) as connection:
        # Lock the blob first: all processes lock in this order.
        found = connection.execute("SELECT id, state FROM blobs WHERE digest = %s FOR NO KEY UPDATE", (digest,))
        row = found.fetchone()
        if row is None:
            raise NotFoundError(f"No registry has reported {format_digest(digest)} yet: check the digest.")
        blob, state = row[0], BlobState(row[1])
        if state is BlobState.PURGED:
            raise ConflictError(
                f"The bytes of {format_digest(digest)} are deleted: push it again. "
                f"`baleen blob explain {format_digest(digest)}` shows its history."
            )
        if state not in CONCEALED:
            raise ConflictError(
                f"{format_digest(digest)} is not hidden, it is {state.name.lower()}. To keep it, use `baleen pin`."
            )
        connection.execute(
            "UPDATE blobs SET unreferenced_since = clock_timestamp() WHERE id = %s AND unreferenced_since IS NOT NULL",
            (blob,),
        )
        connection.execute(
            "UPDATE hides SET asked_at = clock_timestamp(), asked_why = %s WHERE blob_id = %s", (why, blob)
        )
        _write_ledger(connection, digest, Decision.ASKED_BACK, why)
        if pin:
            # An existing pin keeps its reason.
            pinned = connection.execute(
                "INSERT INTO pins (digest, why) VALUES (%s, %s) ON CONFLICT DO NOTHING", (digest, f"undeleted: {why}")
            )
            if pinned.rowcount:
                _write_ledger(connection, digest, Decision.PINNED, f"undeleted: {why}")
        found = connection.execute("SELECT FROM pins WHERE digest = %s", (digest,))
        return UndeleteResult(state, found.fetchone() is not None)


def _write_ledger(connection: Connection[Any], digest: Digest, decision: Decision, why: str) -> None:
    connection.execute(_WRITE_LEDGER, (digest, decision.value, why))
