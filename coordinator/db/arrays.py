"""Encode arrays as parameters, fast: psycopg's own dumper of lists takes longer than the database does.

Digests are sent in the binary format of bytea[] (PostgreSQL, src/backend/utils/adt/arrayfuncs.c, array_recv), which for
elements of one length is a single join; numbers and times are sent as array literals.
"""

import struct
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from coordinator.domain.names import Digest

_BYTEA, _BYTEA_ARRAY = 17, 1001
_LENGTH = struct.pack(">i", 32)

#: No registry has such times; a day from the ends of what Python knows, so that any time zone can show them.
EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)


class DigestArray(bytes):
    """The wire form of an array of digests."""


class _DigestArrayDumper(Dumper):
    format = Format.BINARY
    oid = _BYTEA_ARRAY

    def dump(self, obj: DigestArray) -> Buffer | None:
        return bytes(obj)


def register_dumper(connection: Connection[Any]) -> None:
    connection.adapters.register_dumper(DigestArray, _DigestArrayDumper)


def digest_array(values: Iterable[Digest]) -> DigestArray:
    """Encode digests as bytea[]."""
    values = list(values)
    if not values:
        return DigestArray(struct.pack(">iii", 0, 0, _BYTEA))
    head = struct.pack(">iiIii", 1, 0, _BYTEA, len(values), 1)
    return DigestArray(head + _LENGTH + _LENGTH.join(values))


def integer_array(values: Iterable[int]) -> str:
    """Format a literal for smallint[], int[] or bigint[]."""
    return f"{{{','.join(map(str, values))}}}"


def time_array(values: Iterable[datetime]) -> str:
    """Format a literal for timestamptz[]."""
    return f"{{{','.join([value.isoformat() for value in values])}}}"


def clamp_time(value: datetime) -> datetime:
    """Clamp a registry's time to what can be stored and read back, in UTC.

    PostgreSQL refuses zones more than 16 hours from UTC, and has years that Python does not.
    """
    if 1 < value.year < 9999:
        return value if value.tzinfo is UTC else value.astimezone(UTC)
    return EARLIEST if value.year == 1 else LATEST
