"""PostgreSQL and S3 once for all tests of the audit; a database and a root in the bucket for each test."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.db import migrate
from coordinator.stack.supervisor import Stack, StackEndpoints
from coordinator.storage.port import ObjectStore
from coordinator.storage.s3 import S3ObjectStore
from tests.audit.harness import World
from tests.conftest import temporary_directory
from tests.storage.memory import MemoryObjectStore

VERSIONED = "audit-versioned"
_numbers = itertools.count(1)

NewDatabase = Callable[[], str]
NewStore = Callable[[str], ObjectStore]


@pytest.fixture(scope="session")
def postgres() -> Iterator[StackEndpoints]:
    with temporary_directory() as directory, Stack(directory, services=("postgres",)) as stack:
        yield stack.endpoints


@pytest.fixture(scope="session")
def s3() -> Iterator[StackEndpoints]:
    with temporary_directory() as directory, Stack(directory, services=("s3",)) as stack:
        yield stack.endpoints


@pytest.fixture(scope="session")
def new_database(postgres: StackEndpoints) -> NewDatabase:
    """Makes a migrated database of its own for each call."""
    server = postgres.database_url
    assert server is not None

    def named(name: str, template: str) -> str:
        with psycopg.connect(server, autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return make_url(server).set(database=name).render_as_string(hide_password=False)

    migrate.upgrade(named("audit_template", "template0"))
    return lambda: named(f"audit_{next(_numbers)}", "audit_template")


@pytest.fixture(scope="session")
def s3_settings(s3: StackEndpoints) -> dict[str, Any]:
    """Where the S3 server is; it has a bucket with versions, too."""
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


@pytest.fixture(scope="session")
def database(new_database: NewDatabase) -> str:
    return new_database()


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """An empty table, and a store in memory."""
    with World(database, MemoryObjectStore()) as world:
        yield world
