from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.registry.client import RegistryClient
from tests.support.registries import REQUEST_S, RunningRegistry, running_distribution, running_model
from tests.support.sink import NotificationSink


@pytest.fixture(params=["model", pytest.param("distribution", marks=pytest.mark.registry)])
def registry(request: pytest.FixtureRequest, sink: NotificationSink, tmp_path: Path) -> Iterator[RunningRegistry]:
    """Each test of the contract runs on the model and on the real program."""
    running = running_model(sink) if request.param == "model" else running_distribution(sink, tmp_path)
    with running as registry:
        yield registry


@pytest.fixture
def client(registry: RunningRegistry) -> Iterator[RegistryClient]:
    with RegistryClient(registry.url, timeout=REQUEST_S) as client:
        yield client
