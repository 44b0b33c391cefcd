"""One API and one database for all tests of this folder; each test uses names of its own."""

from collections.abc import Iterator

import pytest

from coordinator.gc import view as queries
from coordinator.stack.supervisor import StackEndpoints
from tests.api.collecting import Known, World, collecting, known_api
from tests.api.harness import Facts, Served, served, settings_for


@pytest.fixture(scope="session")
def api(embedded_stack: StackEndpoints) -> Iterator[Served]:
    with served(settings_for(embedded_stack)) as api:
        yield api


@pytest.fixture
def facts(api: Served) -> Facts:
    return Facts(api.db)


@pytest.fixture(scope="module")
def collected_api(embedded_stack: StackEndpoints) -> Iterator[tuple[Served, Known]]:
    with known_api(embedded_stack) as known:
        yield known


@pytest.fixture
def world(collected_api: tuple[Served, Known], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # Figures are of now, for whoever looks at what has just been done.
    monkeypatch.setattr(queries, "KEPT_SECONDS", 0)
    monkeypatch.setattr(queries, "COST_FACTOR", 0)
    with collecting(*collected_api) as world:
        yield world
