"""Encode and decode cursors of pages: the key of the last row that was returned or read, in base64.

A cursor names its list, so that one of another list is refused and not misread. It is not a secret and not signed: a
forged cursor shows nothing that the client could not request anyway.
"""

import base64
import binascii
from typing import Any, TypeVar

import msgspec

from coordinator.errors import UsageError

DEFAULT_LIMIT = 100
LIMIT = 1000
CURSOR_LENGTH_LIMIT = 2000
#: The greatest id, which no row has. Statements fail with a greater number.
ID_LIMIT = 2**63 - 1

Key = TypeVar("Key")


def encode_cursor(name: str, key: Any) -> str:
    """Make a cursor for the list `name` that continues after `key`."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((name, key))).decode().rstrip("=")


def decode_cursor(name: str, cursor: str | None, kind: type[Key]) -> Key | None:
    """Return the key in a cursor of the list `name`, None without one; raises UsageError for anything else."""
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        of, raw_key = msgspec.msgpack.decode(raw, type=tuple[str, Any])
        key = msgspec.convert(raw_key, kind)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise UsageError("The cursor is malformed: pass `next` of the previous page unchanged.") from error
    if of != name or (isinstance(key, int) and key > ID_LIMIT):
        raise UsageError("The cursor belongs to another list: start again without it.")
    return key
