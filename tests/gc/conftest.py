from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from coordinator.storage.port import ObjectStore
from tests.gc.harness import Garbage
from tests.services.databases import Databases
from tests.storage.conftest import VERSIONED, MakeS3, buckets, connect_s3
from tests.storage.memory import MemoryObjectStore

__all__ = ["buckets", "connect_s3"]


# On the real store the longer stage tries them: the contract tests hold both kinds to the same behaviour.
REAL = [pytest.param(name, marks=pytest.mark.lengthy) for name in ("s3", "s3-versioned")]


@pytest.fixture(params=["memory", "memory-versioned", *REAL])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """An empty store of every kind."""
    if request.param.startswith("memory"):
        return MemoryObjectStore(versioned=request.param == "memory-versioned")
    request.getfixturevalue("buckets")
    connect: MakeS3 = request.getfixturevalue("connect_s3")
    return connect(bucket=VERSIONED) if request.param == "s3-versioned" else connect()


@pytest.fixture
def garbage(store: ObjectStore, databases: Databases) -> Iterator[Garbage]:
    with Garbage(databases.migrated(), store) as garbage:
        yield garbage


@pytest.fixture
def only_their_calls(garbage: Garbage) -> None:
    """No pulse of a job calls the database between, nor does a job that was held up read its facts again.

    What counts the calls of a job would find others.
    """
    garbage.sizes = replace(garbage.sizes, facts_s=3600.0)
