"""Pushes, copies and deletes by skopeo on two real registries with one bucket."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import DOCKER, make_image, make_index, make_layer
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.harness import Baleen
from tests.registries.skopeo import Skopeo, docker_layout, oci_layout
from tests.support.artifacts import make_artifact

pytestmark = pytest.mark.registry

AT_ONCE = 6


@pytest.fixture
def skopeo(tmp_path: Path) -> Skopeo:
    return Skopeo(tmp_path)


def test_six_images_in_two_pods(baleen: Baleen, skopeo: Skopeo, tmp_path: Path) -> None:
    """Pushes, retags, copies with all platforms, a docker image, a signature, deletes, and pushes again."""
    pods = [baleen.add_pod(f"skopeo-{character}") for character in "ab"]
    a, b = (pod.name for pod in pods)
    first, second = (baleen.registry(DistributionRegistry, pod) for pod in pods)
    base = make_layer("skopeo/base", 30_000)
    images = [make_image(f"skopeo/{n}", [base, make_layer(f"skopeo/{n}")]) for n in range(6)]
    layouts = [oci_layout(tmp_path / f"image-{n}", image) for n, image in enumerate(images)]
    for number, layout in enumerate(layouts):
        skopeo.push(layout, first.address, f"{a}/app{number}:v1")
        skopeo.push(layout, second.address, f"{b}/app{number}:v1")
    baleen.agree()
    assert skopeo.digest(first.address, f"{a}/app0:v1") == images[0].digest, "skopeo has converted the manifest"
    assert baleen.blob(base.digest)["reference_count"] == 12
    assert baleen.blob(base.digest)["pods"] == [a, b]
    assert baleen.blob(images[3].config.digest)["reference_count"] == 2

    # Tags move, within a pod and from one pod to the other.
    skopeo.push(layouts[1], first.address, f"{a}/app0:v1")
    skopeo.copy(f"{first.address}/{a}/app2:v1", f"{first.address}/{a}/app3:v1")
    skopeo.copy(f"{first.address}/{a}/app4:v1", f"{second.address}/{b}/app5:v1")
    baleen.agree()
    assert baleen.blob(base.digest)["reference_count"] == 15
    assert all(baleen.holds(f"{a}/app0", image.digest) for image in images[:2])

    # Every kind of manifest.
    index = make_index([make_image(f"skopeo/{arch}", [base], architecture=arch) for arch in ("amd64", "arm64")])
    docker = make_image("skopeo/docker", [base], kind=DOCKER)
    skopeo.push(oci_layout(tmp_path / "index", index), first.address, f"{a}/multi:v1", "--all")
    skopeo.copy(f"{first.address}/{a}/multi:v1", f"{second.address}/{b}/multi:v1", "--all")
    skopeo.push(docker_layout(tmp_path / "docker", docker), second.address, f"{b}/docker:v1")
    with RegistryClient(second.url, timeout=20) as client:
        # skopeo of this version takes no artifact without a platform.
        client.push_image(f"{b}/docker", make_artifact("skopeo/sbom", subject=docker.descriptor), "sbom")
    baleen.agree()
    assert skopeo.digest(second.address, f"{b}/multi:v1") == index.digest
    assert skopeo.digest(second.address, f"{b}/docker:v1") == docker.digest
    assert baleen.blob(index.manifests[0].digest)["reference_count"] == 4
    assert baleen.blob(docker.digest)["reference_count"] == 1

    # Deletes: skopeo deletes the manifest that the tag names, and with it its other tags.
    skopeo.copy(f"{first.address}/{a}/app5:v1", f"{first.address}/{a}/app5:v2")
    skopeo.delete(first.address, f"{a}/app5:v1")
    skopeo.delete(second.address, f"{b}/multi:v1")
    skopeo.delete(second.address, f"{b}/docker:sbom")
    baleen.agree()
    assert skopeo.tags(second.address, f"{b}/docker") == ["v1"]
    assert not baleen.holds(f"{a}/app5", images[5].digest)
    assert baleen.blob(index.digest)["pods"] == [a]

    # Again what was deleted.
    skopeo.push(layouts[5], first.address, f"{a}/app5:v3")
    skopeo.copy(f"{first.address}/{a}/multi:v1", f"{second.address}/{b}/multi:v2", "--all")
    baleen.agree()
    assert baleen.holds(f"{a}/app5", images[5].digest)
    assert baleen.blob(index.digest)["pods"] == [a, b]


def test_pushes_at_once(baleen: Baleen, skopeo: Skopeo, tmp_path: Path) -> None:
    """Six pushes at once to both pods, of images that share their layers, into shared and own repositories."""
    pods = [baleen.add_pod(f"many-{character}") for character in "ab"]
    registries = [baleen.registry(DistributionRegistry, pod) for pod in pods]
    shared = [make_layer(f"many/{number}", 50_000) for number in range(3)]
    images = [make_image(f"many/image-{number}", shared) for number in range(AT_ONCE)]
    layouts = [oci_layout(tmp_path / f"image-{number}", image) for number, image in enumerate(images)]
    pushes = [
        (layout, registry.address, f"{pod.name}/{repository}:v{number}")
        for number, layout in enumerate(layouts)
        for pod, registry in zip(pods, registries, strict=True)
        for repository in ("shared", f"own-{number}")
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda push: skopeo.push(*push), pushes))
    baleen.agree()
    assert [baleen.blob(layer.digest)["reference_count"] for layer in shared] == [len(pushes)] * len(shared)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda push: skopeo.delete(*push[1:]), pushes[1::2]))
    baleen.agree()
    assert baleen.blob(shared[0].digest)["reference_count"] == len(pushes) // 2
