from collections.abc import Iterator

import pytest

from tests.reconcile.harness import World


@pytest.fixture
def world(database: str) -> Iterator[World]:
    """Nothing was pushed; its pod is no other test's. The store is in memory, and its clock is the test's."""
    with World(database) as world:
        yield world
