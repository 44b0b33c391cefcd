"""GC goes on after a registry process was killed and restarted, without an operator.

Before, GC was blocked until an operator ran the doctor.
"""

from collections.abc import Iterator

import pytest

from coordinator.domain.findings import Result
from coordinator.domain.names import parse_digest
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Image, make_image, make_layer
from coordinator.stack.distribution import DistributionRegistry
from coordinator.storage.layout import blob_key
from tests.conftest import temporary_directory
from tests.doctor.harness import Caching, Clinic, not_proved
from tests.registries.harness import Pod, Registry
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

SETTINGS = {
    "UNSAFE_TIMES": "true",
    # The broker that `baleen up` starts is not one to rely on.
    "UNSAFE_FINDINGS": "kafka-durable",
    "SAFETY_LINK_GRACE": "1s",
    "SAFETY_REQUEST_BOUND": "1s",
    "SAFETY_GRACE": "0s",
    "SAFETY_QUARANTINE": "0s",
    "PROBE_EVERY": "1s",
    "RECONCILE_EVERY": "5s",
    "GC_EVERY": "2s",
}


@pytest.fixture
def clinic() -> Iterator[Clinic]:
    with temporary_directory() as directory, Clinic.opened(directory, SETTINGS) as clinic:
        answer = clinic.baleen.api.put("/v1/gc/switch", json={"enabled": True, "why": "a test"})
        assert answer.is_success, answer.text
        yield clinic


@pytest.fixture
def pod(clinic: Clinic) -> Pod:
    return clinic.admit("patient")


@pytest.fixture
def registry(clinic: Clinic, pod: Pod) -> Iterator[Registry]:
    """One process of the pod, examined by an operator with its key."""
    registry = clinic.registry(pod)
    try:
        clinic.listed(pod, registry.url)
        report = clinic.examine(pod)
        assert not_proved(report) == {"kafka-durable": Result.REFUTED}
        yield registry
    finally:
        registry.end()


def restart(registry: Registry, kind: type[DistributionRegistry] = DistributionRegistry) -> None:
    """Kill the process, and start another one at its address."""
    registry.kill()
    registry.start_as(kind)


def garbage(registry: Registry, name: str) -> Image:
    """Push an image, and delete it at the registry."""
    image = make_image(name, [make_layer(name)])
    with RegistryClient(registry.url) as client:
        client.push_image("patient/app", image, name)
        client.delete_manifest("patient/app", image.digest)
    return image


def is_gone(clinic: Clinic, image: Image) -> bool:
    return clinic.baleen.store.head(blob_key(parse_digest(image.blobs[0].digest))) is None


def blocked_by(clinic: Clinic, pod: Pod) -> list[str]:
    return [reason for reason in clinic.baleen.pod(pod)["blocked_by"] if reason.startswith("doctor")]


def test_a_restart_needs_no_operator(clinic: Clinic, pod: Pod, registry: Registry) -> None:
    """The process that follows one that was killed is examined by the scheduler, and what was garbage by then is
    collected; of a process with a descriptor cache it is not, and the reason is shown, until one without it follows.
    """
    restart(registry)
    image = garbage(registry, "first")
    eventually(lambda: is_gone(clinic, image), why=lambda: clinic.baleen.pod(pod)["blocked_by"])
    found_at = {found["check"]: found["found_at"] for found in clinic.baleen.pod(pod)["findings"]}
    assert found_at["cannot-delete"] < found_at["no-descriptor-cache"], "the key was not tried again"

    restart(registry, Caching)
    image = garbage(registry, "second")
    refuted = "UTC found: no-descriptor-cache is refuted"
    eventually(
        lambda: any(refuted in reason for reason in blocked_by(clinic, pod)), why=lambda: blocked_by(clinic, pod)
    )
    assert not is_gone(clinic, image)
    status = clinic.baleen.api.get("/v1/status").json()
    assert any(refuted in reason for reason in status["gc"]["blocked_by"])

    restart(registry)
    eventually(lambda: is_gone(clinic, image), why=lambda: clinic.baleen.pod(pod)["blocked_by"])
    assert blocked_by(clinic, pod) == []
