"""Open connections to PostgreSQL, each with its timeouts.

`connect` opens every connection: those of an engine's pool, and those that a thread keeps (db/connection.py).
Not here: retries. A caller knows whether its work may be repeated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url

from coordinator.errors import SettingsError

CONNECT_TIMEOUT_S = 5
#: A longer query is cancelled, so that queries do not pile up.
QUERY_TIMEOUT_MS = 30_000
#: A batch takes milliseconds. A statement that takes longer is cancelled.
BATCH_TIMEOUT_MS = 60_000


def open_engine(url: str, *, name: str, pool_size: int = 2, timeout_ms: int = QUERY_TIMEOUT_MS) -> Engine:
    """Return a pool of connections for queries and small changes; any thread may use it."""
    _parse_url(url)
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(url, name=name, timeout_ms=timeout_ms, autocommit=False),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
    )


@contextmanager
def temporary_engine(url: str, *, name: str, timeout_ms: int = QUERY_TIMEOUT_MS) -> Iterator[Engine]:
    """Yield a pool of one connection, for one piece of work, and close it at the end."""
    made = open_engine(url, name=name, pool_size=1, timeout_ms=timeout_ms)
    try:
        yield made
    finally:
        made.dispose()


def connect(
    url: str, *, name: str = "baleen-worker", timeout_ms: int = BATCH_TIMEOUT_MS, autocommit: bool = True
) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection. With `autocommit`, each `with connection.transaction()` is one transaction."""
    return psycopg.connect(
        _parse_url(url).set(drivername="postgresql").render_as_string(hide_password=False),
        autocommit=autocommit,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name=name,
        # The locks of facts rely on each statement seeing what was committed before it (locks.py); a time is read
        # as UTC, so that none lies beyond what Python knows.
        options=f"-c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout=60000"
        " -c default_transaction_isolation=read\\ committed -c timezone=UTC",
        # A server that vanished without closing the connection is detected in seconds, not hours.
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=30_000,
    )


def _parse_url(url: str) -> Any:
    try:
        parsed = make_url(url)
    except Exception as error:
        raise SettingsError("BALEEN_DATABASE_URL is malformed: write postgresql://user@host:port/name.") from error
    if not parsed.drivername.startswith("postgres"):
        raise SettingsError("BALEEN_DATABASE_URL must be a postgresql:// URL.")
    return parsed
