"""Connections that break in the middle of work: the caller is told that the database is away."""

import pytest

from coordinator.db.connection import Connections
from coordinator.errors import UnavailableError
from tests.table.harness import Table


def test_a_transaction_slept_through(table: Table) -> None:
    """A worker that was stopped within a transaction and woke up late is told that the database is away."""
    connections = Connections(table.url, name="sleeper")

    def sleep(setting: str) -> None:
        with connections.use() as connection:
            connection.execute(f"SET {setting} = 50")
            with connection.transaction():
                pid = connection.execute("SELECT pg_backend_pid()").fetchall()[0][0]
                while table.rows("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)):
                    pass
                connection.execute("SELECT 1")

    for setting in ("idle_in_transaction_session_timeout", "transaction_timeout"):
        with pytest.raises(UnavailableError):
            sleep(setting)
    connections.close()


def test_a_server_that_became_read_only(table: Table) -> None:
    """A server that a fail-over left read-only counts as away, and the next connection is a new one."""
    connections = Connections(table.url, name="failed-over")

    def write() -> None:
        with connections.use() as connection:
            connection.execute("SET default_transaction_read_only = on")
            connection.execute("CREATE TABLE t ()")

    with pytest.raises(UnavailableError):
        write()
    with connections.use() as connection:
        assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("off",)
    connections.close()
