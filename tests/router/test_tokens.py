"""Tokens from Baleen by way of the router: two pods with an issuer each, registries that trust Baleen, real clients.

Bytes come from the store itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from coordinator.pods import prober
from coordinator.registry.auth import Credentials
from coordinator.registry.client import RegistryClient, RegistryError
from coordinator.registry.images import make_image
from coordinator.settings import Secret
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry
from tests.conftest import temporary_directory
from tests.registries.harness import Baleen, Pod, Registry
from tests.registries.skopeo import Skopeo, oci_layout
from tests.router.programs import needs_go, run
from tests.router.proxies import BOTH, ENVOY, NGINX
from tests.router.running import PROBE_EVERY, Running, add_pods, router_address, start_registries, start_router
from tests.tokens import forge
from tests.tokens.forge import ec_key, rsa_key
from tests.tokens.issuer import Issuer

pytestmark = pytest.mark.registry

OURS, AUDIENCE = "baleen-of-tests", "all-registries"
USER, PASSWORD = "alice", "pass:word"
#: Who knows no other repository than those of the second pod.
TENANT = "mallory"
CLIENT_S = 60.0
#: The head and the claims of any JWT, each a JSON object. An upload's `_state`, random base64 in a registry's log, can
#: begin like one by chance, but has no dot.
A_TOKEN = re.compile(rb"eyJ[\w-]+\.eyJ")


class Guarded(NamedTuple):
    """All of it, and the pods' own issuers."""

    running: Running
    issuers: tuple[Issuer, Issuer]

    directory: Path
    #: At the end of each repository's name.
    mark: str

    def client(self, user: str) -> RegistryClient:
        return RegistryClient(
            self.running.router.url, credentials=Credentials(user, Secret(PASSWORD)), timeout=CLIENT_S
        )

    def name(self, pod: int, repository: str) -> str:
        base, colon, tag = repository.partition(":")
        return f"{self.running.pods[pod].name}/{base}-{self.mark}{colon}{tag}"

    def uploads(self, pod: int, repository: str) -> int:
        path = f"/v2/{self.name(pod, repository)}/blobs/uploads/"
        return len(set(re.findall(rf'"(?:PATCH|PUT) {path}([0-9a-f-]+)', self.running.registries[pod].log())))

    def sent(self, pod: int, repository: str) -> set[str]:
        """The statuses of the pod's answers to requests for a blob's bytes."""
        path = f"/v2/{self.name(pod, repository)}/blobs/sha256:"
        return set(re.findall(rf'"GET {path}[0-9a-f]+ HTTP/1\.[01]" ([0-9]+) ', self.running.registries[pod].log()))

    def mounted(self) -> float:
        return self.running.baleen.counted('baleen_mounts_total{outcome="mounted"')


def rights(pod: Pod) -> dict[str, set[str]]:
    names = [f"{name}-{proxy.name}" for name in ("skopeo", "crane", "oras", "tenant") for proxy in (NGINX, ENVOY)]
    return {f"{pod.name}/{name}": {"pull", "push", "delete"} for name in (*names, prober.REPOSITORY)}


class Behind(NamedTuple):
    """What is behind the router, which it knows by its address alone."""

    baleen: Baleen
    pods: tuple[Pod, Pod]
    registries: tuple[Registry, Registry]
    issuers: tuple[Issuer, Issuer]
    directory: Path
    children: Children
    address: str


@pytest.fixture(scope="module")
def behind() -> Iterator[Behind]:
    with ExitStack() as closing:
        directory = closing.enter_context(temporary_directory())
        children = closing.enter_context(Children())
        signing, bundle = directory / "signing.pem", directory / "bundle.crt"
        signing.write_bytes(forge.private_pem(ec_key(60)))
        bundle.write_bytes(forge.pem(forge.certificate(ec_key(60))))
        settings = {
            "MOUNTS": "token",
            "PROBE_EVERY": PROBE_EVERY,
            "JWT_SIGNING_KEYS": str(signing),
            "JWT_ISSUER": OURS,
            "JWT_AUDIENCE": AUDIENCE,
            "REGISTRY_USERNAME": USER,
            "REGISTRY_PASSWORD": PASSWORD,
        }
        baleen = Baleen(directory, children, {f"BALEEN_{name}": value for name, value in settings.items()})
        closing.enter_context(baleen.api)
        pods = add_pods(baleen)
        users = {USER: PASSWORD, TENANT: PASSWORD}
        issuers = (
            closing.enter_context(Issuer("issuer-a", rsa_key(0), {USER: PASSWORD}, rights(pods[0]))),
            closing.enter_context(Issuer("issuer-b", ec_key(0), users, rights(pods[1]))),
        )
        for pod, issuer in zip(pods, issuers, strict=True):
            baleen.ask("PUT", f"/v1/pods/{pod.name}/token-issuer", issuer.described())
        address = router_address(directory)

        @dataclass(frozen=True, kw_only=True)
        class Trusting(DistributionRegistry):
            """It trusts Baleen's key, and sends clients to the router for tokens and to the store for bytes."""

            redirect: bool = True

            def configuration(self) -> dict[str, Any]:
                token = {"realm": f"http://{address}/jwt/auth", "service": AUDIENCE, "issuer": OURS}
                return super().configuration() | {"auth": {"token": token | {"rootcertbundle": str(bundle)}}}

        registries = start_registries(baleen, pods, Trusting)
        yield Behind(baleen, pods, registries, issuers, directory, children, address)


@pytest.fixture(scope="module", params=BOTH)
def guarded(request: pytest.FixtureRequest, behind: Behind) -> Iterator[Guarded]:
    # What is mounted is counted: the router is to wait for it.
    options = ("--issuer", "baleen", "--baleen-timeout", f"{CLIENT_S:.0f}")
    router = start_router(request.param, behind.directory, behind.children, behind.address, *options)
    running = Running(behind.baleen, behind.pods, behind.registries, router)
    yield Guarded(running, behind.issuers, behind.directory, request.param.name)
    # The next one is to listen there.
    behind.children.kill(router.process)


def test_skopeo(guarded: Guarded, tmp_path: Path) -> None:
    """One token opens both pods, and skopeo uploads only the configuration, which it never mounts."""
    skopeo, image, at = Skopeo(tmp_path), make_image(str(tmp_path)), guarded.running.router.address
    skopeo.login(at, USER, PASSWORD)
    skopeo.push(oci_layout(tmp_path / "layout", image), at, guarded.name(0, "skopeo:v1"))
    before = guarded.mounted()
    skopeo.copy(f"{at}/{guarded.name(0, 'skopeo:v1')}", f"{at}/{guarded.name(1, 'skopeo:v1')}")
    assert guarded.mounted() == before + len(image.layers)
    assert guarded.uploads(0, "skopeo") == len(image.blobs)
    assert guarded.uploads(1, "skopeo") == 1
    assert skopeo.digest(at, guarded.name(1, "skopeo:v1")) == image.digest
    skopeo.pull(at, guarded.name(1, "skopeo:v1"), tmp_path / "pulled")
    assert guarded.sent(1, "skopeo") == {"307"}
    guarded.running.baleen.agree()


@needs_go
def test_crane(guarded: Guarded, tmp_path: Path) -> None:
    """Crane mounts the configuration, too, and uploads nothing."""
    image, at = make_image(str(tmp_path)), guarded.running.router.address
    source, target = (f"{at}/{guarded.name(pod, 'crane')}:v1" for pod in (0, 1))
    with guarded.client(USER) as client:
        client.push_image(guarded.name(0, "crane"), image, "v1")
    run("crane", tmp_path, "auth", "login", at, "-u", USER, "--password-stdin", text=PASSWORD)
    before = guarded.mounted()
    run("crane", tmp_path, "copy", "--insecure", source, target)
    assert guarded.mounted() == before + len(image.blobs)
    assert guarded.uploads(1, "crane") == 0
    assert run("crane", tmp_path, "validate", "--insecure", "--remote", target).startswith("PASS")
    assert guarded.sent(1, "crane") == {"307"}
    guarded.running.baleen.agree()


@needs_go
def test_oras(guarded: Guarded, tmp_path: Path) -> None:
    """Oras copies an artifact without an upload."""
    at = guarded.running.router.address
    (tmp_path / "file.txt").write_text(str(tmp_path))
    source, target = (f"{at}/{guarded.name(pod, 'oras')}:v1" for pod in (0, 1))
    run("oras", tmp_path, "login", "--plain-http", at, "-u", USER, "--password-stdin", text=PASSWORD)
    run("oras", tmp_path, "push", "--plain-http", source, "file.txt:text/plain")
    before = guarded.mounted()
    run("oras", tmp_path, "cp", "--from-plain-http", "--to-plain-http", source, target)
    assert guarded.mounted() > before
    assert guarded.uploads(1, "oras") == 0
    run("oras", tmp_path, "pull", "--plain-http", "-o", "pulled", target)
    assert (tmp_path / "pulled" / "file.txt").read_text() == str(tmp_path)
    assert guarded.sent(1, "oras") == {"307"}
    guarded.running.baleen.agree()


def test_a_second_tenant(guarded: Guarded, tmp_path: Path) -> None:
    """A tenant without rights in the source's pod mounts and reads nothing of it; its push is an upload."""
    image = make_image(str(tmp_path))
    source, target = guarded.name(0, "tenant"), guarded.name(1, "tenant")
    with guarded.client(USER) as client:
        client.push_image(source, image, "v1")
    before = guarded.mounted()
    with guarded.client(TENANT) as client:
        assert not client.mount_blob(target, image.layers[0].digest, source)
        with pytest.raises(RegistryError) as refused:
            client.pull_image(source, "v1")
        assert refused.value.registry_status == 401
        client.push_image(target, image, "v1", mount_from=source)
        assert client.pull_image(target, "v1").digest == image.digest
    assert guarded.mounted() == before
    guarded.running.baleen.agree()


def test_nobody_sees_a_password(guarded: Guarded) -> None:
    """No log of Baleen or the router contains a password or a token."""
    answer = httpx.get(
        f"{guarded.running.router.url}/jwt/auth", params={"service": AUDIENCE}, auth=(USER, PASSWORD), timeout=CLIENT_S
    )
    assert A_TOKEN.match(answer.json()["token"].encode())
    files = list(guarded.directory.rglob("*.log"))
    assert {"api.log", "access.log"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        assert PASSWORD.encode() not in content, file
        assert not A_TOKEN.search(content), file
