"""Bytes are streamed both ways: nothing is kept in a file, memory and waits are bounded."""

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from coordinator.domain.pods import parse_registry
from coordinator.registry.client import RegistryClient
from coordinator.router import nginx as router
from tests.router.harness import DEADLINE_S, HOST, Router, World, parse_answer, read_answer, request

pytestmark = pytest.mark.registry

MIB = 1 << 20
BIG = 100 * MIB


def chunks() -> Iterator[bytes]:
    for number in range(BIG // MIB):
        yield number.to_bytes(4, "big") * (MIB // 4)


def memory_mib(made: Router) -> float:
    peaks = [re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in made.workers()]
    return max(int(peak[1]) for peak in peaks if peak is not None) / 1024


def test_a_big_blob_passes_without_a_file(world: World) -> None:
    """100 MB are pushed and pulled; no temporary file was written, and no memory grew with them."""
    made = world.another_router()
    digest = "sha256:" + hashlib.sha256(b"".join(chunks())).hexdigest()
    repository = world.repository("pod-a")
    with RegistryClient(made.url) as client:
        client.finish_upload(client.begin_upload(repository), digest, chunks(), BIG)
        assert sum(map(len, client.read_blob(repository, digest))) == BIG
    assert memory_mib(made) < world.proxy.memory_mib
    assert "temporary file" not in (made.directory / "error.log").read_text()


def test_the_store_sends_what_a_registry_redirects(world: World) -> None:
    """A redirect reaches the client as the registry wrote it, and the bytes come from the store."""
    repository, content = world.repository("pod-c"), b"the bytes" * 1000
    with world.client() as client:
        digest = client.push_blob(repository, content)
        world.router.log()
        assert client.get_blob(repository, digest) == content
    answer = world.router.ask("GET", f"/v2/{repository}/blobs/{digest}")
    assert answer.status_code == 307
    assert answer.headers["Location"].startswith(world.storage.endpoint_url)
    assert httpx.get(answer.headers["Location"], timeout=DEADLINE_S, trust_env=False).content == content
    assert all(int(line["bytes"]) < len(content) for line in world.router.log())


@contextmanager
def one_connection(world: World, **options: int) -> Iterator[tuple[Router, socket.socket]]:
    """A router before a pod of which this test is the registry, and where that listens."""
    with socket.create_server((HOST, 0)) as server:
        server.settimeout(DEADLINE_S)
        url = parse_registry(f"http://{HOST}:{server.getsockname()[1]}")
        yield world.another_router(pods=[router.RoutedPod("pod-x", ["x"], [url])], **options), server


def connect(made: Router) -> socket.socket:
    host, _, port = made.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    content = b""
    while mark not in content:
        chunk = connection.recv(65536)
        assert chunk, content
        content += chunk
    return content


@pytest.mark.parametrize("head", ["Content-Length: 10", "Transfer-Encoding: chunked"])
def test_an_upload_reaches_the_registry_as_it_comes(world: World, head: str) -> None:
    """The registry has the first half of a body before the client has sent the second."""
    first, second = (b"5\r\nfirst\r\n", b"5\r\nsecnd\r\n0\r\n\r\n") if "chunked" in head else (b"first", b"secnd")
    with one_connection(world) as (made, server), connect(made) as client:
        client.sendall(request("PATCH /v2/x/blobs/uploads/session?_state=s HTTP/1.1", head) + first)
        pod, _ = server.accept()
        with pod:
            pod.settimeout(DEADLINE_S)
            assert read_until(pod, b"first").startswith(b"PATCH /v2/x/blobs/uploads/session?_state=s HTTP/1.1\r\n")
            client.sendall(second)
            read_until(pod, b"secnd")
            pod.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            assert read_answer(client).status == 202


def test_a_pull_reaches_the_client_as_it_comes(world: World) -> None:
    """The client has the first half of a blob before the registry has sent the second."""
    with one_connection(world) as (made, server), connect(made) as client:
        client.sendall(request(f"GET /v2/x/blobs/sha256:{'0' * 64} HTTP/1.1"))
        pod, _ = server.accept()
        with pod:
            pod.settimeout(DEADLINE_S)
            read_until(pod, b"\r\n\r\n")
            pod.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
            assert parse_answer(read_until(client, b"first")).status == 200
            pod.sendall(b"secnd")
            read_until(client, b"secnd")


def test_a_pod_steers_nothing(world: World) -> None:
    """A registry's headers cannot make the router request another address."""
    with one_connection(world) as (made, server), connect(made) as client:
        client.sendall(request("GET /v2/x/tags/list HTTP/1.1", "Authorization: Bearer of-a-client"))
        pod, _ = server.accept()
        with pod:
            pod.settimeout(DEADLINE_S)
            read_until(pod, b"\r\n\r\n")
            pod.sendall(b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /v2/\r\nContent-Length: 4\r\n\r\nhere")
            answer = read_answer(client)
    assert (answer.status, answer.body) == (200, b"here")


def test_a_client_that_asks_first_may_go_on(world: World) -> None:
    """A client that waits for `100 Continue` gets it, on the way to a pod and to Baleen."""
    form = "mount=x&from=y"
    for target, sent in (
        ("/v2/team/app/blobs/uploads/", ["Content-Type: application/x-www-form-urlencoded"]),
        ("/v2/team/app/manifests/v1", ["Content-Type: application/vnd.oci.image.manifest.v1+json"]),
    ):
        method = "POST" if target.endswith("/") else "PUT"
        with connect(world.router) as client:
            head = [*sent, "Expect: 100-continue", f"Content-Length: {len(form)}"]
            client.sendall(request(f"{method} {target} HTTP/1.1", *head))
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue\r\n")
            client.sendall(form.encode())
            assert read_answer(client).status in {202, 400}


def test_a_registry_that_says_nothing_is_given_up(world: World) -> None:
    """After the bound on a request the client gets an error of the specification."""
    with one_connection(world, request_bound_s=1) as (made, server):
        answers = []
        asking = threading.Thread(target=lambda: answers.append(made.raw(request("GET /v2/x/manifests/v1 HTTP/1.1"))))
        asking.start()
        pod, _ = server.accept()
        asking.join(DEADLINE_S)
        pod.close()
    (answer,) = answers
    assert answer.status == 502
    assert b"UNAVAILABLE" in answer.body
    assert answer.headers["retry-after"] == "1"
