from collections.abc import Iterator

import pytest

from tests.conftest import temporary_directory
from tests.doctor.harness import Clinic


@pytest.fixture(scope="session")
def clinic() -> Iterator[Clinic]:
    """One for all tests here."""
    with temporary_directory() as directory, Clinic.opened(directory) as clinic:
        yield clinic
