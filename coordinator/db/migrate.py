"""Migrate the database to the schema of this release, and read its revision.

Each migration runs in one transaction, waits at most LOCK_TIMEOUT for a lock and at most STATEMENT_TIMEOUT for a
statement: if it exceeds these, it fails and changes nothing.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from coordinator.db.engine import open_engine
from coordinator.errors import UnavailableError

LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "10min"
#: A fixed key for pg_advisory_xact_lock: one migration runs at a time.
MIGRATION_LOCK = 0x62616C65


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def upgrade(url: str, lock_timeout: str = LOCK_TIMEOUT) -> None:
    """Apply every migration that is not applied yet; safe to call from several processes at once.

    Raises UnavailableError, with nothing changed, if other connections lock a table for too long.
    """
    engine = open_engine(url, timeout_ms=0, name="baleen-migrate")
    config = _alembic_config()
    try:
        with engine.begin() as connection:
            # Waiting for another migrator is not waiting for a lock of the tables, so this comes before the timeout.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            connection.execute(text(f"SET LOCAL lock_timeout = '{lock_timeout}'"))
            connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise UnavailableError(
                f"Another connection held a lock on a table for {lock_timeout}. Nothing was changed: try again later."
            ) from error
        raise
    finally:
        engine.dispose()


def wanted_revision() -> str | None:
    """Return the revision that this release needs."""
    return ScriptDirectory.from_config(_alembic_config()).get_current_head()


def read_revision(connection: Connection) -> str | None:
    """Return the revision that the database has."""
    return MigrationContext.configure(connection).get_current_revision()
