from collections.abc import Iterator

import pytest

from tests.conftest import temporary_directory
from tests.doctor.harness import Clinic
from tests.doctor.store import POD


@pytest.fixture(scope="session")
def clinic() -> Iterator[Clinic]:
    """One for all tests here. The pods' user may not delete blobs: by the policy that the doctor himself proposes."""
    with temporary_directory() as directory, Clinic.opened(directory) as clinic:
        clinic.store.restrain(POD)
        yield clinic
