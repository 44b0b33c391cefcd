from collections.abc import Iterator

import pytest

from tests.conftest import temporary_directory
from tests.router.harness import LAYER, World
from tests.router.proxies import BOTH, BOTH_AT_LENGTH
from tests.router.running import Running


@pytest.fixture(scope="session")
def registries() -> Iterator[World]:
    with temporary_directory() as directory, World.started(directory) as world:
        yield world


@pytest.fixture(scope="session", params=BOTH)
def started(request: pytest.FixtureRequest, registries: World) -> Iterator[World]:
    """The registries behind a router."""
    with registries.behind(request.param) as world:
        yield world


@pytest.fixture(scope="module", params=BOTH_AT_LENGTH)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with temporary_directory() as directory, Running.started(directory, request.param) as running:
        yield running


@pytest.fixture
def world(started: World) -> Iterator[World]:
    """The router without earlier requests, and with a Baleen that answers."""
    started.seen()
    started.coordinator.taken()
    started.router.skip_log()
    yield started
    started.coordinator.fails = started.coordinator.outcome = None
    started.coordinator.token_seconds = 0.0
    started.coordinator.go.set()
    started.end_others()


@pytest.fixture
def source(world: World) -> tuple[str, str]:
    """A repository of another pod, and a blob in it that a registry on the same storage can mount by itself."""
    repository = world.repository("pod-b")
    with world.client("pod-b") as client:
        digest = client.push_blob(repository, LAYER)
    world.seen()
    return repository, digest
