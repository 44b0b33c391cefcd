"""TLS on both sides: clients see the router's certificate, and the router asks only registries that it can verify."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from coordinator.domain.pods import parse_registry
from coordinator.router import nginx as router
from tests.router.harness import DEADLINE_S, HOST, World, request
from tests.services.certificates import make_certificate

pytestmark = pytest.mark.registry


class Handler(BaseHTTPRequestHandler):
    """A registry as far as this matters."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = (self.headers["X-Forwarded-Proto"] or "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def https_registry(server_file: Path) -> Iterator[str]:
    server = ThreadingHTTPServer((HOST, 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize("target", ["/v2/x/tags/list", "/v2/"])
def test_only_a_registry_that_is_verified_is_asked(world: World, tmp_path: Path, target: str) -> None:
    """With its certificate's authority it answers; with another, or for another name, it is as if it were away."""
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
    """A name of as many characters as a pod may have is none too many for nginx."""
    make_certificate("localhost", tmp_path / "server.pem", tmp_path / "ca.pem")
    with https_registry(tmp_path / "server.pem") as url:
        pod = router.RoutedPod("x" * 63, ["x"], [parse_registry(url)])
        made = world.another_router(pods=[pod], ca_file=str(tmp_path / "ca.pem"))
        assert made.raw(request("GET /v2/x/tags/list HTTP/1.1")).status == 200


def test_clients_see_the_routers_certificate(world: World, tmp_path: Path) -> None:
    """With a certificate clients speak TLS, and registries are told so, that they write their addresses right."""
    make_certificate(HOST, tmp_path / "router.pem", tmp_path / "ca.pem")
    file = str(tmp_path / "router.pem")
    made = world.another_router(tls=router.Certificate(file, file))
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    assert httpx.get(f"{made.url}/v2/", verify=trusting, timeout=DEADLINE_S, trust_env=False).status_code == 200
    begun = httpx.post(
        f"{made.url}/v2/{world.repository('pod-c')}/blobs/uploads/",
        verify=trusting,
        timeout=DEADLINE_S,
        trust_env=False,
    )
    assert begun.headers["Location"].startswith(f"{made.url}/v2/")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{made.url}/v2/", verify=ssl.create_default_context(), timeout=DEADLINE_S, trust_env=False)


def test_what_ends_tls_before_the_router_knows_the_client(world: World) -> None:
    """Registries write https addresses where clients use them, although the router is asked by http."""
    made = world.another_router(public_scheme="https")
    begun = httpx.post(f"{made.url}/v2/{world.repository('pod-c')}/blobs/uploads/", timeout=DEADLINE_S, trust_env=False)
    assert begun.headers["Location"].startswith(f"https://{made.address}/v2/")
