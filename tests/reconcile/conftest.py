"""A database of its own for each test module, and stores: in memory, and on a real S3 server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.reconcile.harness import World
from tests.services.databases import Databases

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def database(databases: Databases) -> str:
    return databases.migrated()


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """Nothing was pushed; its pod is no other test's. The store is in memory, and its clock is the test's."""
    with World(database) as world:
        yield world


@pytest.fixture
def s3(embedded_stack: StackEndpoints) -> S3ObjectStore:
    """An empty root on the real server."""
    assert embedded_stack.s3_bucket is not None
    return S3ObjectStore(
        embedded_stack.s3_bucket,
        f"reconcile-{next(_numbers)}",
        endpoint_url=embedded_stack.s3_endpoint_url,
        access_key=embedded_stack.s3_access_key,
        secret_key=embedded_stack.s3_secret_key,
    )
