"""Queries that show the GC controls. Not here: changing them (gc/controls.py)."""

from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from coordinator.db import paging
from coordinator.db.session import read_connection
from coordinator.domain.lifecycle import STATES
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.errors import NotFoundError
from coordinator.gc.controls import NEVER_SWITCHED_ON
from coordinator.gc.shapes import Hold, HoldPage, Pin, PinPage, Switch

#: Holds that are named in sentences; each hold blocks everything.
HOLDS_SHOWN = 20

_SWITCH = text("SELECT enabled, why, changed_at FROM gc_switch")
_PENDING = text("SELECT writing > 0 AND written < epoch FROM gc_mark")
_FIRST_HOLDS = text("SELECT scope, why, count(*) OVER () AS all_of_them FROM holds ORDER BY scope LIMIT :limit")
_HOLD = "SELECT scope, why, held_at FROM holds"
_HOLDS = text(f'{_HOLD} WHERE scope > :after COLLATE "C" ORDER BY scope COLLATE "C" LIMIT :limit')
_ONE_HOLD = text(f"{_HOLD} WHERE scope = :scope")
_PIN = "SELECT p.digest, p.why, p.pinned_at, b.state FROM pins p LEFT JOIN blobs b ON b.digest = p.digest"
_PINS = text(f"{_PIN} WHERE p.digest > :after ORDER BY p.digest LIMIT :limit")
_ONE_PIN = text(f"{_PIN} WHERE p.digest = :digest")


def read_switch_on(connection: Connection) -> Switch:
    row = connection.execute(_SWITCH).one_or_none()
    known = NEVER_SWITCHED_ON if row is None else row
    pending = bool(connection.scalar(_PENDING))
    return Switch(enabled=known.enabled, why=known.why, changed_at=known.changed_at, mark_pending=pending)


def hold_reasons(connection: Connection) -> list[str]:
    """Return sentences about holds; of many, the first ones and a count."""
    rows = connection.execute(_FIRST_HOLDS, {"limit": HOLDS_SHOWN}).all()
    sentences = [f"{row.scope} is held: {row.why}" for row in rows]
    if rows and rows[0].all_of_them > len(rows):
        sentences.append(f"{rows[0].all_of_them - len(rows)} more are held: `baleen gc holds`")
    return sentences


def read_switch(engine: Engine) -> Switch:
    with read_connection(engine) as connection:
        return read_switch_on(connection)


def read_hold(engine: Engine, scope: RepositoryName) -> Hold:
    """Return one hold; raises NotFoundError."""
    with read_connection(engine) as connection:
        row = connection.execute(_ONE_HOLD, {"scope": scope}).one_or_none()
    if row is None:
        raise NotFoundError(f"{scope} is not held: see `baleen gc holds`.")
    return Hold(scope=row.scope, why=row.why, held_at=row.held_at)


def read_holds(engine: Engine, *, cursor: str | None = None, limit: int = paging.DEFAULT_LIMIT) -> HoldPage:
    """Return a page of holds by scope."""
    after = paging.decode_cursor("holds", cursor, str) or ""
    with read_connection(engine) as connection:
        rows = connection.execute(_HOLDS, {"after": after, "limit": limit}).all()
    return HoldPage(
        items=[Hold(scope=row.scope, why=row.why, held_at=row.held_at) for row in rows],
        next=paging.encode_cursor("holds", rows[-1].scope) if len(rows) == limit else None,
    )


def read_pin(engine: Engine, digest: Digest) -> Pin:
    """Return one pin; raises NotFoundError."""
    with read_connection(engine) as connection:
        row = connection.execute(_ONE_PIN, {"digest": digest}).one_or_none()
    if row is None:
        raise NotFoundError(f"{format_digest(digest)} is not pinned: see `baleen gc pins`.")
    return _make_pin(row)


def read_pins(engine: Engine, *, cursor: str | None = None, limit: int = paging.DEFAULT_LIMIT) -> PinPage:
    """Return a page of pins by digest."""
    after = paging.decode_cursor("pins", cursor, bytes) or b""
    with read_connection(engine) as connection:
        rows = connection.execute(_PINS, {"after": after, "limit": limit}).all()
    return PinPage(
        items=[_make_pin(row) for row in rows],
        next=paging.encode_cursor("pins", bytes(rows[-1].digest)) if len(rows) == limit else None,
    )


def _make_pin(row: Row[Any]) -> Pin:
    return Pin(
        digest=format_digest(Digest(row.digest)),
        why=row.why,
        pinned_at=row.pinned_at,
        state=None if row.state is None else STATES[row.state],
    )
