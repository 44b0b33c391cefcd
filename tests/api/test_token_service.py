"""`/jwt/auth` over HTTP: pods and their issuers as they are registered, credentials as clients send them."""

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.api import token_service
from coordinator.compose import api as compose_api
from coordinator.domain.mounts import NotMountedError, Reason
from coordinator.errors import SettingsError
from coordinator.settings import make_settings
from coordinator.stack.supervisor import StackEndpoints
from coordinator.tokens.keys import CHECK_SECONDS, parse_trusted_keys
from coordinator.tokens.service import CredentialsRefusedError
from coordinator.tokens.verify import TokenVerifier
from tests.api.harness import Served, served, settings_for
from tests.support.wait import eventually
from tests.tokens import forge
from tests.tokens.forge import ec_key, kid, rsa_key
from tests.tokens.issuer import Issuer, basic

OURS, AUDIENCE = "baleen-of-tests", "all-registries"
PASSWORD = "pass:word-in-plain-sight"
ALICE = basic("alice", PASSWORD)
APP, BASE = "repository:team-a/app:pull,push", "repository:team-b/base:pull"


class Tokens(NamedTuple):
    """An API that makes tokens, and the issuers of its two pods."""

    api: Served
    one: Issuer
    two: Issuer
    file: Path

    def get(self, authorization: str | None = ALICE, **parameters: Any) -> httpx.Response:
        headers = {} if authorization is None else {"Authorization": authorization}
        return self.api.client.get("/jwt/auth", params=parameters, headers=headers)

    def post(self, **fields: str) -> httpx.Response:
        return self.api.client.post("/jwt/auth", data=fields)

    def granted(self, answer: httpx.Response) -> dict[str, list[str]]:
        """What the token of an answer grants, proved by the published keys alone."""
        assert answer.status_code == 200, answer.text
        published = parse_trusted_keys(self.api.client.get("/.well-known/jwks.json").content)
        verifier = TokenVerifier(lambda: published, issuer=OURS, audience=AUDIENCE)
        return {grant.name: sorted(grant.actions) for grant in verifier.verify(answer.json()["token"]).access.grants}


@pytest.fixture(scope="module")
def running(embedded_stack: StackEndpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokens]:
    file = tmp_path_factory.mktemp("keys") / "signing.pem"
    file.write_bytes(forge.private_pem(ec_key(50)))
    settings = settings_for(
        embedded_stack, jwt_signing_keys=str(file), jwt_issuer=OURS, jwt_audience=AUDIENCE, jwt_lifetime="2m"
    )
    users = {"alice": PASSWORD}
    with (
        Issuer("issuer-a", rsa_key(0), users, {"team-a/app": {"pull", "push"}}) as one,
        Issuer("issuer-b", ec_key(0), users, {"team-b/base": {"pull"}}) as two,
        served(settings) as api,
    ):
        for name, issuer in (("a", one), ("b", two)):
            body = {"name": f"pod-{name}", "prefixes": [f"team-{name}"], "token_issuer": issuer.described()}
            assert api.ask("POST", "/v1/pods", json=body).status_code == 201
        yield Tokens(api, one, two, file)


@pytest.fixture
def tokens(running: Tokens) -> Iterator[Tokens]:
    yield running
    for issuer in (running.one, running.two):
        issuer.asked.clear()
        issuer.reply = lambda _: None
        issuer.takes_forms = True


def test_get(tokens: Tokens) -> None:
    """Scopes in several parameters or in one are granted by the issuers of their pods in one token."""
    for scopes in ([APP, BASE], [f"{APP} {BASE}"]):
        answer = tokens.get(service=AUDIENCE, scope=scopes, account="alice", client_id="docker", offline_token="true")
        assert tokens.granted(answer) == {"team-a/app": ["pull", "push"], "team-b/base": ["pull"]}
        shown = answer.json()
        assert set(shown) == {"token", "access_token", "expires_in", "issued_at"}
        assert shown["token"] == shown["access_token"]
        assert 60 <= shown["expires_in"] <= 120
        assert shown["issued_at"].endswith("Z")
        assert answer.headers["Cache-Control"] == "no-store"
    assert [request.scopes() for request in tokens.two.asked] == [[BASE], [BASE]]
    assert [request.fields["client_id"] for request in tokens.two.asked] == [["docker"]] * 2


def test_post(tokens: Tokens) -> None:
    """A form of OAuth2 does the same, with a password or a refresh token."""
    form = {"grant_type": "password", "service": AUDIENCE, "client_id": "c", "scope": f"{APP} {BASE}"}
    tokens.two.takes_forms = False
    answer = tokens.post(**form, username="alice", password=PASSWORD)
    assert tokens.granted(answer) == {"team-a/app": ["pull", "push"], "team-b/base": ["pull"]}
    refresh = form | {"grant_type": "refresh_token", "refresh_token": f"refresh-{PASSWORD}"}
    assert tokens.granted(tokens.post(**refresh)) == {"team-a/app": ["pull", "push"]}


def test_log_in(tokens: Tokens) -> None:
    """A login without scopes gets a token that grants nothing; wrong credentials get 401 with a challenge."""
    assert tokens.granted(tokens.get(service=AUDIENCE)) == {}
    for answer in (
        tokens.get(basic("alice", "wrong"), service=AUDIENCE),
        tokens.get(basic("alice", "wrong"), service=AUDIENCE, scope=APP),
        tokens.get("Basic !!!", scope=APP),
        tokens.get("Basic YWxpY2U=", scope=APP),
        tokens.get("Bearer x", scope=APP),
        tokens.post(grant_type="password", username="alice", password="wrong", scope=APP),
    ):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "query",
    [
        {"scope": "team-a/app"},
        {"scope": ["repository:team-a/app:pull"] * 101},
        {"scope": APP, "service": "another"},
        {"scope": APP, "service": "x" * 2000},
        {f"x{n}": "" for n in range(300)},
        {"scope": "repository:team-a/\x00:pull"},
    ],
)
def test_what_cannot_be_meant(tokens: Tokens, query: dict[str, Any]) -> None:
    """A malformed query is refused with 400 and a sentence, and no issuer is called."""
    answer = tokens.get(**query)
    assert answer.status_code == 400
    assert answer.json()["detail"]
    assert tokens.one.asked == tokens.two.asked == []


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"grant_type": "client_credentials"},
        {"grant_type": "password", "username": "alice"},
        {"grant_type": "refresh_token"},
        {"grant_type": "password", "username": "x" * 2000, "password": "x"},
    ],
)
def test_forms_that_cannot_be_meant(tokens: Tokens, form: dict[str, str]) -> None:
    """A malformed form is refused, and no issuer is called."""
    assert tokens.post(**form).status_code == 400
    assert tokens.api.client.post("/jwt/auth", content=b"\xff" * 100).status_code == 400
    assert tokens.api.client.post("/jwt/auth", content=b"x" * 300_000).status_code == 413
    assert tokens.one.asked == []


def test_a_password_in_other_case() -> None:
    """A password's bytes reach the issuer unchanged; a user's name must be valid text."""
    sent = "Basic " + base64.b64encode("alice:gr\u00fc\u00dfe".encode("latin-1")).decode()
    known = token_service._parse_basic(sent)
    assert (known.username, known.authorization) == ("alice", sent)
    with pytest.raises(CredentialsRefusedError):
        token_service._parse_basic("Basic " + base64.b64encode(b"\xfc:x").decode())


def test_nothing_of_credentials_is_reported(tokens: Tokens, caplog: pytest.LogCaptureFixture) -> None:
    """No answer and no log line contains a credential."""
    caplog.set_level(logging.DEBUG)
    wrong = "another-secret-in-plain-sight"
    answers = [
        tokens.get(basic("alice", wrong), scope=APP),
        tokens.get(f"Basic {wrong}", scope=APP),
        tokens.post(grant_type="password", username="alice", password=wrong, scope="no scope"),
        tokens.post(grant_type=wrong, username="alice", password=wrong),
        tokens.post(grant_type="refresh_token", refresh_token=wrong, scope=APP),
    ]
    logged = "".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    for text in (*(answer.text for answer in answers), *(str(answer.headers) for answer in answers), logged):
        assert wrong not in text
        assert basic("alice", wrong).removeprefix("Basic ") not in text


def test_pods_show_their_issuers(tokens: Tokens) -> None:
    """A pod shows its issuer without the keys; an issuer is changed and removed, and a malformed one is refused."""
    shown = tokens.api.get("/v1/pods/pod-a").json()["token_issuer"]
    known = tokens.one.registered()
    assert shown == {
        "url": known.url,
        "issuer": "issuer-a",
        "service": "issuer-a-registry",
        "key_ids": [kid(rsa_key(0))],
    }
    assert "BEGIN" not in tokens.api.get("/v1/pods").text
    made = {"name": "pod-x", "prefixes": ["team-x"]}
    assert tokens.api.ask("POST", "/v1/pods", json=made).status_code == 201
    path = "/v1/pods/pod-x/token-issuer"
    assert tokens.api.get("/v1/pods/pod-x").json()["token_issuer"] is None
    for wrong in (
        tokens.one.described(keys=forge.private_pem(ec_key(1)).decode()),
        tokens.one.described(keys="none"),
        tokens.one.described(keys=forge.public_pem(rsa_key(0)).decode() + "\0"),
        tokens.one.described(url="http://user:secret@host/x"),
        tokens.one.described(url="ftp://host/x"),
        tokens.one.described(issuer=""),
        tokens.one.described(service="a\nb"),
        {name: value for name, value in tokens.one.described().items() if name != "keys"},
    ):
        answer = tokens.api.ask("PUT", path, json=wrong)
        assert answer.status_code == 400, answer.text
        assert "secret" not in answer.text
        assert "PRIVATE" not in answer.text
    put = tokens.api.ask("PUT", path, json=tokens.one.described(keys=forge.public_pem(ec_key(1), rsa_key(0)).decode()))
    assert put.json()["token_issuer"]["key_ids"] == [kid(ec_key(1)), kid(rsa_key(0))]
    assert tokens.api.ask("DELETE", path).status_code == 204
    assert tokens.api.get("/v1/pods/pod-x").json()["token_issuer"] is None
    assert tokens.api.ask("PUT", "/v1/pods/nobody/token-issuer", json=tokens.one.described()).status_code == 404
    assert tokens.api.ask("DELETE", "/v1/pods/nobody/token-issuer").status_code == 404
    assert tokens.api.ask("DELETE", "/v1/pods/pod-x").status_code == 204


@pytest.mark.lengthy
def test_an_issuer_that_is_taken_away(tokens: Tokens) -> None:
    """Without its issuer a pod's repositories are granted to no one within seconds, and with it again they are."""
    assert tokens.api.ask("DELETE", "/v1/pods/pod-b/token-issuer").status_code == 204
    eventually(
        lambda: tokens.granted(tokens.get(scope=[APP, BASE])) == {"team-a/app": ["pull", "push"]},
        "the pod's part is gone",
    )
    assert tokens.api.ask("PUT", "/v1/pods/pod-b/token-issuer", json=tokens.two.described()).status_code == 200
    eventually(lambda: "team-b/base" in tokens.granted(tokens.get(scope=[APP, BASE])), "the pod's part is back")


def test_the_key_changes(tokens: Tokens) -> None:
    """A file with another first key signs with that, and still publishes the other: no token is ever unknown."""
    old, new = ec_key(50), rsa_key(51)
    assert CHECK_SECONDS < 5
    stages: list[list[forge.Private]] = [[old, new], [new, old], [], [new]]
    for keys in stages:
        # Nothing to sign with is a broken file.
        tokens.file.write_bytes(forge.private_pem(*keys))
        names = [kid(key) for key in keys]

        def as_written(names: list[str] = names) -> bool:
            assert tokens.granted(tokens.get(scope=APP)) == {"team-a/app": ["pull", "push"]}
            published = tokens.api.client.get("/.well-known/jwks.json").json()["keys"]
            return [key["kid"] for key in published] == names

        if names:
            eventually(as_written, "the keys are published")
            signed = jwt.get_unverified_header(tokens.get(scope=APP).json()["token"])["kid"]
            assert signed == names[0]
        else:
            assert tokens.granted(tokens.get(scope=APP)) == {"team-a/app": ["pull", "push"]}


def test_metrics(tokens: Tokens) -> None:
    """Requests are counted by outcome, answers by pod and outcome."""

    def counted(name: str, **labels: str) -> float:
        text = tokens.api.client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    before = counted("baleen_token_requests_total", outcome="issued")
    refused = counted("baleen_token_issuer_answers_total", pod="pod-a", outcome="refused")
    seconds = counted("baleen_token_issuer_seconds_count", pod="pod-a")
    tokens.get(scope=APP)
    tokens.get(basic("alice", "wrong"), scope=APP)
    assert counted("baleen_token_requests_total", outcome="issued") == before + 1
    assert counted("baleen_token_issuer_answers_total", pod="pod-a", outcome="refused") == refused + 1
    assert counted("baleen_token_issuer_seconds_count", pod="pod-a") == seconds + 2


def test_off(api: Served) -> None:
    """Without a key to sign with, the token service answers 404."""
    for path in ("/jwt/auth?scope=x", "/.well-known/jwks.json"):
        assert api.client.get(path).status_code == 404
    answer = api.client.post("/jwt/auth", data={"grant_type": "password"})
    assert (answer.status_code, "BALEEN_JWT_SIGNING_KEYS" in answer.text) == (404, True)


def test_keys_need_names(tmp_path: Path) -> None:
    """Signing keys without an issuer or audience are refused with the missing settings."""
    file = tmp_path / "keys.pem"
    file.write_bytes(forge.private_pem(ec_key(50)))
    settings = make_settings({"jwt_signing_keys": str(file)})
    with pytest.raises(SettingsError, match="BALEEN_JWT_ISSUER and BALEEN_JWT_AUDIENCE"):
        compose_api.make_token_verifier(settings, compose_api.open_signing_keys(settings))
    settings = make_settings({"jwt_signing_keys": str(file), "jwt_issuer": OURS, "jwt_audience": AUDIENCE})
    own = compose_api.make_token_verifier(settings, compose_api.open_signing_keys(settings))
    assert own is not None
    made = forge.token(ec_key(50), forge.claims(iss=OURS, aud=AUDIENCE))
    assert own.verify(made).access.permits("team/app", "pull")
    trusted = tmp_path / "trusted.json"
    trusted.write_text(json.dumps({"keys": [parse_trusted_keys(forge.public_pem(rsa_key(0))).keys[0].jwk()]}))
    given = make_settings({"jwt_keys": str(trusted), "jwt_issuer": OURS, "jwt_audience": AUDIENCE})
    other = compose_api.make_token_verifier(given, compose_api.open_signing_keys(given))
    assert other is not None
    assert other.verify(forge.token(rsa_key(0), forge.claims(iss=OURS, aud=AUDIENCE))).subject == "alice"
    assert compose_api.make_token_verifier(make_settings({}), None) is None


def test_rights_of_a_mount() -> None:
    """A mount has the rights of a trusted bearer token, and none without one."""
    trusted = parse_trusted_keys(forge.public_pem(rsa_key(0)))
    verifier = TokenVerifier(lambda: trusted, issuer=forge.ISSUER, audience=forge.AUDIENCE)
    may = compose_api.make_rights_reader(make_settings({}), verifier)
    access = may(f"bearer {forge.token(rsa_key(0))}")
    assert access is not None
    assert access.permits("team/app", "pull")
    assert not access.permits("team/app", "push")
    for authorization in (None, "", "Bearer ", "Basic YTpi", f"Bearer {forge.token(rsa_key(1))}"):
        with pytest.raises(NotMountedError) as refused:
            may(authorization)
        assert refused.value.reason == Reason.NO_RIGHT
        with pytest.raises(NotMountedError):
            compose_api.make_rights_reader(make_settings({}), None)(authorization)
