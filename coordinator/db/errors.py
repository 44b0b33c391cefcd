"""Say which errors of the driver mean that the database is unavailable, for all connections in the same words.

Not here: a schema of another release, which only queries meet (session.py), and retries.
"""

import psycopg

from coordinator.errors import UnavailableError

#: Errors after which this connection or its server is unusable, and another may work. Among them: a process was paused
#: during its transaction, or a failover left the server read-only.
_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)
#: The server is available and will never accept this value (SQLSTATE class 54), though the driver classes these as
#: operational errors, too.
BEYOND_LIMITS = (
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
    psycopg.errors.TooManyColumns,
    psycopg.errors.TooManyArguments,
)


def unavailable(error: BaseException | None) -> UnavailableError | None:
    """Return what to raise for a driver's error if the caller may try again; None if it is a defect."""
    if isinstance(error, psycopg.errors.QueryCanceled):
        return UnavailableError("The query exceeded the database's time limit: narrow it, or try again later.")
    if isinstance(error, _AWAY) and not isinstance(error, BEYOND_LIMITS):
        return away(error)
    return None


def away(error: psycopg.Error) -> UnavailableError:
    return UnavailableError(
        f"The database does not answer ({type(error).__name__}): check BALEEN_DATABASE_URL, or try again."
    )
