"""A database for all tests of the audit, and a root in a bucket for each."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest

from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.port import ObjectStore
from coordinator.storage.s3 import S3ObjectStore
from tests.audit.harness import World
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore

VERSIONED = "audit-versioned"
_numbers = itertools.count(1)

NewStore = Callable[[str], ObjectStore]


@pytest.fixture(scope="session")
def s3_settings(embedded_stack: StackEndpoints) -> dict[str, Any]:
    """Where the S3 server is; it has a bucket with versions, too."""
    s3 = embedded_stack
    keys = {"access_key": s3.s3_access_key, "secret_key": s3.s3_secret_key}
    client = boto3.client(
        "s3",
        endpoint_url=s3.s3_endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=s3.s3_access_key,
        aws_secret_access_key=s3.s3_secret_key,
    )
    client.create_bucket(Bucket=VERSIONED)
    S3ObjectStore(VERSIONED, endpoint_url=s3.s3_endpoint_url, **keys).enable_versioning()
    return {"endpoint_url": s3.s3_endpoint_url, "bucket": s3.s3_bucket, **keys}


@pytest.fixture(scope="session")
def new_store(request: pytest.FixtureRequest) -> NewStore:
    """Makes an empty store of a kind; the server is started by the first who needs it."""

    def make(kind: str) -> ObjectStore:
        if kind.startswith("memory"):
            return MemoryObjectStore(versioned=kind.endswith("versioned"))
        settings: dict[str, Any] = request.getfixturevalue("s3_settings")
        changed = {"bucket": VERSIONED} if kind.endswith("versioned") else {}
        return S3ObjectStore(root=f"audit/{next(_numbers)}", **(settings | changed))

    return make


@pytest.fixture(scope="module")
def database(databases: Databases) -> str:
    return databases.migrated()


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """An empty table, and a store in memory."""
    with World(database, MemoryObjectStore()) as world:
        yield world
