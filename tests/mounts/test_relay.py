"""Mounts for pods with a store of their own, on real registries: the blob is sent inside, and only once."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Layer, make_image, make_layer
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.harness import CLIENT_S, Baleen, Pod, Registry
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


class Apart(NamedTuple):
    """A pod on the shared root, and one that has a root of its own."""

    baleen: Baleen
    shared: Pod
    own: Pod
    first: Registry
    second: Registry

    def mount(self, repository: str, digest: str, source: str) -> httpx.Response:
        url = f"{self.baleen.url}/v2/{repository}/blobs/uploads/?mount={digest}&from={source}"
        return httpx.post(url, timeout=CLIENT_S, trust_env=False)

    def requests(self, method: str) -> int:
        return sum(f"http.request.method={method}" in line for line in self.second.log().splitlines())


@pytest.fixture
def apart(open_baleen: Baleen) -> Apart:
    mark = secrets.token_hex(3)
    shared = open_baleen.add_pod(f"shared-{mark}")
    own = open_baleen.add_pod(f"own-{mark}", kind="relay")
    first = open_baleen.registry(DistributionRegistry, shared)
    second = open_baleen.registry(DistributionRegistry, own, root=f"own-{mark}")
    open_baleen.list_registries(shared, first)
    open_baleen.list_registries(own, second)
    return Apart(open_baleen, shared, own, first, second)


def pushed(registry: Registry, repository: str, name: str, size: int = 100_000) -> Layer:
    layer = make_layer(name, size)
    with RegistryClient(registry.url, timeout=CLIENT_S) as client:
        client.push_image(repository, make_image(name, [layer]), "v1")
    return layer


def test_a_blob_is_sent_to_a_store_of_its_own(apart: Apart) -> None:
    """When the client gets its answer the pod has the blob's bytes, and an image of it pulls back whole."""
    layer = pushed(apart.first, f"{apart.shared.name}/app", f"{apart.own.name}/layer")
    target = f"{apart.own.name}/app"
    answer = apart.mount(target, layer.digest, f"{apart.shared.name}/app")
    assert (answer.status_code, answer.headers["X-Baleen-Mount"]) == (201, "mounted")
    with RegistryClient(apart.second.url, timeout=CLIENT_S) as client:
        assert client.get_blob(target, layer.digest) == layer.content
        image = make_image("of both", [layer])
        client.push_image(target, image, "v1")
        assert client.pull_image(target, "v1").digest == image.digest
    eventually(lambda: apart.own.name in apart.baleen.blob(layer.digest)["pods"])


def test_it_is_sent_once(apart: Apart) -> None:
    """However many repositories of the pod want a blob, at once or later, its bytes are sent once."""
    layer = pushed(apart.first, f"{apart.shared.name}/app", f"{apart.own.name}/layer")
    source = f"{apart.shared.name}/app"
    targets = [f"{apart.own.name}/app{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda target: apart.mount(target, layer.digest, source), targets))
    assert [answer.status_code for answer in answers] == [201] * 8
    assert apart.mount(f"{apart.own.name}/later", layer.digest, source).status_code == 201
    assert apart.mount(targets[0], layer.digest, source).status_code == 201
    assert apart.requests("PATCH") == 1
    with RegistryClient(apart.second.url, timeout=CLIENT_S) as client:
        assert all(client.has_blob(target, layer.digest) for target in targets)


def test_in_chunks(apart: Apart) -> None:
    """A blob of several chunks arrives whole."""
    layer = pushed(apart.first, f"{apart.shared.name}/app", f"{apart.own.name}/large", 40_000_000)
    target = f"{apart.own.name}/app"
    assert apart.mount(target, layer.digest, f"{apart.shared.name}/app").status_code == 201
    assert apart.requests("PATCH") == -(-len(layer.content) // (16 << 20))
    with RegistryClient(apart.second.url, timeout=CLIENT_S) as client:
        assert client.get_blob(target, layer.digest) == layer.content


def test_from_a_store_of_its_own(apart: Apart) -> None:
    """A blob of a pod with a store of its own is not mounted in the shared store: the client uploads."""
    layer = pushed(apart.second, f"{apart.own.name}/app", f"{apart.own.name}/layer")
    answer = apart.mount(f"{apart.shared.name}/app", layer.digest, f"{apart.own.name}/app")
    assert (answer.status_code, answer.headers["X-Baleen-Mount"]) == (202, "forwarded")


def test_a_pod_that_cannot_be_sent_to(apart: Apart) -> None:
    """A relay that fails leaves no reference behind."""
    layer = pushed(apart.first, f"{apart.shared.name}/app", f"{apart.own.name}/layer")
    eventually(lambda: apart.baleen.counts().get(layer.digest) == 1)
    apart.second.kill()
    assert apart.mount(f"{apart.own.name}/app", layer.digest, f"{apart.shared.name}/app").status_code == 502
    assert apart.baleen.blob(layer.digest)["link_count"] == 1
