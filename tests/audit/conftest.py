"""Stores of each kind, and a table with a store in memory."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from coordinator.storage.port import ObjectStore
from tests.audit.harness import World
from tests.storage.conftest import buckets, connect_s3, store_of
from tests.storage.memory import MemoryObjectStore

__all__ = ["buckets", "connect_s3"]

NewStore = Callable[[str], ObjectStore]


@pytest.fixture(scope="session")
def new_store(request: pytest.FixtureRequest) -> NewStore:
    return partial(store_of, request)


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """An empty table, and a store in memory."""
    with World(database, MemoryObjectStore()) as world:
        yield world
