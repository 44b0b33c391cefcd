"""A pool of connections for one piece of work of a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from coordinator.db.engine import engine


@contextmanager
def database_pool(url: str, *, name: str = "test") -> Iterator[Engine]:
    made = engine(url, name=name, pool_size=1)
    try:
        yield made
    finally:
        made.dispose()
