"""Real clients push and pull through the router, with and without tokens, and with mounts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.domain.pods import parse_registry
from coordinator.registry.images import make_image, make_index
from coordinator.router import nginx as router
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.skopeo import Skopeo, oci_layout
from tests.router.harness import HOST, HTTP_SECRET, Pod, Router, World
from tests.router.programs import needs_go, run
from tests.support.issuer import CREDENTIALS, ISSUER, SERVICE, TokenIssuer, basic_header

pytestmark = pytest.mark.registry


@pytest.fixture
def skopeo(tmp_path: Path) -> Skopeo:
    return Skopeo(tmp_path)


def mounts_asked(world: World) -> Sequence[str]:
    return [asked.target for asked in world.coordinator.taken() if "mount=" in asked.target]


@pytest.mark.parametrize("pod", ["pod-a", "pod-c"])
def test_skopeo_pushes_and_pulls(world: World, skopeo: Skopeo, tmp_path: Path, pod: str) -> None:
    """An index with two images comes back the same, whether the registry or the store sends its bytes."""
    index = make_index([make_image(f"{tmp_path} {number}") for number in range(2)])
    repository = world.repository(pod)
    skopeo.push(oci_layout(tmp_path / "layout", index), world.router.address, f"{repository}:v1", "--all")
    assert skopeo.digest(world.router.address, f"{repository}:v1") == index.digest
    assert skopeo.tags(world.router.address, repository) == ["v1"]
    skopeo.pull(world.router.address, f"{repository}:v1", tmp_path / "pulled")
    # Straight from the pod it is there too, and nowhere else.
    assert skopeo.tags(world.pods[pod].url.removeprefix("http://"), repository) == ["v1"]


def test_skopeo_copies_between_pods(world: World, skopeo: Skopeo, tmp_path: Path) -> None:
    """An image is copied from one pod's repository to another's through the router, and deleted there."""
    image = make_image(str(tmp_path))
    source, target = world.repository("pod-b"), world.repository("pod-a")
    skopeo.push(oci_layout(tmp_path / "layout", image), world.router.address, f"{source}:v1")
    skopeo.copy(f"{world.router.address}/{source}:v1", f"{world.router.address}/{target}:v1")
    assert skopeo.digest(world.router.address, f"{target}:v1") == image.digest
    skopeo.delete(world.router.address, f"{target}:v1")
    with world.client() as client:
        assert not client.has_manifest(target, image.digest)
        assert client.has_manifest(source, image.digest)


@needs_go
def test_crane_copies_with_mounts(world: World, skopeo: Skopeo, tmp_path: Path) -> None:
    """Baleen gets each of crane's mounts, and the copy is complete although none is made."""
    image = make_image(str(tmp_path))
    source, target = world.repository("pod-b"), world.repository("pod-a")
    skopeo.push(oci_layout(tmp_path / "layout", image), world.router.address, f"{source}:v1")
    world.coordinator.taken()
    at = world.router.address
    run("crane", tmp_path, "copy", "--insecure", f"{at}/{source}:v1", f"{at}/{target}:v1")
    asked = mounts_asked(world)
    assert {blob.digest for blob in image.blobs} == {httpx.URL(each).params["mount"] for each in asked}
    assert run("crane", tmp_path, "digest", "--insecure", f"{at}/{target}:v1").strip() == image.digest
    assert run("crane", tmp_path, "validate", "--insecure", "--remote", f"{at}/{target}:v1").startswith("PASS")


@needs_go
def test_oras_pushes_copies_and_pulls(world: World, tmp_path: Path) -> None:
    """An artifact comes back as it was, from the repository it was copied to, and its referrers are found."""
    (tmp_path / "file.txt").write_text("an artifact")
    source, target = world.repository("pod-b"), world.repository("pod-a")
    at = world.router.address
    run("oras", tmp_path, "push", "--plain-http", f"{at}/{source}:v1", "file.txt:text/plain")
    (tmp_path / "signature").write_text("signed")
    attach = ("attach", "--plain-http", "--artifact-type", "test/signature", f"{at}/{source}:v1", "signature")
    run("oras", tmp_path, *attach)
    run("oras", tmp_path, "cp", "-r", "--from-plain-http", "--to-plain-http", f"{at}/{source}:v1", f"{at}/{target}:v1")
    run("oras", tmp_path, "pull", "--plain-http", "-o", "pulled", f"{at}/{target}:v1")
    assert (tmp_path / "pulled" / "file.txt").read_text() == "an artifact"
    found = json.loads(run("oras", tmp_path, "discover", "--plain-http", "--format", "json", f"{at}/{target}:v1"))
    assert "test/signature" in json.dumps(found)


# Tokens


@dataclass(frozen=True, kw_only=True)
class Guarded(DistributionRegistry):
    """A registry that requires tokens of the router."""

    realm: str
    bundle: str

    def configuration(self) -> dict[str, Any]:
        token = {"realm": self.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": self.bundle}
        return super().configuration() | {"auth": {"token": token}}


@pytest.fixture
def guarded(world: World, tmp_path: Path) -> Iterator[tuple[Router, TokenIssuer]]:
    """A pod that requires tokens, and a router that forwards token requests to the one issuer."""
    name = world.repository("pod-a").replace("/", "-")
    port = world.ports.take(name)
    with TokenIssuer(tmp_path) as issuer:
        made = world.another_router(
            pods=[router.RoutedPod("pod-g", ["guarded"], [parse_registry(f"http://{HOST}:{port}")])],
            issuer=router.parse_issuer(issuer.realm, "--issuer"),
        )
        registry = Guarded(
            name=name,
            directory=tmp_path / name,
            port=port,
            storage=world.storage,
            http_secret=HTTP_SECRET,
            realm=f"{made.url}/jwt/auth",
            bundle=str(issuer.bundle),
        )
        pod = Pod(world.children, registry)
        yield made, issuer
        pod.kill()


def test_a_token_is_got_and_used_through_the_router(guarded: tuple[Router, TokenIssuer]) -> None:
    """The registry names the router's address for tokens, and the token opens the repository."""
    made, issuer = guarded
    asked = made.ask("GET", "/v2/guarded/empty/tags/list")
    assert asked.status_code == 401
    assert asked.headers["WWW-Authenticate"].startswith(f'Bearer realm="{made.url}/jwt/auth",service="{SERVICE}"')
    assert made.ask("GET", "/v2/").status_code == 401
    wanted = {"service": SERVICE, "scope": "repository:guarded/empty:pull"}
    got = made.ask("GET", "/jwt/auth", params=wanted, headers={"Authorization": basic_header(CREDENTIALS)})
    token = got.json()["token"]
    assert issuer.asked[-1].scopes == ("repository:guarded/empty:pull",)
    headers = {"Authorization": f"Bearer {token}"}
    assert made.ask("GET", "/v2/guarded/empty/tags/list", headers=headers).status_code == 404
    assert made.ask("GET", "/v2/guarded/other/tags/list", headers=headers).status_code == 401


def test_skopeo_pushes_with_a_token(guarded: tuple[Router, TokenIssuer], skopeo: Skopeo, tmp_path: Path) -> None:
    """A client with credentials pushes and pulls as it does at a single registry."""
    made, _ = guarded
    image = make_image(str(tmp_path))
    who = f"{CREDENTIALS.username}:{CREDENTIALS.password.reveal()}"
    skopeo.push(oci_layout(tmp_path / "layout", image), made.address, "guarded/app:v1", f"--dest-creds={who}")
    written = (made.directory / "access.log").read_bytes() + (made.directory / "error.log").read_bytes()
    assert CREDENTIALS.password.reveal().encode() not in written
    assert b"scope=" not in written
