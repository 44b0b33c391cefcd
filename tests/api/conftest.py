"""One API and one database for all tests of this folder; each test uses names of its own."""

from collections.abc import Iterator

import pytest

from coordinator.stack.supervisor import StackEndpoints
from tests.api.harness import Facts, Served, served, settings_for


@pytest.fixture(scope="session")
def api(embedded_stack: StackEndpoints) -> Iterator[Served]:
    with served(settings_for(embedded_stack)) as api:
        yield api


@pytest.fixture
def facts(api: Served) -> Facts:
    return Facts(api.db)
