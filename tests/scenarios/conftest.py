from collections.abc import Iterator

import pytest

from tests.conftest import temporary_directory
from tests.gc.conftest import garbage, store
from tests.scenarios.harness import Stage
from tests.storage.conftest import buckets, connect_s3

__all__ = ["buckets", "connect_s3", "garbage", "store"]


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """One for all: each test has repositories of its own, and leaves two pods that have reported."""
    with temporary_directory() as directory, Stage.opened(directory) as stage:
        yield stage


@pytest.fixture
def here(request: pytest.FixtureRequest) -> str:
    """A repository, and the seed of images, that no other test has."""
    name: str = request.node.name
    return name.removeprefix("test_").lower().translate(str.maketrans({"_": "-", "[": "-", "]": ""}))
