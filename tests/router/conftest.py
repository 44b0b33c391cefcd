from collections.abc import Iterator

import pytest

from tests.conftest import temporary_directory
from tests.router.harness import World
from tests.router.proxies import BOTH, BOTH_AT_LENGTH
from tests.router.running import Running


@pytest.fixture(scope="session", params=BOTH)
def started(request: pytest.FixtureRequest) -> Iterator[World]:
    """The router before three registries on one bucket, for all tests here."""
    with temporary_directory() as directory, World.started(directory, request.param) as world:
        yield world


@pytest.fixture(scope="module", params=BOTH_AT_LENGTH)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A whole Baleen behind its router."""
    with temporary_directory() as directory, Running.started(directory, request.param) as running:
        yield running


@pytest.fixture
def world(started: World) -> Iterator[World]:
    """With nothing seen yet, and with a Baleen that answers."""
    started.seen()
    started.coordinator.taken()
    started.router.skip_log()
    yield started
    started.coordinator.fails = started.coordinator.outcome = None
    started.coordinator.token_seconds = 0.0
    started.coordinator.go.set()
