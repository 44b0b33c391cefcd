"""A registry with a bucket root of its own becomes a pod on the shared layer, and everything can be pulled from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import DOCKER, make_image, make_index, make_layer
from coordinator.stack.distribution import DistributionRegistry
from coordinator.storage.layout import BASE
from tests.cli.conftest import ROOT, program_environment, python
from tests.registries.harness import HTTP_SECRET, Baleen, Registry
from tests.registries.skopeo import Skopeo
from tests.support.artifacts import make_artifact

ADOPT_S = 120.0


def lone_registry(baleen: Baleen, kind: Any, name: str) -> tuple[Registry, str]:
    """A registry that knows nothing of Baleen, on a root of its own in the same bucket; and where that is."""
    storage = replace(baleen._storage(), root=f"own/{name}")
    more = {"http_secret": HTTP_SECRET} if kind is DistributionRegistry else {}
    made = kind(
        name=f"{name}-own",
        directory=baleen._directory / f"{name}-own",
        port=baleen._ports.take(f"{name}-own"),
        storage=storage,
        **more,
    )
    return Registry(baleen._children, made), f"s3://{storage.bucket}/{storage.root}"


def adopt(baleen: Baleen, pod: str, url: str, *options: str) -> dict[str, Any]:
    arguments = ("-m", "coordinator.cli", "adopt", pod, "--from", url, "--json", *options)
    environment = program_environment({"data_dir": baleen.settings.data_dir})
    shown: dict[str, Any] = python(ROOT, *arguments, env=environment, timeout=ADOPT_S).json
    return shown


def test_a_registry_becomes_a_pod(baleen: Baleen, kind: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Adopted while it runs, and again after its last push: all can be pulled, and the table knows it."""
    here = request.node.callspec.id
    neighbour, pod = baleen.add_pod(f"beside-{here}"), baleen.add_pod(f"adopted-{here}")
    lone, url = lone_registry(baleen, kind, pod.name)
    base = make_layer(f"{here}/base", 40_000)
    image = make_image(f"{here}/image", [base, make_layer(f"{here}/large", 9 << 20)])
    docker = make_image(f"{here}/docker", [base], kind=DOCKER)
    index = make_index([make_image(f"{here}/{name}", [base], architecture=name) for name in ("amd64", "arm64")])
    sbom = make_artifact(f"{here}/sbom", subject=docker.descriptor)
    with RegistryClient(baleen.registry(kind, neighbour).url, timeout=20) as client:
        client.push_image(f"{neighbour.name}/app", make_image(f"{here}/other", [base]), "v1")
    with RegistryClient(lone.url, timeout=20) as client:
        client.push_image(f"{pod.name}/app", image, "v1")
        client.push_image(f"{pod.name}/multi", index, "v1")
        client.push_image(f"{pod.name}/docker", docker, "v1")
        client.push_image(f"{pod.name}/docker", sbom, "sbom")
        dry = adopt(baleen, pod.name, url, "--dry-run")
        first = adopt(baleen, pod.name, url)
        names = ("copied_blobs", "copied_bytes", "layer_links", "revision_links", "tag_links")
        assert [first[name] for name in names] == [dry[name] for name in names]
        # The neighbour has brought the base, and another test's artifact perhaps the empty configuration.
        assert first["blobs"] - first["copied_blobs"] in {1, 2}
        assert first["remarks"] == []

        last = make_image(f"{here}/last", [base])
        client.push_image(f"{pod.name}/app", last, "v1")
    lone.kill()
    second = adopt(baleen, pod.name, url, "--wait")
    assert (second["copied_blobs"], second["remarks"]) == (2, [])
    assert second["reconcile"]["state"] == "done"
    baleen.agree()
    links = [entry.key for entry in baleen.store.walk(f"{BASE}/repositories/{pod.name}/")]
    assert len(links) == sum(shown[name] for shown in (first, second) for name in names[2:]) - 1  # a tag has moved

    registry = baleen.registry(kind, pod)
    with RegistryClient(registry.url, timeout=20) as client:
        for repository, reference, wanted in (
            ("app", "v1", last.digest),
            ("app", image.digest, image.digest),
            ("multi", "v1", index.digest),
            ("docker", "v1", docker.digest),
            ("docker", "sbom", sbom.digest),
        ):
            assert client.pull_image(f"{pod.name}/{repository}", reference).digest == wanted
        client.push_image(f"{pod.name}/app", make_image(f"{here}/next", [base]), "v1")
    baleen.agree()
    # It holds the image, the last and the next; the neighbour one, the index two, the docker image one.
    assert baleen.blob(base.digest)["reference_count"] == 7
    assert baleen.blob(base.digest)["pods"] == sorted([neighbour.name, pod.name])
    if kind is DistributionRegistry:
        skopeo = Skopeo(tmp_path)
        assert skopeo.digest(registry.address, f"{pod.name}/multi:v1") == index.digest
        assert skopeo.tags(registry.address, f"{pod.name}/app") == ["v1"]
        skopeo.copy(f"{registry.address}/{pod.name}/multi:v1", f"{registry.address}/{pod.name}/again:v1", "--all")
        baleen.agree()
