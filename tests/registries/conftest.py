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


@pytest.fixture(params=["model", pytest.param("distribution", marks=pytest.mark.registry)])
def kind(request: pytest.FixtureRequest) -> type[DistributionRegistry | ModelRegistry]:
    """Scenarios run on the model and on the real program."""
    return ModelRegistry if request.param == "model" else DistributionRegistry
