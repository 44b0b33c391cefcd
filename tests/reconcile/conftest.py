"""A database of its own for each test module, and stores: in memory, and on a real S3 server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.db import migrate
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.reconcile.harness import World

_numbers = itertools.count(1)

NewDatabase = Callable[[], str]


@pytest.fixture(scope="session")
def new_database(embedded_stack: StackEndpoints) -> NewDatabase:
    """Makes a migrated database of its own for each call."""
    server = embedded_stack.database_url
    assert server is not None

    def named(name: str, template: str) -> str:
        with psycopg.connect(server, autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return make_url(server).set(database=name).render_as_string(hide_password=False)

    migrate.upgrade(named("reconcile_template", "template0"))
    return lambda: named(f"reconcile_{next(_numbers)}", "reconcile_template")


@pytest.fixture(scope="module")
def database(new_database: NewDatabase) -> str:
    return new_database()


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
