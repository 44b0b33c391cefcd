"""Give connections for queries and small changes, and translate the driver's errors.

A statement that was cancelled by its timeout, a full pool and an unavailable server are all UnavailableError: the
caller may try again. Any other error of the driver is a bug and is not translated.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from psycopg import errors
from sqlalchemy import Engine, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.errors import UnavailableError

#: The type by which other packages, which do not import the driver, pass an engine on.
Database = AsyncEngine
#: The same for jobs.
BlockingDatabase = Engine


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except exc.TimeoutError as error:
        raise UnavailableError("All database connections are in use: try again in a moment.") from error
    except exc.DBAPIError as error:
        if isinstance(error.orig, errors.QueryCanceled):
            raise UnavailableError(
                "The query exceeded the database's time limit: narrow it, or try again later."
            ) from error
        if isinstance(error.orig, errors.UndefinedTable | errors.UndefinedColumn):
            raise UnavailableError("The database has another release's schema: run `baleen db migrate`.") from error
        if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.InternalError):
            raise UnavailableError("The database does not answer: check BALEEN_DATABASE_URL, or try again.") from error
        raise


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection for single statements, each its own transaction: no BEGIN and ROLLBACK to wait for."""
    with translated():
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            yield connection


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection in one transaction that commits at the end."""
    with translated():
        async with engine.begin() as connection:
            yield connection
