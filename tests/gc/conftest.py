from __future__ import annotations

from collections.abc import Iterator

import pytest

from coordinator.gc import collect
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
def only_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pulse of a job calls the database between, and nobody waits after a failure.

    Nor does a job that was held up ask again for what it knows: what counts its calls would find others.
    """
    monkeypatch.setattr(collect, "FACTS_S", 3600.0)
    monkeypatch.setattr(collect, "PAUSE_S", 0.0)
