"""A request reaches the pod that owns the repository as the registry reads the path, or no pod."""

import os
from pathlib import Path

import pytest

from coordinator.domain.pods import parse_registry
from coordinator.router import nginx as router
from tests.router.harness import World, request, routed

pytestmark = pytest.mark.registry

NAME_UNKNOWN = b'{"errors":[{"code":"NAME_UNKNOWN","message":"No pod owns this repository.","detail":null}]}'

#: As it is sent; the pod that sees it, and as what.
READ = [
    ("/v2/team/app/tags/list", "pod-a", "/v2/team/app/tags/list"),
    ("/v2/team/tags/list", "pod-a", "/v2/team/tags/list"),
    ("/v2/teams/app/tags/list", "pod-b", "/v2/teams/app/tags/list"),
    ("/v2/c.d/app/tags/list", "pod-c", "/v2/c.d/app/tags/list"),
    # Encoded, once, in whatever way.
    ("/v2/team%2Fapp/tags/list", "pod-a", "/v2/team/app/tags/list"),
    ("/v2/%74eam/app/tags/list", "pod-a", "/v2/team/app/tags/list"),
    ("/v2/team%73/app/tags/list", "pod-b", "/v2/teams/app/tags/list"),
    ("/%76%32/team/app/tags%2flist", "pod-a", "/v2/team/app/tags/list"),
    # Dot segments and doubled slashes.
    ("/v2/team/../teams/app/tags/list", "pod-b", "/v2/teams/app/tags/list"),
    ("/v2/team/%2e%2e/teams/app/tags/list", "pod-b", "/v2/teams/app/tags/list"),
    ("/v2/team/.%2E/teams/app/tags/list", "pod-b", "/v2/teams/app/tags/list"),
    ("/v2/team%2F..%2Fteams/app/tags/list", "pod-b", "/v2/teams/app/tags/list"),
    ("/v2/team%2f%2e%2e%2fteams/app/tags/list", "pod-b", "/v2/teams/app/tags/list"),
    ("/v2/./team/./app/tags/list", "pod-a", "/v2/team/app/tags/list"),
    ("//v2//team//app/tags/list", "pod-a", "/v2/team/app/tags/list"),
    ("/v2/team/%2Fapp/tags/list", "pod-a", "/v2/team/app/tags/list"),
    ("/x/../v2/team/app/tags/list", "pod-a", "/v2/team/app/tags/list"),
    ("http://elsewhere/v2/team/app/tags/list", "pod-a", "/v2/team/app/tags/list"),
    # A fragment is no part of a request; a registry would read it as part of the path.
    ("/v2/team/app/tags/list#/../../../../teams/app/tags/list", "pod-a", "/v2/team/app/tags/list"),
    # The query passes as it is.
    ("/v2/team/app/tags/list?n=1&last=%2e%2e", "pod-a", "/v2/team/app/tags/list?n=1&last=%2e%2e"),
    # The repository is what stands before the endpoint, not the begin of the path: pod-b owns `other/manifests`.
    ("/v2/other/manifests/manifests/v1", "pod-b", "/v2/other/manifests/manifests/v1"),
    ("/v2/other/manifests/tags/list", "pod-b", "/v2/other/manifests/tags/list"),
    ("/v2/team/manifests/tags/list", "pod-a", "/v2/team/manifests/tags/list"),
    ("/v2/team/blobs/uploads/manifests/v1", "pod-a", "/v2/team/blobs/uploads/manifests/v1"),
]

#: What no pod sees.
REFUSED = [
    "/v2/other/manifests/v1",
    "/v2/te/am/tags/list",
    "/v2/teamx/tags/list",
    "/v2/team-x/app/tags/list",
    "/v2/cxd/app/tags/list",
    "/v2/TEAM/app/tags/list",
    "/v2/tags/list",
    "/v2/team/app",
    "/v2/team",
    "/v2/team/app/nothing/list",
    "/v3/team/app/tags/list",
    "/v2/team/../../tags/list",
    # Encoded twice: no registry decodes a second time, and none gets to.
    "/v2/team/%252e%252e/teams/app/tags/list",
    "/v2/team%252Fapp/tags/list",
    # What would be written into the request for the pod.
    "/v2/team/app/tags/list%0a",
    "/v2/team/app/tags/list%0d%0aX-Injected:%201",
    "/v2/team/app/tags/list%20HTTP/1.1",
    "/v2/team/app/tags/list%3Fn=1",
    "/v2/team/app/tags/list%23",
    "/v2/team%00/app/tags/list",
    "/v2/team/a%5c..%5c/tags/list",
    "/v2/team/\\..\\teams/tags/list",
    # Ways of the router's own.
    "/.router/mount",
    "/.router/unknown",
    "/",
]


@pytest.mark.parametrize(("target", "pod", "read"), READ)
def test_a_path_is_read_once(world: World, target: str, pod: str, read: str) -> None:
    """The pod that owns the repository sees the path as the router has read it, and no other pod sees anything."""
    answer = world.router.raw(request(f"GET {target} HTTP/1.1"))
    seen = world.seen()
    assert {name: [each.target for each in asked] for name, asked in seen.items()} == {pod: [read]}
    # Of repositories that do not exist a registry says so in its own words.
    assert answer.status == 404
    assert b"errors" in answer.body


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
@pytest.mark.parametrize("target", REFUSED)
def test_what_no_pod_owns_reaches_none(world: World, method: str, target: str) -> None:
    """A path that is no endpoint of an owned repository is answered by the router, with every method."""
    answer = world.router.raw(request(f"{method} {target} HTTP/1.1", body=b"x" if method != "GET" else b""))
    assert 400 <= answer.status < 500
    # A registry writes down no request that it cannot read; the router knows whom it has asked.
    assert not any(line["upstream"] for line in world.router.lines())
    assert world.seen() == {}
    assert world.coordinator.taken() == []


def test_a_long_path_holds_nobody_up(world: World) -> None:
    """The longest path that is read costs a worker little time."""
    made = world.another_router()
    assert made.raw(request(f"GET /v2/{'a/' * 240_000}tags/list HTTP/1.1")).status in {404, 414}
    ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in made.workers()]
    assert sum(int(each) for pair in ticks for each in pair) / os.sysconf("SC_CLK_TCK") < 5


@pytest.mark.parametrize("target", ["/v2/nobody/manifests", "/v2/x/manifests"])
def test_the_end_of_a_path_gives_no_type(world: World, target: str) -> None:
    """The router's own answers are JSON, whatever a tag ends with."""
    away = router.RoutedPod("pod-x", ["x"], [parse_registry(world.nowhere())])
    made = world.another_router(pods=[away])
    for tag in ("v1.html", "v1.jpg"):
        for path in (f"{target}/{tag}", f"{target}/none/{tag}"):
            answer = made.raw(request(f"GET {path} HTTP/1.1"))
            assert answer.headers["content-type"] == "application/json", path


def test_an_unowned_repository_is_refused_as_registries_do(world: World) -> None:
    """The answer is an error of the specification, so that clients show it."""
    answer = world.router.raw(request("GET /v2/nobody/app/manifests/v1 HTTP/1.1"))
    assert (answer.status, answer.body) == (404, NAME_UNKNOWN)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("target", ["/v2/nobody/app/tags/list", "/v2/team%25/app/tags/list", "/x"])
def test_a_client_does_not_choose_the_pod(world: World, target: str) -> None:
    """The router ignores its own internal headers in a client's request."""
    sent = ["X-Router-Pod: pod_pod-a", "X-Router-Endpoint: content", "X-Router-Way: mount-at-pod"]
    assert world.router.raw(request(f"GET {target} HTTP/1.1", *sent)).status == 404
    assert world.seen() == {}


@pytest.mark.parametrize("line", ["get /v2/team/app/tags/list HTTP/1.1", "Post /v2/team/app/blobs/uploads/ HTTP/1.1"])
def test_a_method_is_written_in_capitals(world: World, line: str) -> None:
    """A method in another case is refused and reaches no pod."""
    assert world.router.raw(request(line)).status == 400
    assert world.seen() == {}


def test_an_old_client_is_served(world: World) -> None:
    """A request of HTTP/1.0 without a host is answered."""
    answer = world.router.raw(b"GET /v2/team/app/tags/list HTTP/1.0\r\n\r\n")
    assert answer.status == 404
    assert [each.target for each in world.seen()["pod-a"]] == ["/v2/team/app/tags/list"]


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.2", "websocket", "h2c, TLS/1.2"])
@pytest.mark.parametrize("target", ["/v2/team/app/blobs/uploads/", "/v2/team/app/blobs/uploads/?mount=x"])
def test_a_client_that_offers_more_is_served(world: World, protocol: str, target: str) -> None:
    """A request that offers another protocol is answered in this one, as by a registry."""
    lines = [f"POST {target} HTTP/1.1", "Host: router.example", "Connection: Upgrade", f"Upgrade: {protocol}"]
    assert world.router.raw("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode()).status == 202


def test_two_lengths_are_refused(world: World) -> None:
    """A body with two lengths is refused, since two readers could see two requests in it."""
    both = request("PUT /v2/team/app/manifests/v1 HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 5")
    assert world.router.raw(both + b"0\r\n\r\n").status == 400
    assert world.seen() == {}


def test_the_base_is_a_pods(world: World) -> None:
    """`/v2/` is answered by a pod, also without its slash."""
    for target in ("/v2/", "/v2"):
        answer = world.router.raw(request(f"GET {target} HTTP/1.1"))
        assert answer.status == 200
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


def test_the_base_needs_one_pod_only(world: World) -> None:
    """While a pod is away, another one answers `/v2/`, and the pod's repositories are unavailable."""
    world.pods["pod-a"].kill()
    try:
        assert world.router.raw(request("GET /v2/ HTTP/1.1")).status == 200
        answer = world.router.raw(request("GET /v2/team/app/tags/list HTTP/1.1"))
        assert answer.status == 502
        assert b"UNAVAILABLE" in answer.body
    finally:
        world.pods["pod-a"].start()
    assert world.router.raw(request("GET /v2/team/app/tags/list HTTP/1.1")).status == 404


@pytest.mark.parametrize("count", [1, 2])
def test_the_base_needs_one_process_only(world: World, count: int) -> None:
    """While a process of each pod is away, another one answers `/v2/`."""
    dead = [parse_registry(world.nowhere()) for _ in range(count)]
    known = [
        pod._replace(registries=[gone, *pod.registries])
        for gone, pod in zip(dead, routed(world.pods.values()), strict=False)
    ]
    made = world.another_router(pods=known)
    assert [made.raw(request("GET /v2/ HTTP/1.1")).status for _ in range(8)] == [200] * 8


@pytest.mark.parametrize("status", [429, 500, 503, 507])
def test_the_base_is_not_a_pods_that_fails(world: World, status: int) -> None:
    """If one pod fails, another answers `/v2/`; the failure of the only one is the answer."""
    world.coordinator.fails = status
    failing = router.RoutedPod("pod-0", ["zero"], [parse_registry(world.coordinator.url)])
    made = world.another_router(pods=[failing, *routed(world.pods.values())])
    assert made.raw(request("GET /v2/ HTTP/1.1")).status == 200
    made = world.another_router(pods=[failing])
    assert made.raw(request("GET /v2/ HTTP/1.1")).status == status


def test_no_catalog_is_given(world: World) -> None:
    """The catalog is refused, since on one storage each pod would list the repositories of all."""
    answer = world.router.raw(request("GET /v2/_catalog HTTP/1.1"))
    assert answer.status == 404
    assert b"UNSUPPORTED" in answer.body
    assert world.seen() == {}
