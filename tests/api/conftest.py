"""One API and one database for all tests of this folder; each test uses names of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from coordinator.lookup.sizes import Sizes
from coordinator.stack.supervisor import StackEndpoints
from tests.api.collecting import Known, World, collecting, known_api
from tests.api.harness import Facts, Served, served, settings_for


@pytest.fixture(scope="session")
def api(embedded_stack: StackEndpoints) -> Iterator[Served]:
    with served(settings_for(embedded_stack)) as api:
        yield api


@pytest.fixture(scope="session")
def api_of(api: Served) -> Iterator[Callable[[Sizes], Served]]:
    """Gives another API on the same database, with other sizes."""
    with ExitStack() as stack:
        yield cache(lambda sizes: stack.enter_context(served(api.settings, sizes)))


@pytest.fixture
def facts(api: Served) -> Facts:
    return Facts(api.db)


@pytest.fixture(scope="module")
def collected_api(embedded_stack: StackEndpoints) -> Iterator[tuple[Served, Known]]:
    with known_api(embedded_stack) as known:
        yield known


@pytest.fixture
def world(collected_api: tuple[Served, Known]) -> Iterator[World]:
    with collecting(*collected_api) as world:
        yield world
