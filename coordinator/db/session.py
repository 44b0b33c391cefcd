"""Give connections for queries and small changes, and translate the driver's errors.

A full pool, a statement that was cancelled by its timeout and an unavailable server (errors.py) are all
UnavailableError: the caller may try again. Any other error of the driver is a bug and is not translated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, exc

from coordinator.db.errors import away, unavailable
from coordinator.errors import UnavailableError

#: The type by which other packages, which do not import the driver, pass an engine on.
Database = Engine


@contextmanager
def translate_errors() -> Iterator[None]:
    try:
        yield
    except exc.TimeoutError as error:
        raise UnavailableError("All database connections are in use: try again in a moment.") from error
    except (exc.DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise UnavailableError("The database has another release's schema: run `baleen db migrate`.") from error
        if (unavailable_error := unavailable(cause)) is not None:
            raise unavailable_error from error
        # The server failed within (a damaged index, a catalogue that changes, a pooler): what callers do while the
        # database is away is right then, too. In a failed transaction the defect is ours.
        if isinstance(cause, psycopg.InternalError) and not isinstance(cause, psycopg.errors.InFailedSqlTransaction):
            raise away(cause) from error
        raise


@contextmanager
def read_connection(engine: Engine) -> Iterator[Connection]:
    """Yield a connection for single statements, each its own transaction: no BEGIN and ROLLBACK to wait for."""
    with translate_errors(), engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in one transaction that commits at the end."""
    with translate_errors(), engine.begin() as connection:
        yield connection


def driver_connection(connection: Connection) -> psycopg.Connection[Any]:
    """Return the driver's connection beneath, in the same transaction, for the statements of batches."""
    beneath: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return beneath
