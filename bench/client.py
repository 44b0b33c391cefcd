"""A cheap HTTP client: requests are bytes made beforehand, and the connection stays open.

A usual client takes as long for a request as the server does, and would be measured instead of it.
Not here: the requests' content, and anything but `Content-Length` on a keep-alive connection.
"""

import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

TIMEOUT_S = 10.0


class Connection:
    """One keep-alive connection, used by one thread."""

    def __init__(self, base_url: str, timeout: float = TIMEOUT_S) -> None:
        parts = urlsplit(base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, request: bytes) -> tuple[int, bytes]:
        """Return the status and the body of the answer."""
        self._socket.sendall(request)
        answer = bytearray()
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._receive()
        head = bytes(answer[:end]).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(answer) < end + 4 + length:
            answer += self._receive()
        return int(head[9:12]), bytes(answer[end + 4 :])

    def _receive(self) -> bytes:
        part = self._socket.recv(256 * 1024)
        if not part:
            raise ConnectionError("The server closed the connection.")
        return part


def make_request(method: str, path: str, token: str, body: bytes = b"", content_type: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Authorization: Bearer {token}"]
    if body:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def time_request(connection: Connection, made: bytes, expected: int) -> float:
    """Return the seconds from the first byte sent to the last received."""
    start = time.perf_counter()
    status, body = connection.send(made)
    taken = time.perf_counter() - start
    if status != expected:
        raise AssertionError(f"{status} is not {expected}: {body[:300]!r}")
    return taken


def run_closed_loop(
    base_url: str, connections: int, seconds: float, made: Callable[[int], bytes], expected: int = 200
) -> dict[str, Any]:
    """Send requests on several connections, each as soon as the last is answered; `made` gives the nth request."""
    taken: list[list[float]] = [[] for _ in range(connections)]
    failures: list[BaseException] = []
    deadline = time.perf_counter() + seconds

    def ask(number: int) -> None:
        try:
            with Connection(base_url) as connection:
                while time.perf_counter() < deadline:
                    at = number + connections * len(taken[number])
                    taken[number].append(time_request(connection, made(at), expected))
        except (OSError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(connections)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 2 * TIMEOUT_S)
    elapsed = time.perf_counter() - start
    if failures:
        raise failures[0]
    every = [each for some in taken for each in some]
    return {"requests_per_s": round(len(every) / elapsed), **summarise_times(every)}


def summarise_times(taken: Sequence[float]) -> dict[str, float]:
    """Return median and tail, in milliseconds, of times in seconds."""
    hundredths = statistics.quantiles(taken, n=100, method="inclusive")
    return {
        "p50_ms": round(hundredths[49] * 1000, 3),
        "p95_ms": round(hundredths[94] * 1000, 3),
        "p99_ms": round(hundredths[98] * 1000, 3),
    }
