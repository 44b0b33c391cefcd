from collections.abc import Iterator

import pytest

from coordinator.stack.children import Children
from tests.conftest import temporary_directory
from tests.registries.harness import Baleen

#: Of clients: longer than Baleen waits for a mount.
CLIENT_S = 180.0


@pytest.fixture(scope="session")
def open_baleen() -> Iterator[Baleen]:
    """One `baleen up` for pods whose registries ask nobody who they are."""
    with temporary_directory() as directory, Children() as children:
        # A mount is waited for here: how long one takes says nothing but how busy the machine is.
        baleen = Baleen(directory, children, {"BALEEN_MOUNTS": "open", "BALEEN_MOUNT_TIMEOUT": "2m"})
        with baleen.api:
            yield baleen


@pytest.fixture(autouse=True)
def at_rest(request: pytest.FixtureRequest) -> Iterator[None]:
    """No registry outlives its test: they would all be probed until the end."""
    if "open_baleen" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("open_baleen").at_rest_after():
        yield
