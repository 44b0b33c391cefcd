"""Pushes and pulls need no Baleen: where it is away, slow or failing, the pod gets what the client sent."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from coordinator.domain.pods import parse_registry
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.router import nginx as router
from coordinator.tokens import issuers
from tests.router.harness import DEADLINE_S, Router, World, frozen_stand_in, request, routed
from tests.router.stand_in import StandIn
from tests.support.issuer import CREDENTIALS, TokenIssuer, basic
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

LAYER = b"a layer that two pods need" * 100
FORM = "Content-Type: application/x-www-form-urlencoded"


@pytest.fixture
def source(world: World) -> tuple[str, str]:
    """A repository of another pod and a blob there, which the registry can mount by itself."""
    repository = world.repository("pod-b")
    with world.client("pod-b") as client:
        digest = client.push_blob(repository, LAYER)
    world.seen()
    return repository, digest


def mounted_at_pod(world: World, made: Router, source: tuple[str, str], *, form: bool = False) -> None:
    """Ask for a mount; the pod must have seen it as it was sent, and done it."""
    repository = world.repository("pod-a")
    query = f"mount={source[1]}&from={source[0]}"
    target = f"/v2/{repository}/blobs/uploads/{'' if form else f'?{query}'}"
    sent = request(f"POST {target} HTTP/1.1", *([FORM] if form else []), body=query.encode() if form else b"")
    answer = made.raw(sent)
    assert answer.status == 201, answer
    assert answer.headers["docker-content-digest"] == source[1]
    assert (world.seen()["pod-a"][-1].method, made.routes()) == ("POST", ["mount-at-pod"])


@pytest.mark.parametrize("form", [False, True])
def test_a_mount_goes_to_the_pod_while_baleen_is_away(world: World, source: tuple[str, str], form: bool) -> None:
    """Nobody listens where Baleen should: the pod mounts as it would without Baleen, from query or form."""
    made = world.another_router(baleen=world.nowhere())
    for _ in range(4):
        mounted_at_pod(world, made, source, form=form)


@pytest.mark.parametrize("status", [404, 405, 500, 502, 503, 504, 507, 520])
@pytest.mark.parametrize("form", [False, True])
def test_a_mount_goes_to_the_pod_when_baleen_fails(
    world: World, source: tuple[str, str], status: int, form: bool
) -> None:
    """An answer that is none to a mount, such as of a Baleen that serves none or is overloaded, reaches no client."""
    world.coordinator.fails = status
    mounted_at_pod(world, world.router, source, form=form)
    assert len(world.coordinator.taken()) == 1


@pytest.mark.parametrize(("status", "outcome"), [(400, None), (429, None), (503, "forwarded"), (404, "forwarded")])
@pytest.mark.parametrize("form", [False, True])
def test_what_baleen_refused_is_no_mount(
    world: World, source: tuple[str, str], status: int, outcome: str | None, form: bool
) -> None:
    """A mount that Baleen cannot read, or has handed on to a pod that failed, becomes an upload, and none is made."""
    world.coordinator.fails, world.coordinator.outcome = status, outcome
    repository, query = world.repository("pod-a"), f"mount={source[1]}&from={source[0]}"
    target = f"/v2/{repository}/blobs/uploads/{'' if form else f'?{query}'}"
    sent = request(f"POST {target} HTTP/1.1", *([FORM] if form else []), body=query.encode() if form else b"")
    assert world.router.raw(sent).status == 202
    assert [each.target for each in world.seen()["pod-a"]] == [f"/v2/{repository}/blobs/uploads/"]
    assert world.router.routes() == ["upload-at-pod"]
    with world.client("pod-a") as client:
        assert not client.has_blob(repository, source[1])


@pytest.mark.parametrize("status", [401, 403])
def test_what_baleen_asks_of_the_client_reaches_it(world: World, source: tuple[str, str], status: int) -> None:
    """Who may not mount or has to say who asks is told so: the pod is not asked instead."""
    world.coordinator.fails = status
    answer = world.router.raw(request(f"POST /v2/team/app/blobs/uploads/?mount={source[1]} HTTP/1.1"))
    assert answer.status == status
    assert world.seen() == {}


def test_a_slow_baleen_is_waited_for_and_then_left_alone(world: World, source: tuple[str, str]) -> None:
    """The pod gets a mount after a bound, and after two such in a row without any wait."""
    made = world.another_router(coordinator_timeout_s=1)
    world.coordinator.go.clear()
    for _ in range(4):
        mounted_at_pod(world, made, source)
    assert len(world.coordinator.taken()) == 2


def test_a_frozen_baleen_is_asked_again_when_it_moves(world: World, source: tuple[str, str]) -> None:
    """A process that takes connections and says nothing holds up no push, and has its mounts again once it speaks."""
    url, process = frozen_stand_in(world)
    made = world.another_router(baleen=url, coordinator_timeout_s=1, coordinator_pause_s=1)
    os.kill(process.pid, signal.SIGSTOP)
    for _ in range(3):
        mounted_at_pod(world, made, source)
    os.kill(process.pid, signal.SIGCONT)

    def asked() -> bool:
        # The stand-in knows no pods: it closes the connection, which the router writes down.
        made.raw(request(f"POST /v2/{world.repository('pod-a')}/blobs/uploads/?mount={source[1]} HTTP/1.1"))
        # nginx names all that were asked; Envoy tells of Baleen apart.
        at = url.removeprefix("http://")
        return any(line.get("baleen") or line["upstream"].startswith(at) for line in made.log())

    eventually(asked)


def test_another_replica_of_baleen_is_asked(world: World, source: tuple[str, str]) -> None:
    """Of two replicas the one that is away is left out, and no mount goes to the pod for it."""
    replicas = [parse_registry(world.nowhere()), parse_registry(world.coordinator.url)]
    made = world.another_router(coordinator=replicas)
    for _ in range(6):
        target = f"/v2/{world.repository('pod-a')}/blobs/uploads/?mount={source[1]}&from={source[0]}"
        assert made.raw(request(f"POST {target} HTTP/1.1")).headers["x-baleen-mount"] == "forwarded"
    asked = world.coordinator.taken()
    # Chunks of nothing would be left on a connection by a server that does not expect them.
    assert ["transfer-encoding" in each.headers for each in asked] == [False] * 6


def test_a_push_and_a_pull_do_without_baleen(world: World, tmp_path: Path) -> None:
    """An image with mounts is pushed and pulled while nobody listens where Baleen should."""
    made = world.another_router(baleen=world.nowhere())
    image = make_image(str(tmp_path))
    with RegistryClient(made.url) as client:
        client.push_image("teams/first", image, "v1")
        client.push_image("team/second", image, "v1", mount_from="teams/first")
        assert client.pull_image("team/second", "v1").digest == image.digest


def test_an_upload_waits_for_nobody(world: World) -> None:
    """A frozen Baleen is not asked about what is no mount."""
    world.coordinator.go.clear()
    with world.client() as client:
        client.push_blob(world.repository("pod-a"), LAYER)
    assert world.coordinator.taken() == []


# Tokens


def ask(made: Router, *headers: str) -> tuple[int, bytes]:
    scope = "scope=repository:team/app:pull&service=x"
    answer = made.raw(request(f"GET /jwt/auth?{scope} HTTP/1.1", *headers))
    return answer.status, answer.body


def test_without_an_issuer_there_are_no_tokens(world: World) -> None:
    """A router of which nobody said who issues tokens has no such address."""
    assert ask(world.router)[0] == 404
    assert world.coordinator.taken() == []


def test_baleen_issues_tokens(world: World) -> None:
    """The client's credentials and scopes reach Baleen, and its answer the client; a form reaches it too."""
    made = world.another_router(issuer="baleen")
    assert ask(made, "Authorization: Basic eDp5") == (200, b'{"token": "of Baleen"}')
    (asked,) = world.coordinator.taken()
    assert asked.target == "/jwt/auth?scope=repository:team/app:pull&service=x"
    assert asked.headers["authorization"] == "Basic eDp5"
    made.raw(request("POST /jwt/auth HTTP/1.1", FORM, body=b"grant_type=password"))
    (asked,) = world.coordinator.taken()
    assert (asked.method, asked.body) == ("POST", b"grant_type=password")


@pytest.mark.parametrize("status", [404, 500, 503, 520])
def test_without_baleen_the_one_issuer_is_asked(world: World, tmp_path: Path, status: int) -> None:
    """With one issuer for all pods clients get their tokens there while Baleen does not answer."""
    with TokenIssuer(tmp_path) as issuer:
        made = world.another_router(issuer="baleen", fallback_issuer=router.parse_issuer(issuer.realm, "--x"))
        world.coordinator.fails = status
        outcome = f"Authorization: {basic(CREDENTIALS)}"
        assert ask(made, outcome)[0] == 200
        assert issuer.asked[-1].scopes == ("repository:team/app:pull",)
        assert ask(made)[0] == 401
        assert made.routes(2) == ["token-at-issuer"] * 2


def test_without_baleen_and_one_issuer_clients_come_again(world: World) -> None:
    """Where pods have issuers of their own none is right for all: the answer says when to try again."""
    made = world.another_router(issuer="baleen", baleen=world.nowhere())
    answer = made.raw(request("GET /jwt/auth?service=x HTTP/1.1"))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_mounts_that_wait_take_no_tokens_away(world: World, source: tuple[str, str]) -> None:
    """A Baleen whose mounts wait, for a store or a database, is left alone with mounts and goes on making tokens."""
    made = world.another_router(issuer="baleen", coordinator_timeout_s=1)
    world.coordinator.go.clear()
    for _ in range(3):
        mounted_at_pod(world, made, source)
    assert [ask(made)[0] for _ in range(3)] == [200] * 3


def test_an_issuer_that_does_not_answer_is_waited_for(world: World, source: tuple[str, str]) -> None:
    """A token without that issuer's part comes later than a mount may, and neither it nor the next ones are lost."""
    assert router.ISSUERS_S >= issuers.SECONDS
    made = world.another_router(issuer="baleen", coordinator_timeout_s=3, issuers_s=3)
    world.coordinator.token_seconds = 3.2
    assert [ask(made)[0] for _ in range(2)] == [200] * 2
    made.routes(2)
    target = f"/v2/{world.repository('pod-a')}/blobs/uploads/?mount={source[1]}&from={source[0]}"
    assert made.raw(request(f"POST {target} HTTP/1.1")).headers["x-baleen-mount"] == "forwarded"


def test_a_baleen_that_was_away_makes_tokens_at_once(world: World) -> None:
    """Where nobody else makes tokens the only Baleen is asked for each, however often it was not there."""
    baleen = world.nowhere()
    made = world.another_router(issuer="baleen", baleen=baleen)
    assert [ask(made)[0] for _ in range(3)] == [503] * 3
    with StandIn({}, httpx.URL(baleen).port or 0):
        assert ask(made)[0] == 200


def test_replicas_that_were_away_make_tokens_at_once(world: World) -> None:
    """The same with several of them, that began again one after the other: one is left alone for another one only."""
    replicas = [world.nowhere(), world.nowhere()]
    made = world.another_router(issuer="baleen", coordinator=[parse_registry(each) for each in replicas])
    assert [ask(made)[0] for _ in range(12)] == [503] * 12
    with StandIn({}, httpx.URL(replicas[0]).port or 0):
        assert [ask(made)[0] for _ in range(4)] == [200] * 4


def test_what_baleen_says_of_credentials_is_the_answer(world: World) -> None:
    """Wrong credentials are not tried elsewhere."""
    made = world.another_router(issuer="baleen")
    world.coordinator.fails = 401
    assert ask(made) == (401, b"its own")


def test_a_central_issuer_is_asked_itself(world: World, tmp_path: Path) -> None:
    """With one issuer for all that is no business of Baleen's."""
    with TokenIssuer(tmp_path) as issuer:
        made = world.another_router(issuer=router.parse_issuer(issuer.realm, "--x"))
        assert ask(made, f"Authorization: {basic(CREDENTIALS)}")[0] == 200
        assert world.coordinator.taken() == []
        assert made.routes() == ["issuer"]


# Pods


def test_another_process_of_a_pod_goes_on(world: World) -> None:
    """A pod of two processes is served while one of them is away, uploads that the other began included."""
    dead = parse_registry(world.nowhere())
    pod = router.RoutedPod("pod-a", ["team"], [dead, parse_registry(world.pods["pod-a"].url)])
    made = world.another_router(pods=[pod])
    with RegistryClient(made.url) as client:
        for number in range(4):
            content = f"{made.address} {number}".encode()
            repository = world.repository("pod-a")
            assert client.get_blob(repository, client.push_blob(repository, content)) == content


def test_a_big_upload_needs_one_process_of_a_pod(world: World) -> None:
    """Where another process is away, what is too big to be kept goes on at the first that is there."""
    dead = parse_registry(world.nowhere())
    pod = router.RoutedPod("pod-a", ["team"], [dead, parse_registry(world.pods["pod-a"].url)])
    made = world.another_router(pods=[pod])
    with RegistryClient(made.url) as client:
        for number in range(10):
            content = f"{made.address} {number}".encode() * 300_000
            client.push_blob(world.repository("pod-a"), content)
            manifest = request("PUT /v2/team/app/manifests/v1 HTTP/1.1", body=b"x" * 4_000_000)
            # A registry has read it.
            assert made.raw(manifest).status == 400


def test_a_reload_changes_who_is_asked(world: World) -> None:
    """After a pod got another prefix and the router was reloaded, its repositories are found, and nothing stopped."""
    made = world.another_router(to_be_reloaded=True)
    asking = request("GET /v2/added/app/tags/list HTTP/1.1")
    assert b"NAME_UNKNOWN" in made.raw(asking).body
    assert world.seen() == {}
    first, *others = routed(world.pods.values())
    world.reload(made, [first._replace(prefixes=[*first.prefixes, "added"]), *others])

    def there() -> bool:
        assert httpx.get(f"{made.url}/v2/team/app/tags/list", timeout=DEADLINE_S, trust_env=False).status_code == 404
        made.raw(asking)
        return "/v2/added/app/tags/list" in [each.target for each in world.seen()["pod-a"]]

    eventually(there)
