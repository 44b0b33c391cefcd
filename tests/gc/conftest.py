from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from coordinator.storage.port import ObjectStore
from tests.gc.harness import Garbage
from tests.services.databases import Databases
from tests.storage.conftest import buckets, connect_s3, store_of

__all__ = ["buckets", "connect_s3"]


# On the real store the longer stage tries them: the contract tests hold both kinds to the same behaviour.
REAL = [pytest.param(name, marks=pytest.mark.lengthy) for name in ("s3", "s3-versioned")]


@pytest.fixture(params=["memory", "memory-versioned", *REAL])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """An empty store of every kind."""
    return store_of(request, request.param)


@pytest.fixture
def garbage(store: ObjectStore, databases: Databases) -> Iterator[Garbage]:
    with Garbage(databases.migrated(), store) as garbage:
        yield garbage


@pytest.fixture
def only_their_calls(garbage: Garbage) -> None:
    """Let no pulse call the database, and no delayed job read its facts again: they are no calls of the job itself."""
    garbage.sizes = replace(garbage.sizes, facts_s=3600.0)
