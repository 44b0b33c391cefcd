"""A reconcile finds what a registry's end has lost, and what it had before it was a pod."""

from collections.abc import Callable
from typing import Any

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import DOCKER, make_image, make_index, make_layer
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.harness import Baleen, Pod, Registry
from tests.registries.proxy import WebhookProxy
from tests.support.artifacts import make_artifact
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

ENDS: dict[str, Callable[[Registry], None]] = {"SIGKILL": Registry.kill, "SIGTERM": Registry.terminate}


@pytest.mark.parametrize("end", ENDS)
def test_a_registry_that_ends_with_a_full_queue(baleen: Baleen, end: str) -> None:
    """Changes that were never reported are found, whichever signal ended the process (scenario 25)."""
    pod = baleen.add_pod(f"ended-{end.lower()}")
    known, lost, again, gone = (make_image(f"{pod.name}/{name}") for name in ("known", "lost", "again", "gone"))
    with WebhookProxy(baleen.webhook(pod)) as proxy:
        registry = baleen.registry(DistributionRegistry, pod, url=proxy.url)
        with RegistryClient(registry.url, timeout=20) as client:
            for image in (known, again, gone):
                client.push_image(f"{pod.name}/app", image, "v1")
            client.push_image(f"{pod.name}/other", gone, "v1")
            baleen.agree()
            proxy.away = True
            client.push_image(f"{pod.name}/app", lost, "v2")
            client.push_image(f"{pod.name}/new/deep", lost, "v1")
            for image in (again, gone):
                client.delete_manifest(f"{pod.name}/app", image.digest)
            client.delete_manifest(f"{pod.name}/other", gone.digest)
            client.push_image(f"{pod.name}/app", again, "v3")
            eventually(lambda: proxy.attempts() > len(proxy.accepted()) + 2)
        ENDS[end](registry)
    # Its webhook is the pod's own now: it tells of what it does, and of nothing before.
    if end == "SIGTERM":
        registry = baleen.registry(DistributionRegistry, pod, "2")
    else:
        registry.start(url=baleen.webhook(pod))
    later = make_image(f"{pod.name}/later")
    with RegistryClient(registry.url, timeout=20) as client:
        client.push_image(f"{pod.name}/app", later, "v4")
        eventually(lambda: baleen.holds(f"{pod.name}/app", later.digest))
        parted = baleen.differences()
        for name in ("app", "new/deep", "other"):
            assert any(f"{pod.name}/{name}" in difference for difference in parted), parted
        job = baleen.reconcile(pod)
        baleen.agree()
        progress = job["progress"]
        assert (progress["holdings_added"], progress["holdings_removed"]) == (2, 2)
        assert {example["change"] for example in progress["examples"]} >= {"holdings_added", "holdings_removed"}
        assert client.pull_image(f"{pod.name}/app", "v3").digest == again.digest
    assert baleen.reconcile(pod)["progress"]["holdings_added"] == 0


def test_a_registry_that_has_lived_for_years(baleen: Baleen) -> None:
    """The first reconcile of an old registry on the shared root finds all that it holds."""
    here = "lived"
    silent = Pod(here, "nobody-knows-this-token")
    registry = baleen.registry(DistributionRegistry, silent)
    base = make_layer(f"{here}/base", 20_000)
    images = [make_image(f"{here}/{number}", [base]) for number in range(12)]
    index = make_index([make_image(f"{here}/{arch}", [base], architecture=arch) for arch in ("amd64", "arm64")])
    docker = make_image(f"{here}/docker", [base], kind=DOCKER)
    with RegistryClient(registry.url, timeout=20) as client:
        for number, image in enumerate(images):
            client.push_image(f"{here}/team-{number % 4}/app", image, f"v{number}")
        client.push_image(here, index, "v1")
        client.push_image(f"{here}/docker", docker, "v1")
        client.push_image(f"{here}/docker", make_artifact(f"{here}/sbom", subject=docker.descriptor), "sbom")
        client.delete_manifest(f"{here}/team-0/app", images[0].digest)
    registry.kill()
    pod = baleen.add_pod(here, reconciled=False)
    assert "reconcile" in " ".join(baleen.pod(pod)["blocked_by"])
    job = baleen.reconcile(pod)
    # A scheduler may have begun before it was asked: what counts is that the pod was reconciled.
    added = sum(each["progress"]["holdings_added"] for each in jobs_of(baleen, pod))
    assert added == len(images) - 1 + 3 + 2, job
    baleen.agree()
    assert baleen.blob(base.digest)["reference_count"] == len(images) - 1 + 2 + 1
    assert not any("reconcile" in reason for reason in baleen.pod(pod)["blocked_by"])
    registry = baleen.registry(DistributionRegistry, pod, "2")
    with RegistryClient(registry.url, timeout=20) as client:
        client.push_image(f"{here}/team-1/app", make_image(f"{here}/next", [base]), "next")
        client.delete_manifest(f"{here}/team-1/app", images[1].digest)
        baleen.agree()


def jobs_of(baleen: Baleen, pod: Pod) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = baleen.api.get("/v1/jobs", params={"pod": pod.name}).json()["items"]
    return found
