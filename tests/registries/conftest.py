import pytest

from coordinator.stack.distribution import DistributionRegistry
from coordinator.stack.model_registry import ModelRegistry


@pytest.fixture(
    params=[
        pytest.param("model", marks=pytest.mark.outage),
        pytest.param("distribution", marks=pytest.mark.registry),
    ]
)
def kind(request: pytest.FixtureRequest) -> type[DistributionRegistry | ModelRegistry]:
    """Scenarios run on the model and on the real program."""
    return ModelRegistry if request.param == "model" else DistributionRegistry
