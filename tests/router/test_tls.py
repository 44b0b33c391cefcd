"""TLS on both sides: clients see the router's certificate, and the router verifies registries."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from coordinator.domain.pods import parse_registry
from coordinator.router import nginx as router
from tests.router.harness import HOST, World, request
from tests.services.certificates import make_certificate
from tests.services.http import Handler, HTTPServer

pytestmark = pytest.mark.registry


class Registry(Handler):
    def do_GET(self) -> None:
        self.reply()


@contextmanager
def https_registry(server_file: Path) -> Iterator[str]:
    with HTTPServer(Registry, server_file=server_file) as server:
        yield f"https://localhost:{server.port}"


@pytest.mark.parametrize("target", ["/v2/x/tags/list", "/v2/"])
def test_only_a_registry_that_is_verified_is_asked(world: World, tmp_path: Path, target: str) -> None:
    """A registry whose certificate is not verified gets no request."""
    make_certificate("localhost", tmp_path / "server.pem", tmp_path / "ca.pem")
    make_certificate("localhost", tmp_path / "other.pem", tmp_path / "other-ca.pem")
    make_certificate("elsewhere", tmp_path / "elsewhere.pem", tmp_path / "elsewhere-ca.pem")
    found = {}
    for server, ca in (("server", "ca"), ("server", "other-ca"), ("elsewhere", "elsewhere-ca")):
        with https_registry(tmp_path / f"{server}.pem") as url:
            pod = router.RoutedPod("pod-x", ["x"], [parse_registry(url)])
            made = world.another_router(pods=[pod], ca_file=str(tmp_path / f"{ca}.pem"))
            found[server, ca] = made.raw(request(f"GET {target} HTTP/1.1")).status
    assert found == {("server", "ca"): 200, ("server", "other-ca"): 502, ("elsewhere", "elsewhere-ca"): 502}


def test_a_pod_with_a_long_name(world: World, tmp_path: Path) -> None:
    """A pod with the longest name has a valid configuration."""
    make_certificate("localhost", tmp_path / "server.pem", tmp_path / "ca.pem")
    with https_registry(tmp_path / "server.pem") as url:
        pod = router.RoutedPod("x" * 63, ["x"], [parse_registry(url)])
        made = world.another_router(pods=[pod], ca_file=str(tmp_path / "ca.pem"))
        assert made.raw(request("GET /v2/x/tags/list HTTP/1.1")).status == 200


def test_clients_see_the_routers_certificate(world: World, tmp_path: Path) -> None:
    """With a certificate clients use TLS, and registries write https addresses."""
    make_certificate(HOST, tmp_path / "router.pem", tmp_path / "ca.pem")
    file = str(tmp_path / "router.pem")
    made = world.another_router(tls=router.Certificate(file, file))
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    assert made.ask("GET", "/v2/", verify=trusting).status_code == 200
    begun = made.ask("POST", f"/v2/{world.repository('pod-c')}/blobs/uploads/", verify=trusting)
    assert begun.headers["Location"].startswith(f"{made.url}/v2/")
    with pytest.raises(httpx.ConnectError):
        made.ask("GET", "/v2/", verify=ssl.create_default_context())


def test_what_ends_tls_before_the_router_knows_the_client(world: World) -> None:
    """If a proxy ends TLS before the router, registries write https addresses all the same."""
    made = world.another_router(public_scheme="https")
    begun = made.ask("POST", f"/v2/{world.repository('pod-c')}/blobs/uploads/")
    assert begun.headers["Location"].startswith(f"https://{made.address}/v2/")
