"""Mounts on real registries that require no login: what is mounted, and what becomes an upload."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import httpx
import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Layer, make_image, make_layer
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.harness import CLIENT_S, Baleen, Pairs, Pod, Registry, of_a_probe

pytestmark = pytest.mark.registry


class Pair(NamedTuple):
    """Two pods of one root."""

    baleen: Baleen
    pods: tuple[Pod, Pod]
    registries: tuple[Registry, Registry]

    def name(self, pod: int, repository: str) -> str:
        return f"{self.pods[pod].name}/{repository}"

    def links(self) -> Pairs:
        """All links, but for those that probes make by themselves."""
        return {pair for pair in self.baleen.links() if not of_a_probe(pair)}

    def client(self, pod: int) -> RegistryClient:
        return RegistryClient(self.registries[pod].url, timeout=CLIENT_S)

    def ask(self, repository: str, query: str = "", **options: object) -> httpx.Response:
        url = f"{self.baleen.url}/v2/{repository}/blobs/uploads/{query}"
        return httpx.post(url, timeout=CLIENT_S, trust_env=False, **options)  # type: ignore[arg-type]

    def mount(self, repository: str, digest: str, source: str | None) -> httpx.Response:
        return self.ask(repository, f"?mount={digest}" + (f"&from={source}" if source else ""))


@pytest.fixture
def pair(open_baleen: Baleen) -> Pair:
    mark = secrets.token_hex(3)
    pods = open_baleen.add_pod(f"a-{mark}"), open_baleen.add_pod(f"b-{mark}")
    registries = tuple(open_baleen.registry(DistributionRegistry, pod) for pod in pods)
    for pod, registry in zip(pods, registries, strict=True):
        open_baleen.list_registries(pod, registry)
    return Pair(open_baleen, pods, (registries[0], registries[1]))


@pytest.fixture
def base(pair: Pair) -> Layer:
    """A layer that only the first pod has."""
    layer = make_layer(f"{pair.pods[0].name}/base", 20_000)
    with pair.client(0) as client:
        client.push_image(pair.name(0, "app"), make_image("one", [layer]), "v1")
    pair.baleen.agree()
    return layer


def is_forwarded(answer: httpx.Response) -> bool:
    """Whether the answer is the pod's own to a plain upload."""
    shown = answer.headers.get("X-Baleen-Mount")
    return (answer.status_code, shown) == (202, "forwarded") and "Docker-Upload-UUID" in answer.headers


def test_a_layer_of_another_pod(pair: Pair, base: Layer) -> None:
    """A layer of pod A is mounted in pod B: 201, the pod serves it at once, and an image of it pulls back whole."""
    before = pair.baleen.blob(base.digest)
    answer = pair.mount(pair.name(1, "app"), base.digest, pair.name(0, "app"))
    assert (answer.status_code, answer.headers["X-Baleen-Mount"]) == (201, "mounted")
    assert answer.headers["Docker-Content-Digest"] == base.digest
    assert answer.headers["Location"] == f"/v2/{pair.name(1, 'app')}/blobs/{base.digest}"
    with pair.client(1) as client:
        assert client.has_blob(pair.name(1, "app"), base.digest)
        assert pair.baleen.blob(base.digest)["link_count"] == before["link_count"] + 1
        image = make_image("two", [base])
        client.push_image(pair.name(1, "app"), image, "v1")
        assert client.pull_image(pair.name(1, "app"), "v1").digest == image.digest
    pair.baleen.agree()
    assert pair.baleen.blob(base.digest)["reference_count"] == before["reference_count"] + 1
    assert pair.baleen.blob(base.digest)["pods"] == sorted(pod.name for pod in pair.pods)


def test_the_same_request_again(pair: Pair, base: Layer) -> None:
    """A repeated request is answered as before, and changes no count."""
    first = pair.mount(pair.name(1, "app"), base.digest, pair.name(0, "app"))
    counted = pair.baleen.blob(base.digest) | {"counted_at": None}
    again = pair.mount(pair.name(1, "app"), base.digest, pair.name(0, "app"))
    assert (first.status_code, first.headers["Location"]) == (again.status_code, again.headers["Location"])
    assert pair.baleen.blob(base.digest) | {"counted_at": None} == counted


def test_as_a_form(pair: Pair, base: Layer) -> None:
    """A mount in a form is a mount; any other form is a plain upload."""
    data = {"mount": base.digest, "from": pair.name(0, "app")}
    assert pair.ask(pair.name(1, "app"), data=data).status_code == 201
    assert is_forwarded(pair.ask(pair.name(1, "app"), data={"a": "b"}))


@pytest.mark.parametrize(
    "what",
    ["another-repository", "no-source", "unknown-pod", "not-a-digest", "no-such-blob", "not-a-name", "not-asked"],
)
def test_what_is_no_mount(pair: Pair, base: Layer, what: str) -> None:
    """A mount that cannot be made is the pod's own 202, on which the upload goes on; nothing is linked."""
    target, source = pair.name(1, "app"), pair.name(0, "app")
    query = {
        "another-repository": f"?mount={base.digest}&from={pair.name(0, 'other')}",
        "no-source": f"?mount={base.digest}",
        "unknown-pod": f"?mount={base.digest}&from=nobody/app",
        "not-a-digest": f"?mount=sha256:00&from={source}",
        "no-such-blob": f"?mount=sha256:{secrets.token_hex(32)}&from={source}",
        "not-a-name": f"?mount={base.digest}&from=..%2Fapp",
        "not-asked": "",
    }[what]
    links = pair.links()
    answer = pair.ask(target, query)
    assert is_forwarded(answer)
    assert pair.links() == links
    with pair.client(1) as client:
        assert not client.has_blob(target, base.digest)
        session = httpx.URL(answer.headers["Location"]).raw_path.decode()
        client.finish_upload(session, base.digest, iter([base.content]), len(base.content))
        assert client.has_blob(target, base.digest)
    pair.baleen.agree()


def test_what_no_registry_would_take(pair: Pair) -> None:
    """Other paths, methods and names are refused as a registry refuses them."""
    url = f"{pair.baleen.url}/v2"
    for method, path, status, code in (
        ("POST", "/nobody/app/blobs/uploads/", 404, "NAME_UNKNOWN"),
        ("POST", "/Upper/app/blobs/uploads/", 400, "NAME_INVALID"),
        ("GET", f"/{pair.name(0, 'app')}/blobs/uploads/", 405, "UNSUPPORTED"),
        ("GET", f"/{pair.name(0, 'app')}/manifests/v1", 404, "UNSUPPORTED"),
        ("POST", f"/{pair.name(0, 'app')}%2f..%2fx/blobs/uploads/", 400, "NAME_INVALID"),
    ):
        answer = httpx.request(method, url + path, timeout=CLIENT_S, trust_env=False)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (status, code), path


def test_a_pod_that_is_away(pair: Pair, base: Layer) -> None:
    """If the target's registry is away a mount is made all the same; an upload fails with 502."""
    pair.registries[1].kill()
    assert pair.mount(pair.name(1, "app"), base.digest, pair.name(0, "app")).status_code == 201
    answer = pair.ask(pair.name(1, "app"))
    assert answer.status_code == 502
    assert "X-Baleen-Mount" not in answer.headers
