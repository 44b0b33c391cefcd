"""A database of its own for each test module, copied from one that was migrated once."""

from collections.abc import Iterator

import pytest

from tests.db.harness import Table
from tests.services.databases import Databases


@pytest.fixture(scope="module")
def database(databases: Databases) -> str:
    return databases.migrated()


@pytest.fixture
def table(database: str) -> Iterator[Table]:
    """The module's database, with names that no other test uses."""
    with Table(database) as table:
        yield table


@pytest.fixture
def fresh(databases: Databases) -> Iterator[Table]:
    """A database that nobody else has used: for what concerns the whole of it."""
    with Table(databases.migrated()) as table:
        yield table
