"""The client logs in to a registry that requires it, and sends no password or token elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from coordinator.registry.auth import TOKEN_SECONDS, Credentials, RegistryAuth
from coordinator.registry.client import (
    RegistryAuthenticationError,
    RegistryClient,
    RegistryError,
    RegistryUnreachableError,
)
from coordinator.registry.images import make_image, sha256_digest
from coordinator.settings import Secret
from tests.support.guarded_registry import GuardedRegistry
from tests.support.issuer import CREDENTIALS, SERVICE, TokenIssuer, basic_header
from tests.support.registries import REQUEST_S, running_distribution
from tests.support.sink import NotificationSink

DIGEST = sha256_digest(b"content")


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[TokenIssuer]:
    with TokenIssuer(tmp_path) as issuer:
        yield issuer


@pytest.fixture
def guarded() -> Iterator[GuardedRegistry]:
    with GuardedRegistry() as registry:
        yield registry


class Everything(set[str]):
    """All bearer tokens."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value.startswith("Bearer ")


def ask_for_tokens(guarded: GuardedRegistry, realm: str, scope: str = "repository:a:pull") -> None:
    guarded.challenge = f'Bearer realm="{realm}",service="{SERVICE}",scope="{scope}"'
    guarded.good = Everything()


def test_basic(guarded: GuardedRegistry) -> None:
    """A registry that requires Basic gets the credentials after its challenge, and then with each request."""
    guarded.challenge, guarded.good = 'Basic realm="registry"', {basic_header(CREDENTIALS)}
    with RegistryClient(guarded.url, credentials=CREDENTIALS) as client:
        assert client.has_manifest("a", DIGEST)
        assert client.has_manifest("a", DIGEST)
    assert [request.authorization for request in guarded.requests] == [None, *[basic_header(CREDENTIALS)] * 2]


def test_wrong_password(guarded: GuardedRegistry) -> None:
    """A refused password is reported as that, and not sent repeatedly."""
    guarded.challenge, guarded.good = 'Basic realm="registry"', {basic_header(CREDENTIALS)}
    with RegistryClient(guarded.url, credentials=Credentials("prober", Secret("wrong"))) as client:
        for _ in range(2):
            with pytest.raises(RegistryError) as refused:
                client.has_manifest("a", DIGEST)
            assert refused.value.registry_status == 401
    assert [request.authorization is None for request in guarded.requests] == [True, False, False]


def test_a_token_is_fetched_once(guarded: GuardedRegistry, issuer: TokenIssuer) -> None:
    """A token is used until it ends; another kind of request, or repository, has its own."""
    ask_for_tokens(guarded, issuer.realm, "repository:a:pull repository:b:pull")
    with RegistryClient(guarded.url, credentials=CREDENTIALS) as client:
        for _ in range(3):
            assert client.has_manifest("a", DIGEST)
        assert len(issuer.asked) == 1
        assert issuer.asked[0].authorization == basic_header(CREDENTIALS)
        assert issuer.asked[0].scopes == ("repository:a:pull", "repository:b:pull")
        client.push_blob("a", b"content")
        client.has_manifest("b", DIGEST)
        assert len(issuer.asked) == 3
    assert basic_header(CREDENTIALS) not in {request.authorization for request in guarded.requests}


def test_a_body_that_is_spent_is_not_sent_again(guarded: GuardedRegistry, issuer: TokenIssuer) -> None:
    """The request that opens an upload fetches the token for its bytes."""
    ask_for_tokens(guarded, issuer.realm)
    with RegistryClient(guarded.url, credentials=CREDENTIALS) as client:
        client.push_blob("a", b"content")
    assert [request.method for request in guarded.requests] == ["POST", "POST", "PUT"]


def test_a_token_ends() -> None:
    """Shortly before a token ends another is fetched; one without an end is used for a minute."""
    now = 1000.0
    auth = RegistryAuth("http://registry", CREDENTIALS, clock=lambda: now)

    def ask(answer: httpx.Response) -> str:
        """Have one request challenged if it carries no token; return what it carries in the end."""
        flow = auth.sync_auth_flow(httpx.Request("HEAD", "http://registry/v2/a/manifests/x"))
        request = next(flow)
        if (sent := request.headers.get("Authorization")) is not None:
            return str(sent)
        challenge = {"WWW-Authenticate": 'Bearer realm="http://issuer/",service="s",scope="repository:a:pull"'}
        asked = flow.send(httpx.Response(401, headers=challenge, request=request))
        answer.request = asked
        return str(flow.send(answer).headers["Authorization"])

    assert ask(httpx.Response(200, json={"token": "one", "expires_in": 300})) == "Bearer one"
    now += 280
    assert ask(httpx.Response(200, json={"token": "two"})) == "Bearer one"
    now += 15
    assert ask(httpx.Response(200, json={"access_token": "two"})) == "Bearer two"
    now += TOKEN_SECONDS - 15
    assert ask(httpx.Response(200, json={"token": "three"})) == "Bearer two"
    now += 10
    assert ask(httpx.Response(200, json={"token": "three"})) == "Bearer three"


def test_anybody_may_ask(guarded: GuardedRegistry, issuer: TokenIssuer) -> None:
    """Without credentials the issuer gets an anonymous request, and its refusal names the setting."""
    ask_for_tokens(guarded, issuer.realm)
    with (
        RegistryClient(guarded.url) as client,
        pytest.raises(RegistryAuthenticationError, match="BALEEN_REGISTRY_USERNAME"),
    ):
        client.has_manifest("a", DIGEST)
    assert [asked.authorization for asked in issuer.asked] == [None]


@pytest.mark.parametrize(
    ("registry", "challenge"),
    [
        ("https://registry", 'Bearer realm="http://issuer/token"'),
        ("http://registry", 'Bearer realm="file:///etc/passwd"'),
        ("http://registry", 'Bearer service="s"'),
    ],
)
def test_credentials_do_not_go_anywhere(registry: str, challenge: str) -> None:
    """Credentials are not sent to a realm without TLS from a registry with it, nor to other schemes."""
    flow = RegistryAuth(registry, CREDENTIALS).sync_auth_flow(httpx.Request("GET", f"{registry}/v2/"))
    request = next(flow)
    with pytest.raises(RegistryAuthenticationError, match="token issuer"):
        flow.send(httpx.Response(401, headers={"WWW-Authenticate": challenge}, request=request))


def test_the_challenge_of_another_place_is_not_heeded(guarded: GuardedRegistry, issuer: TokenIssuer) -> None:
    """The issuer that the target of a redirect names gets no password."""
    guarded.good = {None}
    with GuardedRegistry() as elsewhere:
        ask_for_tokens(elsewhere, issuer.realm)
        guarded.redirects[f"/v2/a/manifests/{DIGEST}"] = f"{elsewhere.url}/there"
        with RegistryClient(guarded.url, credentials=CREDENTIALS) as client, pytest.raises(RegistryError):
            client.has_manifest("a", DIGEST)
        assert [request.authorization for request in elsewhere.requests] == [None]
    assert issuer.asked == []


def test_an_issuer_that_is_away(guarded: GuardedRegistry, tmp_path: Path) -> None:
    """An issuer that is away is named by its address, and does not count as a registry that is gone."""
    with TokenIssuer(tmp_path) as gone:
        ask_for_tokens(guarded, gone.realm)
    with RegistryClient(guarded.url, credentials=CREDENTIALS, timeout=5) as client:
        with pytest.raises(RegistryUnreachableError) as failed:
            client.has_manifest("a", DIGEST)
        assert type(failed.value) is RegistryUnreachableError
        assert gone.realm.removesuffix("/jwt/auth") in str(failed.value)


def test_secrets_are_not_shown(guarded: GuardedRegistry, issuer: TokenIssuer) -> None:
    """Neither a repr nor an error has a password or a token in it."""
    ask_for_tokens(guarded, issuer.realm)
    auth = RegistryAuth(guarded.url, CREDENTIALS)
    with RegistryClient(guarded.url, credentials=CREDENTIALS) as client:
        client.has_manifest("a", DIGEST)
        guarded.good = set()
        with pytest.raises(RegistryError) as refused:
            client.has_manifest("a", DIGEST)
        shown = f"{client!r} {auth!r} {client._http.auth!r} {CREDENTIALS!r} {refused.value}"
        shown += repr(client._http.auth._tokens)  # type: ignore[union-attr]
    assert "pass:word" not in shown
    assert basic_header(CREDENTIALS) not in shown
    assert "ey" not in shown.replace("key", "")


@pytest.mark.registry
def test_token_flow_on_the_real_program(issuer: TokenIssuer, sink: NotificationSink, tmp_path: Path) -> None:
    """With token auth an image is pushed, mounted, pulled and deleted, each with its own token."""
    image = make_image("token flow")
    with (
        running_distribution(sink, tmp_path, more=issuer.configuration()) as registry,
        RegistryClient(registry.url, credentials=CREDENTIALS, timeout=REQUEST_S) as client,
        RegistryClient(registry.url, timeout=REQUEST_S) as stranger,
    ):
        client.ping()
        client.push_image("a/one", image, "v1")
        assert client.mount_blob("a/two", image.layers[0].digest, "a/one")
        assert client.pull_image("a/one", "v1").digest == image.digest
        client.delete_manifest("a/one", image.digest)
        assert not client.has_manifest("a/one", image.digest)
        with pytest.raises(RegistryAuthenticationError):
            stranger.has_manifest("a/one", image.digest)
