"""A database of its own for each test module, copied from one that was migrated once."""

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from coordinator.db import migrate
from coordinator.stack.supervisor import Stack, StackEndpoints
from tests.conftest import temporary_directory
from tests.db.harness import Table

_numbers = itertools.count(1)

#: Makes a database, from a template or empty, and returns its URL.
NewDatabase = Callable[[str | None], str]


@pytest.fixture(scope="session")
def postgres() -> Iterator[StackEndpoints]:
    """A server of these tests alone: the other services take longer to start and end than all of them to run."""
    with temporary_directory() as directory, Stack(directory, services=("postgres",)) as stack:
        yield stack.endpoints


@pytest.fixture(scope="session")
def new_database(postgres: StackEndpoints) -> NewDatabase:
    server = postgres.database_url
    assert server is not None

    def create(template: str | None) -> str:
        name = f"db_tests_{next(_numbers)}"
        with psycopg.connect(server, autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        return make_url(server).set(database=name).render_as_string(hide_password=False)

    return create


@pytest.fixture(scope="session")
def template(new_database: NewDatabase) -> str:
    """The name of a migrated database that nobody is connected to."""
    url = new_database(None)
    migrate.upgrade(url)
    return str(make_url(url).database)


@pytest.fixture(scope="module")
def database(new_database: NewDatabase, template: str) -> str:
    return new_database(template)


@pytest.fixture
def table(database: str) -> Iterator[Table]:
    """The module's database, with names that no other test uses."""
    with Table(database) as table:
        yield table


@pytest.fixture
def fresh(new_database: NewDatabase, template: str) -> Iterator[Table]:
    """A database that nobody else has used: for what concerns the whole of it."""
    with Table(new_database(template)) as table:
        yield table
