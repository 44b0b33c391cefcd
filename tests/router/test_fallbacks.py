"""Pushes and pulls need no Baleen: while it is away, slow or failing, the pod gets what the client sent."""

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
from tests.router.harness import LAYER, Router, World, frozen_stand_in, request, routed
from tests.router.stand_in import StandIn
from tests.support.issuer import CREDENTIALS, TokenIssuer, basic_header
from tests.support.wait import eventually

pytestmark = pytest.mark.registry

FORM = "Content-Type: application/x-www-form-urlencoded"


def mount(repository: str, source: tuple[str, str], *, form: bool = False) -> bytes:
    """The request for a mount, by its query or by a form."""
    query = f"mount={source[1]}&from={source[0]}"
    target = f"/v2/{repository}/blobs/uploads/"
    if form:
        return request(f"POST {target} HTTP/1.1", FORM, body=query.encode())
    return request(f"POST {target}?{query} HTTP/1.1")


def mounted_at_pod(world: World, made: Router, source: tuple[str, str], *, form: bool = False) -> None:
    """Request a mount, which the pod must get as it was sent, and make."""
    answer = made.raw(mount(world.repository("pod-a"), source, form=form))
    assert answer.status == 201, answer
    assert answer.headers["docker-content-digest"] == source[1]
    assert (world.seen()["pod-a"][-1].method, made.routes()) == ("POST", ["mount-at-pod"])


@pytest.mark.parametrize("form", [False, True])
def test_a_mount_while_baleen_is_away(world: World, source: tuple[str, str], form: bool) -> None:
    """While Baleen is away, the pod makes the mount, from query or form."""
    made = world.another_router(baleen=world.nowhere())
    for _ in range(4):
        mounted_at_pod(world, made, source, form=form)


@pytest.mark.parametrize("status", [404, 405, 500, 502, 503, 504, 507, 520])
@pytest.mark.parametrize("form", [False, True])
def test_a_mount_when_baleen_fails(world: World, source: tuple[str, str], status: int, form: bool) -> None:
    """An answer of Baleen that is none to a mount does not reach the client: the pod gets the mount."""
    world.coordinator.fails = status
    mounted_at_pod(world, world.router, source, form=form)
    assert len(world.coordinator.taken()) == 1


@pytest.mark.parametrize(("status", "outcome"), [(400, None), (429, None), (503, "forwarded"), (404, "forwarded")])
@pytest.mark.parametrize("form", [False, True])
def test_refused_mounts(world: World, source: tuple[str, str], status: int, outcome: str | None, form: bool) -> None:
    """A mount that Baleen cannot read, or has forwarded to a failing pod, becomes an upload."""
    world.coordinator.fails, world.coordinator.outcome = status, outcome
    repository = world.repository("pod-a")
    assert world.router.raw(mount(repository, source, form=form)).status == 202
    assert [each.target for each in world.seen()["pod-a"]] == [f"/v2/{repository}/blobs/uploads/"]
    assert world.router.routes() == ["upload-at-pod"]
    with world.client("pod-a") as client:
        assert not client.has_blob(repository, source[1])


@pytest.mark.parametrize("status", [401, 403])
def test_what_baleen_asks_of_the_client_reaches_it(world: World, source: tuple[str, str], status: int) -> None:
    """Baleen's 401 or 403 reaches the client, and the pod does not get the mount."""
    world.coordinator.fails = status
    answer = world.router.raw(request(f"POST /v2/team/app/blobs/uploads/?mount={source[1]} HTTP/1.1"))
    assert answer.status == status
    assert world.seen() == {}


def test_a_slow_baleen_is_waited_for_and_then_left_alone(world: World, source: tuple[str, str]) -> None:
    """The pod gets a mount after a bound, and after two such in a row without a wait."""
    made = world.another_router(coordinator_timeout_s=1)
    world.coordinator.go.clear()
    for _ in range(4):
        mounted_at_pod(world, made, source)
    assert len(world.coordinator.taken()) == 2


def test_a_frozen_baleen_is_asked_again_when_it_moves(world: World, source: tuple[str, str]) -> None:
    """A frozen Baleen delays no push, and gets mounts again once it answers."""
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
    """A replica of Baleen that is away is left out, and no mount goes to the pod for it."""
    replicas = [parse_registry(world.nowhere()), parse_registry(world.coordinator.url)]
    made = world.another_router(coordinator=replicas)
    for _ in range(6):
        assert made.raw(mount(world.repository("pod-a"), source)).headers["x-baleen-mount"] == "forwarded"
    asked = world.coordinator.taken()
    # Chunks of nothing would be left on a connection by a server that does not expect them.
    assert ["transfer-encoding" in each.headers for each in asked] == [False] * 6


def test_a_push_and_a_pull_do_without_baleen(world: World, tmp_path: Path) -> None:
    """An image with mounts is pushed and pulled while Baleen is away."""
    made = world.another_router(baleen=world.nowhere())
    image = make_image(str(tmp_path))
    with RegistryClient(made.url) as client:
        client.push_image("teams/first", image, "v1")
        client.push_image("team/second", image, "v1", mount_from="teams/first")
        assert client.pull_image("team/second", "v1").digest == image.digest


def test_an_upload_waits_for_nobody(world: World) -> None:
    """An upload does not wait for a frozen Baleen."""
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
    """A router without an issuer has no address for tokens."""
    assert ask(world.router)[0] == 404
    assert world.coordinator.taken() == []


def test_baleen_issues_tokens(world: World) -> None:
    """The client's credentials and scopes reach Baleen, also as a form, and its answer the client."""
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
    """With one issuer for all pods clients get their tokens there while Baleen fails."""
    with TokenIssuer(tmp_path) as issuer:
        made = world.another_router(issuer="baleen", fallback_issuer=router.parse_issuer(issuer.realm, "--x"))
        world.coordinator.fails = status
        outcome = f"Authorization: {basic_header(CREDENTIALS)}"
        assert ask(made, outcome)[0] == 200
        assert issuer.asked[-1].scopes == ("repository:team/app:pull",)
        assert ask(made)[0] == 401
        assert made.routes(2) == ["token-at-issuer"] * 2


def test_without_baleen_and_one_issuer_clients_come_again(world: World) -> None:
    """If each pod has its own issuer, the answer without Baleen says when to retry."""
    made = world.another_router(issuer="baleen", baleen=world.nowhere())
    answer = made.raw(request("GET /jwt/auth?service=x HTTP/1.1"))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_mounts_that_wait_take_no_tokens_away(world: World, source: tuple[str, str]) -> None:
    """A Baleen that is left out for slow mounts still makes tokens."""
    made = world.another_router(issuer="baleen", coordinator_timeout_s=1)
    world.coordinator.go.clear()
    for _ in range(3):
        mounted_at_pod(world, made, source)
    assert [ask(made)[0] for _ in range(3)] == [200] * 3


def test_an_issuer_that_does_not_answer_is_waited_for(world: World, source: tuple[str, str]) -> None:
    """A slow token is waited for longer than a mount, and later requests are not lost."""
    assert router.ISSUERS_S >= issuers.ANSWER_SECONDS
    made = world.another_router(issuer="baleen", coordinator_timeout_s=3, issuers_s=3)
    world.coordinator.token_seconds = 3.2
    assert [ask(made)[0] for _ in range(2)] == [200] * 2
    made.routes(2)
    assert made.raw(mount(world.repository("pod-a"), source)).headers["x-baleen-mount"] == "forwarded"


def test_a_baleen_that_was_away_makes_tokens_at_once(world: World) -> None:
    """The only Baleen gets each token request, however often it was away."""
    baleen = world.nowhere()
    made = world.another_router(issuer="baleen", baleen=baleen)
    assert [ask(made)[0] for _ in range(3)] == [503] * 3
    with StandIn({}, httpx.URL(baleen).port or 0):
        assert ask(made)[0] == 200


def test_replicas_that_were_away_make_tokens_at_once(world: World) -> None:
    """Of several replicas one is left out only while another can answer."""
    replicas = [world.nowhere(), world.nowhere()]
    made = world.another_router(issuer="baleen", coordinator=[parse_registry(each) for each in replicas])
    assert [ask(made)[0] for _ in range(12)] == [503] * 12
    with StandIn({}, httpx.URL(replicas[0]).port or 0):
        assert [ask(made)[0] for _ in range(4)] == [200] * 4


def test_what_baleen_says_of_credentials_is_the_answer(world: World) -> None:
    """Wrong credentials are not tried at another issuer."""
    made = world.another_router(issuer="baleen")
    world.coordinator.fails = 401
    assert ask(made) == (401, b"its own")


def test_a_central_issuer_is_asked_itself(world: World, tmp_path: Path) -> None:
    """With a central issuer token requests do not reach Baleen."""
    with TokenIssuer(tmp_path) as issuer:
        made = world.another_router(issuer=router.parse_issuer(issuer.realm, "--x"))
        assert ask(made, f"Authorization: {basic_header(CREDENTIALS)}")[0] == 200
        assert world.coordinator.taken() == []
        assert made.routes() == ["issuer"]


# Pods


def half_away(world: World) -> Router:
    """A router before a pod of two processes, of which the first is away."""
    registries = [parse_registry(world.nowhere()), parse_registry(world.pods["pod-a"].url)]
    return world.another_router(pods=[router.RoutedPod("pod-a", ["team"], registries)])


def test_another_process_of_a_pod_goes_on(world: World) -> None:
    """A pod of two processes is served while one of them is away, uploads that the other began included."""
    made = half_away(world)
    with RegistryClient(made.url) as client:
        for number in range(4):
            content = f"{made.address} {number}".encode()
            repository = world.repository("pod-a")
            assert client.get_blob(repository, client.push_blob(repository, content)) == content


def test_a_big_upload_needs_one_process_of_a_pod(world: World) -> None:
    """Where another process is away, what is too big to be kept goes on at the first that is there."""
    made = half_away(world)
    with RegistryClient(made.url) as client:
        for number in range(10):
            content = f"{made.address} {number}".encode() * 300_000
            client.push_blob(world.repository("pod-a"), content)
            manifest = request("PUT /v2/team/app/manifests/v1 HTTP/1.1", body=b"x" * 4_000_000)
            # A registry has read it.
            assert made.raw(manifest).status == 400


def test_a_reload_changes_who_is_asked(world: World) -> None:
    """After a reload with a new prefix its repositories are found, and no request fails."""
    made = world.another_router(to_be_reloaded=True)
    asking = request("GET /v2/added/app/tags/list HTTP/1.1")
    assert b"NAME_UNKNOWN" in made.raw(asking).body
    assert world.seen() == {}
    first, *others = routed(world.pods.values())
    world.reload(made, [first._replace(prefixes=[*first.prefixes, "added"]), *others])

    def there() -> bool:
        assert made.ask("GET", "/v2/team/app/tags/list").status_code == 404
        made.raw(asking)
        return "/v2/added/app/tags/list" in [each.target for each in world.seen()["pod-a"]]

    eventually(there)
