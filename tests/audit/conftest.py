"""A database for all tests of the audit, and a root in a bucket for each."""

from collections.abc import Callable, Iterator

import pytest

from coordinator.storage.port import ObjectStore
from tests.audit.harness import World
from tests.services.databases import Databases
from tests.storage.conftest import VERSIONED, MakeS3, buckets, connect_s3
from tests.storage.memory import MemoryObjectStore

__all__ = ["buckets", "connect_s3"]

NewStore = Callable[[str], ObjectStore]


@pytest.fixture(scope="session")
def new_store(request: pytest.FixtureRequest) -> NewStore:
    """Makes an empty store of a kind; the server is started by the first who needs it."""

    def make(kind: str) -> ObjectStore:
        if kind.startswith("memory"):
            return MemoryObjectStore(versioned=kind.endswith("versioned"))
        request.getfixturevalue("buckets")
        connect: MakeS3 = request.getfixturevalue("connect_s3")
        return connect(bucket=VERSIONED) if kind.endswith("versioned") else connect()

    return make


@pytest.fixture(scope="module")
def database(databases: Databases) -> str:
    return databases.migrated()


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """An empty table, and a store in memory."""
    with World(database, MemoryObjectStore()) as world:
        yield world
