"""Leases: one of several schedulers does a piece of work, and another takes over when that one is gone.

A lease is a session's advisory lock, on a connection of its own: it ends with the process, and with the connection. The
server closes a connection that is idle for SILENCE_S, because the process is stopped or its machine is gone. Such a
process may resume and continue for a moment before it notices: a lease saves work, and protects nothing.
"""

import contextlib
import threading
import zlib
from typing import Any

import psycopg
import structlog

from coordinator.db.engine import connect
from coordinator.db.errors import away
from coordinator.errors import UnavailableError

log = structlog.get_logger()

#: The first key of the advisory locks; the second is a hash of the lease's name.
LEASE_LOCK = 0x62616C68
#: Several times BEAT_S.
SILENCE_S = 30.0
BEAT_S = 5.0


class Leases:
    """The leases of one process, by name. Any thread may ask."""

    def __init__(self, url: str, *, silence: float = SILENCE_S) -> None:
        self._url = url
        self._silence_ms = round(silence * 1000)
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._held: set[str] = set()

    def take(self, name: str) -> bool:
        """Take the lease if it is free; return whether this process has it. Raises UnavailableError."""
        with self._lock:
            connection = self._working_connection()
            if name in self._held:
                return True
            taken = self._query(connection, "SELECT pg_try_advisory_lock(%s, %s)", LEASE_LOCK, _hash_name(name))
            if taken:
                self._held.add(name)
                log.info("lease taken", lease=name)
            return bool(taken)

    def beat(self) -> None:
        """Keep the leases alive: call it every BEAT_S. Raises UnavailableError."""
        with self._lock:
            self._working_connection()

    def close(self) -> None:
        """Release all leases."""
        with self._lock:
            self._drop_connection()

    def _working_connection(self) -> psycopg.Connection[Any]:
        """Return a connection that answers now; the leases of a broken one are lost."""
        if self._connection is not None:
            with contextlib.suppress(UnavailableError):
                self._query(self._connection, "SELECT 1")
                return self._connection
        try:
            self._connection = connect(self._url, name="baleen-scheduler-leases")
        except psycopg.Error as error:
            raise away(error) from error
        self._query(self._connection, f"SET idle_session_timeout = {self._silence_ms}")
        return self._connection

    def _query(self, connection: psycopg.Connection[Any], statement: str, *values: int) -> Any:
        try:
            found = connection.execute(statement, values or None)
            row = found.fetchone() if found.description else None
        except psycopg.Error as error:
            self._drop_connection()
            raise away(error) from error
        return row[0] if row else None

    def _drop_connection(self) -> None:
        self._held.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _hash_name(name: str) -> int:
    """Hash a name to a PostgreSQL integer."""
    return zlib.crc32(name.encode()) - 2**31
