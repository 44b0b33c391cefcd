"""Two pods with an issuer each, real registries that trust Baleen's key: clients push and pull with Baleen's tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from coordinator.registry.auth import Credentials
from coordinator.registry.client import RegistryAuthenticationError, RegistryClient, RegistryError
from coordinator.registry.images import make_image
from coordinator.settings import Secret
from coordinator.stack.supervisor import StackEndpoints
from tests.api.harness import Served, served, settings_for
from tests.support.registries import running_distribution
from tests.support.sink import NotificationSink
from tests.tokens import forge
from tests.tokens.forge import ec_key, rsa_key
from tests.tokens.issuer import Issuer

pytestmark = pytest.mark.registry

OURS, AUDIENCE, PASSWORD = "baleen-of-tests", "all-registries", "pass:word"


class Pods(NamedTuple):
    api: Served
    one: Issuer
    two: Issuer
    #: A registry that serves both pods' repositories, as a router would.
    url: str

    def client(self, password: str = PASSWORD) -> RegistryClient:
        return RegistryClient(self.url, credentials=Credentials("alice", Secret(password)), timeout=20)


@pytest.fixture
def pods(embedded_stack: StackEndpoints, tmp_path: Path) -> Iterator[Pods]:
    signing, bundle = tmp_path / "signing.pem", tmp_path / "bundle.crt"
    signing.write_bytes(forge.private_pem(ec_key(50)))
    bundle.write_bytes(forge.pem(forge.certificate(ec_key(50))))
    settings = settings_for(embedded_stack, jwt_signing_keys=str(signing), jwt_issuer=OURS, jwt_audience=AUDIENCE)
    users, both = {"alice": PASSWORD}, {"pull", "push"}
    with (
        Issuer("issuer-a", rsa_key(0), users, {"team-a/app": both}) as one,
        Issuer("issuer-b", ec_key(0), users, {"team-b/base": both}) as two,
        served(settings) as api,
        NotificationSink() as sink,
    ):
        for name, issuer in (("a", one), ("b", two)):
            body = {"name": f"pod-{name}", "prefixes": [f"team-{name}"], "token_issuer": issuer.described()}
            assert api.ask("POST", "/v1/pods", json=body).status_code == 201
        section = (
            f"auth:\n  token: {{realm: '{api.url}/jwt/auth', service: {AUDIENCE}, issuer: {OURS},"
            f" rootcertbundle: '{bundle}'}}\n"
        )
        with running_distribution(sink, tmp_path, more=section) as registry:
            yield Pods(api, one, two, registry.url)


def test_push_and_mount_across_pods(pods: Pods) -> None:
    """A push to a pod needs its own issuer, and a mount both: one token has both rights."""
    image = make_image("app")
    with pods.client() as client:
        client.ping()
        client.push_image("team-b/base", image, "v1")
        assert client.pull_image("team-b/base", "v1").digest == image.digest
        assert client.mount_blob("team-a/app", image.layers[0].digest, "team-b/base")
    assert {scope for request in pods.one.asked for scope in request.scopes()} == {"repository:team-a/app:pull,push"}
    assert {scope for request in pods.two.asked for scope in request.scopes()} == {
        "repository:team-b/base:pull,push",
        "repository:team-b/base:pull",
    }


def test_who_may_not(pods: Pods) -> None:
    """The registry refuses another tenant, a wrong password, and a client whose issuer is away."""
    image = make_image("app")
    pods.two.rights = {}
    with pods.client() as client, pytest.raises(RegistryError) as refused:
        client.push_image("team-b/base", image, "v1")
    assert refused.value.registry_status == 401
    with pods.client("wrong") as client, pytest.raises(RegistryAuthenticationError):
        client.ping()
    pods.two.close()
    with pods.client() as client:
        client.push_image("team-a/app", image, "v1")
        with pytest.raises(RegistryAuthenticationError, match="503"):
            client.push_image("team-b/base", image, "v1")
