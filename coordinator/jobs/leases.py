"""Leases: of several schedulers one does a piece of work, and another when that one is gone.

A lease is an advisory lock of a session, on a connection of its own: it ends with the process, and with the connection.
The server ends the connection of a process that has said nothing for SILENCE_S, because it is stopped or its machine is
gone. Such a process may wake up and go on for a moment before it knows: a lease saves work, and protects nothing.
"""

import contextlib
import threading
import zlib
from typing import Any

import psycopg
import structlog

from coordinator.db.engine import connect
from coordinator.errors import UnavailableError

log = structlog.get_logger()

#: A constant of ours in the space of advisory locks of two numbers; the other is the lease's name.
LEASES = 0x62616C68
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

    def hold(self, name: str) -> bool:
        """Whether the lease is ours; it is taken if nobody has it. Raises UnavailableError."""
        with self._lock:
            connection = self._answering()
            if name in self._held:
                return True
            taken = self._ask(connection, "SELECT pg_try_advisory_lock(%s, %s)", LEASES, _number(name))
            if taken:
                self._held.add(name)
                log.info("lease taken", lease=name)
            return bool(taken)

    def beat(self) -> None:
        """Keep what is held: to be called every BEAT_S. Raises UnavailableError."""
        with self._lock:
            self._answering()

    def close(self) -> None:
        """Give up all leases."""
        with self._lock:
            self._drop()

    def _answering(self) -> psycopg.Connection[Any]:
        """Give a connection that was heard just now; what was held on another one is lost."""
        if self._connection is not None:
            with contextlib.suppress(UnavailableError):
                self._ask(self._connection, "SELECT 1")
                return self._connection
        try:
            self._connection = connect(self._url, name="baleen-scheduler-leases")
        except psycopg.Error as error:
            raise _away(error) from error
        self._ask(self._connection, f"SET idle_session_timeout = {self._silence_ms}")
        return self._connection

    def _ask(self, connection: psycopg.Connection[Any], statement: str, *values: int) -> Any:
        try:
            found = connection.execute(statement, values or None)
            row = found.fetchone() if found.description else None
        except psycopg.Error as error:
            self._drop()
            raise _away(error) from error
        return row[0] if row else None

    def _drop(self) -> None:
        self._held.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _number(name: str) -> int:
    """A name as PostgreSQL's integer."""
    return zlib.crc32(name.encode()) - 2**31


def _away(error: psycopg.Error) -> UnavailableError:
    return UnavailableError(f"The database does not answer ({type(error).__name__}): try again.")
