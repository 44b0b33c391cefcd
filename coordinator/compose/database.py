"""Connections to the database, from the settings."""

from contextlib import AbstractContextManager

from coordinator.db import engine as database_engine
from coordinator.db.arrays import register_dumper
from coordinator.db.connection import Connections, Prepare
from coordinator.db.session import Database
from coordinator.errors import UnconfiguredError
from coordinator.settings import Settings


def database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise UnconfiguredError(
            "No database is configured: start `baleen up` in this directory, or set BALEEN_DATABASE_URL."
        )
    return settings.database_url.reveal()


def make_engine(settings: Settings, *, name: str, **limits: int) -> Database:
    """A pool of connections; `limits` are arguments of db.engine.engine."""
    return database_engine.open_engine(database_url(settings), name=name, **limits)


def open_database(settings: Settings, *, name: str, **limits: int) -> AbstractContextManager[Database]:
    """As `make_engine`, for one piece of work in one thread: its connection is closed at the end."""
    return database_engine.temporary_engine(database_url(settings), name=name, **limits)


def make_connections(settings: Settings, *, name: str, prepare: Prepare = register_dumper) -> Connections:
    """Connections for threads that each keep one. As `prepare` sets them up, they can send arrays of digests."""
    return Connections(database_url(settings), name=name, prepare=prepare)
