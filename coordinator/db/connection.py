"""Keep one connection for each thread, and replace it after the database was unavailable.

Not here: retrying what failed (the caller knows whether its work may be repeated).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from coordinator.db.engine import connect
from coordinator.db.errors import unavailable

#: Sets a new connection up.
Prepare = Callable[[psycopg.Connection[Any]], None]


class Connections:
    """One connection per thread. `prepare` sets a new one up."""

    def __init__(self, url: str, *, name: str, prepare: Prepare | None = None) -> None:
        self._url = url
        self._name = name
        self._prepare = prepare
        self._local = threading.local()
        self._open: set[psycopg.Connection[Any]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield this thread's connection; raises UnavailableError, and drops the connection, if it breaks in use."""
        try:
            yield self._connect()
        except psycopg.Error as error:
            if (away := unavailable(error)) is None:
                raise
            self._drop_connection()
            raise away from error

    def release(self) -> None:
        """Close this thread's connection, before the thread ends."""
        self._drop_connection()

    def close(self) -> None:
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _connect(self) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = connect(self._url, name=self._name)
            if self._prepare is not None:
                self._prepare(connection)
            with self._lock:
                self._open.add(connection)
            self._local.connection = connection
        return connection

    def _drop_connection(self) -> None:
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            with self._lock:
                self._open.discard(connection)
            connection.close()
