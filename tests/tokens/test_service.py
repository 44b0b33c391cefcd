"""One token from several real issuers: never more than each of them granted for its own repositories."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jwt
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.domain.access import parse_scopes
from coordinator.domain.names import PodName
from coordinator.domain.pods import TokenIssuer
from coordinator.errors import BaleenError, ForbiddenError, UnavailableError, UsageError
from coordinator.tokens import issuers as asking
from coordinator.tokens.issuers import ANSWER_LIMIT, Credentials, Issuers
from coordinator.tokens.service import BusyError, CredentialsRefusedError, TokenRequest, TokenService
from coordinator.tokens.sign import SignedToken, Signer, SigningKeys
from coordinator.tokens.verify import TokenVerifier, VerifiedToken
from tests.tokens import cases, forge
from tests.tokens.forge import ec_key, rsa_key
from tests.tokens.issuer import Issuer, Reply, Request, basic, now

OURS, AUDIENCE = "baleen-of-tests", "all-registries"
PASSWORD = "pass:word-in-plain-sight"
ALICE = Credentials("alice", basic("alice", PASSWORD))
FORM = Credentials("alice", form=(("grant_type", "password"), ("username", "alice"), ("password", PASSWORD)))
A, B = PodName("pod-a"), PodName("pod-b")
A_APP, B_BASE = "repository:team-a/app:pull,push", "repository:team-b/base:pull"


class Pod(NamedTuple):
    prefixes: list[str]
    issuer: TokenIssuer | None


class World:
    """Two pods with an issuer each, and a token service."""

    def __init__(self, one: Issuer, two: Issuer) -> None:
        self.one, self.two = one, two
        self.pods: dict[PodName, Pod] = {
            A: Pod(["team-a", "shared/a"], one.registered()),
            B: Pod(["team-b"], two.registered()),
            PodName("pod-c"): Pod(["team-c"], None),
        }
        self.keys = SigningKeys([ec_key(50)])
        #: Of issuers that answer: a machine that is slow for a moment makes none of them slow.
        self.seconds, self.in_flight = 30.0, 256
        self.lifetime = 300.0

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[TokenService]:
        async def pods() -> dict[PodName, Pod]:
            return self.pods

        signer = Signer(lambda: self.keys, issuer=OURS, audience=AUDIENCE, lifetime=self.lifetime)
        service = TokenService(pods, Issuers(seconds=self.seconds), signer, in_flight=self.in_flight)
        try:
            yield service
        finally:
            await service.close()

    def run(self, work: Callable[[TokenService], Awaitable[Any]]) -> Any:
        async def done() -> Any:
            async with self.service() as service:
                return await work(service)

        return asyncio.run(done())

    def issue(self, *scopes: str, credentials: Credentials = ALICE, **more: Any) -> SignedToken:
        signed: SignedToken = self.run(
            lambda service: service.issue(TokenRequest(parse_scopes(scopes), credentials, **more))
        )
        return signed

    def verified(self, signed: SignedToken) -> VerifiedToken:
        return TokenVerifier(lambda: self.keys.public, issuer=OURS, audience=AUDIENCE).verify(signed.token)

    def granted(self, *scopes: str, **more: Any) -> dict[str, list[str]]:
        access = self.verified(self.issue(*scopes, **more)).access
        return {grant.name: sorted(grant.actions) for grant in access.grants}


@pytest.fixture
def world() -> Iterator[World]:
    with (
        Issuer(
            "issuer-a", rsa_key(0), {"alice": PASSWORD}, {"team-a/app": {"pull", "push"}, "shared/a": {"pull"}}
        ) as one,
        Issuer("issuer-b", ec_key(0), {"alice": PASSWORD}, {"team-b/base": {"pull"}}) as two,
    ):
        yield World(one, two)


def test_the_union(world: World) -> None:
    """One token has what both issuers grant; each issuer gets only its own scopes, with the client's credentials."""
    assert world.granted(A_APP, B_BASE) == {"team-a/app": ["pull", "push"], "team-b/base": ["pull"]}
    for issuer, scope in ((world.one, A_APP), (world.two, B_BASE)):
        (request,) = issuer.asked
        assert (request.scopes(), request.user, request.password) == ([scope], "alice", PASSWORD)
        assert request.fields["service"] == [issuer.service]
        assert request.fields["account"] == ["alice"]


def test_the_shape(world: World) -> None:
    """The token has GitLab's claims, lives as long as is set, and names the key by its libtrust fingerprint."""
    signed = world.issue(A_APP)
    claims = jwt.decode(signed.token, options={"verify_signature": False})
    assert set(claims) == {"access", "jti", "aud", "sub", "iss", "iat", "nbf", "exp", "auth_type"}
    assert (claims["iss"], claims["aud"], claims["sub"]) == (OURS, AUDIENCE, "alice")
    assert claims["access"] == [{"type": "repository", "name": "team-a/app", "actions": ["pull", "push"]}]
    assert claims["auth_type"] == "personal_access_token"
    assert signed.expires_in == claims["exp"] - claims["iat"] <= 300
    assert jwt.get_unverified_header(signed.token) == {"alg": "ES256", "typ": "JWT", "kid": forge.kid(ec_key(50))}
    assert signed.token not in repr(signed)


def test_less_than_was_asked(world: World) -> None:
    """Actions that an issuer does not grant are left out; the rest is granted."""
    assert world.granted("repository:team-a/app:pull,delete", "repository:team-b/base:push,pull") == {
        "team-a/app": ["pull"],
        "team-b/base": ["pull"],
    }


@pytest.mark.parametrize(
    "scope",
    [
        "repository:team-c/app:pull",
        "repository:nobody/app:pull",
        "registry:catalog:*",
        "registry:team-a:*",
        "repository:team-ab/x:pull",
    ],
)
def test_what_is_nobodys(world: World, scope: str) -> None:
    """A scope without an owner with an issuer, or of no repository, is sent to no issuer and not granted."""
    assert world.granted(scope, A_APP) == {"team-a/app": ["pull", "push"]}
    assert [request.scopes() for request in world.one.asked] == [[A_APP]]
    assert world.two.asked == []
    assert world.granted(scope) == {}
    assert all(request.scopes() == [] for request in [*world.one.asked[1:], *world.two.asked])


def test_log_in(world: World) -> None:
    """Without scopes one issuer that accepts the credentials is enough, and the token grants nothing."""
    assert world.granted() == {}
    world.one.users = {}
    assert world.granted() == {}
    world.two.users = {}
    with pytest.raises(CredentialsRefusedError) as refused:
        world.issue()
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic")


def test_log_in_where_one_pod_has_old_keys(world: World) -> None:
    """Of two pods with one issuer, one with an outdated key does not prevent a login."""
    good = Pod(["team-x"], world.one.registered())
    old = Pod(["team-y"], world.one.registered(forge.public_pem(ec_key(78))))
    for first, second in ((good, old), (old, good)):
        world.pods = {A: first, B: second}
        assert world.granted() == {}
    world.pods = {A: good, B: good}
    world.one.asked.clear()
    assert world.granted() == {}
    assert len(world.one.asked) == 1, "pods that share an issuer ask it once"


def test_wrong_credentials(world: World) -> None:
    """Credentials that every issuer refuses get 401; if one accepts them, its part is granted."""
    wrong = Credentials("alice", basic("alice", "wrong"))
    with pytest.raises(CredentialsRefusedError):
        world.issue(A_APP, B_BASE, credentials=wrong)
    with pytest.raises(CredentialsRefusedError):
        world.issue("repository:nobody/app:pull", credentials=wrong)
    world.two.users = {"alice": "wrong"}
    assert world.granted(A_APP, B_BASE, credentials=wrong) == {"team-b/base": ["pull"]}
    world.one.reply = world.two.reply = lambda _: Reply(403)
    with pytest.raises(ForbiddenError):
        world.issue(A_APP)


def test_anybody(world: World) -> None:
    """Without credentials none are sent, and an issuer grants what it grants to all."""
    assert world.granted("repository:team-b/base:pull", credentials=Credentials()) == {"team-b/base": ["pull"]}
    assert [(request.user, request.fields.get("account")) for request in world.two.asked] == [(None, None)]


def test_a_form(world: World) -> None:
    """OAuth2's form is passed to each issuer with its own scopes; one without forms gets a GET with the password."""
    world.two.takes_forms = False
    assert world.granted(A_APP, B_BASE, credentials=FORM) == {"team-a/app": ["pull", "push"], "team-b/base": ["pull"]}
    (form,) = world.one.asked
    assert (form.method, form.fields["grant_type"], form.scopes()) == ("POST", ["password"], [A_APP])
    last = world.two.asked[-1]
    assert (last.method, last.user, last.password) == ("GET", "alice", PASSWORD)
    refresh = Credentials(form=(("grant_type", "refresh_token"), ("refresh_token", f"refresh-{PASSWORD}")))
    assert world.granted(A_APP, B_BASE, credentials=refresh) == {"team-a/app": ["pull", "push"]}


@pytest.mark.parametrize("credentials", [ALICE, FORM], ids=["password", "form"])
def test_what_an_issuer_receives(world: World, credentials: Credentials) -> None:
    """An issuer receives our User-Agent and wants uncompressed JSON, and none of its cookies comes back."""
    world.one.reply = lambda _: world.one.issued([], "alice")._replace(headers={"Set-Cookie": "session=alice; Path=/"})

    async def twice(service: TokenService) -> None:
        for _ in range(2):
            await service.issue(TokenRequest(parse_scopes([A_APP]), credentials))

    world.run(twice)
    shown = {"user-agent": "baleen", "accept": "application/json", "accept-encoding": "identity"}
    for request in world.one.asked:
        assert request.headers.items() >= shown.items()
        assert "cookie" not in request.headers


def misbehaving(world: World) -> dict[str, Callable[[Any], Reply | None]]:
    """Answers of B's issuer that must add nothing to a token, whatever they claim."""
    one, two = world.one, world.two
    base = [{"type": "repository", "name": "team-b/base", "actions": ["pull"]}]
    stranger = ec_key(77)

    def signed(key: forge.Private, **stated: Any) -> Reply:
        known = {"iss": two.name, "aud": two.service} | stated
        return Reply(200, json.dumps({"token": forge.token(key, forge.claims(base, **known))}).encode())

    def stated(more: str) -> Reply:
        """A grant with this member, written as it stands here and not as a library would."""
        access = f'[{{"type": "repository", "name": "team-b/base", "actions": ["pull"], "more": {more}}}]'
        claims = json.dumps(forge.claims([], iss=two.name, aud=two.service)).replace("[]", access)
        header = json.dumps({"alg": "ES256", "typ": "JWT", "kid": forge.kid(two.key)}).encode()
        return Reply(200, json.dumps({"token": forge.raw(two.key, header, claims.encode())}).encode())

    def unknown(change: tuple[str, str]) -> Reply:
        chain = cases.changed(cases.EC_CERTIFICATE, *change)
        made = forge.token(two.key, forge.claims(base, iss=two.name, aud=two.service), header={"x5c": chain})
        return Reply(200, json.dumps({"token": made}).encode())

    return {
        "A's token": lambda _: one.issued(base),
        "A's key under B's name": lambda _: signed(one.key),
        "a stranger's key": lambda _: signed(stranger),
        "A's audience": lambda _: two.issued(base, aud=one.service),
        "our audience": lambda _: two.issued(base, aud=AUDIENCE),
        "another issuer": lambda _: two.issued(base, iss=one.name),
        "what is no JSON when it is written again": lambda _: stated("1e999"),
        "what is longer when it is written again": lambda _: stated(f'"{"é" * 15_000}"'),
        "very many grants": lambda _: two.issued([base[0] | {"number": number} for number in range(500)]),
        "a very long user": lambda _: two.issued(base, "u" * 10_000),
        "a certificate of an unknown version": lambda _: unknown(cases.VERSION),
        "a certificate of an unknown curve": lambda _: unknown(cases.CURVE),
        "expired": lambda _: two.issued(base, exp=now() - 600),
        "expired within the leeway": lambda _: two.issued(base, exp=now() - 10),
        "not yet": lambda _: two.issued(base, nbf=now() + 600),
        "no token": lambda _: Reply(200, b"{}"),
        "no JSON": lambda _: Reply(200, b"<html>"),
        "a token that is none": lambda _: Reply(200, b'{"token": "x.y.z"}'),
        "a token that is no text": lambda _: Reply(200, b'{"token": {}}'),
        "lists without end": lambda _: Reply(200, b'{"x": ' + b"[" * 50_000),
        "too much": lambda _: Reply(200, two.issued(base).body + b" " * ANSWER_LIMIT),
        "compressed": lambda _: two.issued(base)._replace(headers={"Content-Encoding": "gzip"}),
        "elsewhere": lambda _: Reply(307, headers={"Location": one.url}),
        "an error": lambda _: Reply(500),
        "not found": lambda _: Reply(404),
    }


@pytest.mark.parametrize("how", misbehaving(mock.MagicMock()))
def test_a_part_that_is_not_proved_is_left_out(world: World, how: str) -> None:
    """An unproved answer of one issuer removes only its own part; if it was the only one, the answer is 503."""
    world.two.reply = misbehaving(world)[how]
    assert world.granted(A_APP, B_BASE) == {"team-a/app": ["pull", "push"]}
    assert len(world.one.asked) == 1, "credentials went where nobody sent them"
    with pytest.raises(UnavailableError) as refused:
        world.issue(B_BASE)
    assert refused.value.headers["Retry-After"]


def test_an_issuer_that_grants_more_than_was_asked(world: World) -> None:
    """Grants beyond the requested repositories and actions are cut off."""
    world.two.reply = lambda _: world.two.issued(
        [
            {"type": "repository", "name": "team-b/base", "actions": ["*"]},
            {"type": "repository", "name": "team-b/secret", "actions": ["pull"]},
            {"type": "repository", "name": "team-a/app", "actions": ["pull", "push", "delete"]},
            {"type": "registry", "name": "catalog", "actions": ["*"]},
        ]
    )
    assert world.granted(B_BASE) == {"team-b/base": ["pull"]}
    assert world.granted("repository:team-a/app:pull", B_BASE) == {"team-a/app": ["pull"], "team-b/base": ["pull"]}
    assert world.granted() == {}


def test_restrictions_stay(world: World) -> None:
    """What else an issuer says of a grant, as GitLab does of protected tags, stands in our token beside it."""
    meta = {"project_path": "team-a", "tag_deny_access_patterns": {"push": ["^v"]}}
    granted = {"type": "repository", "name": "team-a/app", "actions": ["pull", "push"], "meta": meta}
    world.one.reply = lambda _: world.one.issued([granted])
    claims = jwt.decode(world.issue(A_APP).token, options={"verify_signature": False})
    assert claims["access"] == [granted]


def test_what_a_registry_could_read_as_another_grant(world: World) -> None:
    """A member that a registry could read as a second `name` or `actions` is not signed."""
    grant = {"Name": "team-a/app", "ACTIONS": ["*"], "action\u017f": ["*"], "meta": {"Name": "kept"}}
    world.two.reply = lambda _: world.two.issued(
        [grant | {"type": "repository", "name": "team-b/base", "actions": ["pull"]}]
    )
    (stated,) = jwt.decode(world.issue(B_BASE).token, options={"verify_signature": False})["access"]
    assert stated == {"type": "repository", "name": "team-b/base", "actions": ["pull"], "meta": {"Name": "kept"}}


def test_a_grant_of_nothing(world: World) -> None:
    """A grant without actions is ignored, and the rest of its token counts."""
    base = {"type": "repository", "name": "team-b/base", "actions": ["pull"]}
    for nothing in ({"actions": []}, {"actions": None}, {}):
        refused = {"type": "repository", "name": "team-b/other", **nothing}
        world.two.reply = lambda _, refused=refused: world.two.issued([refused, base])
        assert world.granted(B_BASE, "repository:team-b/other:push") == {"team-b/base": ["pull"]}


def test_no_longer_than_was_granted(world: World) -> None:
    """The token is valid only while all of its parts are."""
    world.two.claims = {"exp": now() + 90, "nbf": now() + 30}
    signed = world.issue(A_APP, B_BASE)
    claims = jwt.decode(signed.token, options={"verify_signature": False})
    assert claims["exp"] <= world.two.claims["exp"]
    assert claims["nbf"] == world.two.claims["nbf"]
    assert 0 < signed.expires_in <= 90
    world.lifetime = 60
    world.two.claims = {}
    assert world.issue(A_APP, B_BASE).expires_in == 60


def test_whose_token(world: World) -> None:
    """The subject is the one that all issuers name, or else the user of the request."""
    assert world.verified(world.issue(A_APP, B_BASE)).subject == "alice"
    world.two.claims = {"sub": "alice-in-b", "auth_type": "build"}
    assert world.verified(world.issue(B_BASE)).subject == "alice-in-b"
    both = world.verified(world.issue(A_APP, B_BASE))
    assert (both.subject, both.auth_type) == ("alice", "")


def test_one_is_away(world: World) -> None:
    """An issuer that is away removes its part alone; if it was the only one, the client may retry."""
    world.two.close()
    assert world.granted(A_APP, B_BASE) == {"team-a/app": ["pull", "push"]}
    assert world.granted() == {}
    with pytest.raises(UnavailableError):
        world.issue(B_BASE)
    world.one.users = {}
    with pytest.raises(UnavailableError):
        world.issue(A_APP, B_BASE)


def test_one_is_slow(world: World) -> None:
    """A slow issuer is waited for until the bound, and then treated as away."""
    # The other issuer has as long for its answer.
    world.seconds = 3.0
    waiting = threading.Event()
    world.two.reply = lambda _: (waiting.wait(30), None)[1]
    try:
        assert world.granted(A_APP, B_BASE) == {"team-a/app": ["pull", "push"]}
        assert world.granted() == {}
    finally:
        waiting.set()


def test_a_slow_one_does_not_pile_up(world: World) -> None:
    """Requests to a slow issuer are bounded, others are answered meanwhile, and the service has a bound too."""
    waiting, arrived = threading.Event(), threading.Semaphore(0)

    def hang(_: Request) -> None:
        arrived.release()
        waiting.wait(30)

    world.two.reply = hang
    world.seconds, world.in_flight = 20, asking.IN_FLIGHT + 2
    asked = TokenRequest(parse_scopes([B_BASE]), ALICE)

    async def crowd(service: TokenService) -> None:
        crowd = [asyncio.create_task(service.issue(asked)) for _ in range(asking.IN_FLIGHT)]
        assert await asyncio.to_thread(lambda: all(arrived.acquire(timeout=20) for _ in range(asking.IN_FLIGHT)))
        with pytest.raises(UnavailableError):
            await service.issue(asked)
        both = await service.issue(TokenRequest(parse_scopes([A_APP, B_BASE]), ALICE))
        assert [grant.name for grant in world.verified(both).access.grants] == ["team-a/app"]
        assert len(world.two.asked) == asking.IN_FLIGHT
        service._in_flight = asking.IN_FLIGHT
        with pytest.raises(BusyError):
            await service.issue(TokenRequest(parse_scopes([A_APP]), ALICE))
        waiting.set()
        await asyncio.gather(*crowd)

    try:
        world.run(crowd)
    finally:
        waiting.set()


def test_another_service(world: World) -> None:
    """A request for another registry's token is refused, and no issuer is called."""
    with pytest.raises(UsageError, match="BALEEN_JWT_AUDIENCE"):
        world.issue(A_APP, service="another")
    assert world.one.asked == []
    assert world.granted(A_APP, service=AUDIENCE) == {"team-a/app": ["pull", "push"]}


def test_no_issuer_at_all(world: World) -> None:
    """If no pod has an issuer, the error says how to set one."""
    world.pods = {A: Pod(["team-a"], None)}
    with pytest.raises(UnavailableError, match="set-issuer"):
        world.issue(A_APP)


def test_a_pods_keys_change(world: World) -> None:
    """With both keys registered an issuer changes its key unnoticed; a removed key is refused."""
    old, new = world.two.key, ec_key(60)
    world.pods[B] = world.pods[B]._replace(issuer=world.two.registered(forge.public_pem(old, new)))
    for world.two.key in (old, new):
        assert world.granted(B_BASE) == {"team-b/base": ["pull"]}
    world.pods[B] = world.pods[B]._replace(issuer=world.two.registered(forge.public_pem(new)))
    assert world.granted(B_BASE) == {"team-b/base": ["pull"]}
    world.two.key = old
    with pytest.raises(UnavailableError):
        world.issue(B_BASE)


def test_our_keys_change_under_requests(world: World) -> None:
    """While our keys are exchanged, every token is proved by the keys that are published then."""
    old, new = ec_key(50), rsa_key(50)

    async def requests(service: TokenService) -> None:
        known = service.jwks()
        for stage in ([old], [old, new], [new, old], [new]):
            world.keys = SigningKeys(stage)
            made = await asyncio.gather(*(service.issue(TokenRequest(parse_scopes([A_APP]), ALICE)) for _ in range(10)))
            before, known = known, service.jwks()
            for signed in made:
                name = jwt.get_unverified_header(signed.token)["kid"]
                # Whoever fetched the keys before the change, or after it, knows this one.
                assert name in {key["kid"] for key in before["keys"]}
                assert name in {key["kid"] for key in known["keys"]}
                world.verified(signed)

    world.run(requests)


def test_nothing_secret_is_logged(world: World) -> None:
    """No log entry and no error has a password or a token, whatever goes wrong."""
    world.seconds = 0.5
    stated: list[str] = []
    replies = list(misbehaving(world).values())
    with structlog.testing.capture_logs() as entries:
        for reply in replies:
            world.two.reply = reply
            for credentials in (ALICE, FORM):
                try:
                    world.issue(B_BASE, credentials=credentials)
                except BaleenError as error:
                    stated += [str(error), repr(error.__cause__), repr(error.__context__)]
    assert entries
    text = json.dumps(entries, default=repr) + " ".join(stated) + repr(ALICE) + repr(FORM)
    for secret in (PASSWORD, ALICE.authorization, "eyJ"):
        assert secret is not None
        assert secret not in text


NAMES = ["team-a/app", "team-a/x", "shared/a", "team-b/base", "team-b/x", "team-c/x", "nobody"]
names = st.sampled_from(NAMES)
action_sets = st.sets(st.sampled_from(["pull", "push", "delete", "*"]), min_size=1)
rights = st.dictionaries(names, action_sets, max_size=5)
asked_scopes = st.dictionaries(names, action_sets, max_size=5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rights, rights, asked_scopes)
def test_never_more_than_granted(
    world: World, first: dict[str, set[str]], second: dict[str, set[str]], asked: dict[str, set[str]]
) -> None:
    """An action is in the token only if it was requested and the repository's own issuer signed it."""
    for issuer, signs in ((world.one, first), (world.two, second)):
        access = [{"type": "repository", "name": name, "actions": sorted(each)} for name, each in signs.items()]
        issuer.reply = lambda _, issuer=issuer, access=access: issuer.issued(access)  # type: ignore[misc]
    made = world.verified(world.issue(*(f"repository:{name}:{','.join(each)}" for name, each in asked.items())))
    owners = {"team-a": first, "shared": first, "team-b": second}
    for name in NAMES:
        granted = owners.get(name.partition("/")[0], {}).get(name, set())
        for action in ("pull", "push", "delete"):
            both = bool({action, "*"} & granted) and bool({action, "*"} & asked.get(name, set()))
            assert made.access.permits(name, action) == both, (name, action)


def test_time_is_bounded(world: World) -> None:
    """A body that never ends takes no longer than the bound."""
    world.seconds = 0.5
    world.two.reply = lambda _: Reply(200, b"{}", {"Content-Length": "1000"})
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        world.issue(B_BASE)
    assert time.monotonic() - began < 10
