from collections.abc import Iterator

import pytest

from coordinator import bootstrap
from coordinator.pods.doctor.storage import policy
from tests.conftest import temporary_directory
from tests.doctor.harness import Clinic
from tests.doctor.store import POD


@pytest.fixture(scope="session")
def clinic() -> Iterator[Clinic]:
    """One for all tests here. The pods' user may not delete blobs: by the policy that the doctor himself proposes."""
    with temporary_directory() as directory, Clinic.opened(directory) as clinic:
        store = bootstrap.trial_store(clinic.baleen.settings)
        clinic.store.restrain(POD, policy=policy(store).partition("\n")[2])
        yield clinic
