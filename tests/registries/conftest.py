from collections.abc import Iterator

import pytest

from coordinator.stack.distribution import DistributionRegistry
from coordinator.stack.model_registry import ModelRegistry
from tests.conftest import temporary_directory
from tests.registries.harness import Baleen


@pytest.fixture(scope="session")
def baleen() -> Iterator[Baleen]:
    """One `baleen up` for all tests here: each registers pods of its own, and leaves table and bucket in agreement."""
    with temporary_directory() as directory, Baleen.started(directory) as running:
        yield running


@pytest.fixture(
    params=[
        pytest.param("model", marks=pytest.mark.outage),
        pytest.param("distribution", marks=pytest.mark.registry),
    ]
)
def kind(request: pytest.FixtureRequest) -> type[DistributionRegistry | ModelRegistry]:
    """Scenarios run on the model and on the real program."""
    return ModelRegistry if request.param == "model" else DistributionRegistry


@pytest.fixture(autouse=True)
def at_rest(request: pytest.FixtureRequest) -> Iterator[None]:
    """No registry outlives its test: they would all be probed until the end."""
    if "baleen" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("baleen").at_rest_after():
        yield
