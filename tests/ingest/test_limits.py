"""Ingest holds a bounded number of bytes, for a bounded time."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import REGISTRY

from coordinator.settings import make_settings
from tests.ingest.harness import TOKENS, V1, Tape, envelope, event, serve_ingest
from tests.support.wait import eventually

HEADERS = {"Authorization": f"Bearer {TOKENS['pod-a']}", "Content-Type": V1}
MEGABYTE = 1024 * 1024


def in_flight() -> float:
    return REGISTRY.get_sample_value("baleen_ingest_bytes_in_flight") or 0.0


def open_request(url: str, length: int, sent: bytes) -> socket.socket:
    """A request of which only the beginning is sent."""
    where = urlsplit(url)
    assert where.hostname is not None
    connection = socket.create_connection((where.hostname, where.port or 80), timeout=30)
    head = "".join(f"{name}: {value}\r\n" for name, value in (HEADERS | {"Content-Length": str(length)}).items())
    connection.sendall(f"POST /v1/events/pod-a HTTP/1.1\r\nHost: ingest\r\n{head}\r\n".encode() + sent)
    return connection


@pytest.mark.lengthy
def test_flood(broker: str, tape: Tape) -> None:
    """Under a flood of large bodies the bytes in flight stay below the limit, and every 202 is in Kafka."""
    limited = make_settings(
        {
            "kafka_bootstrap": broker,
            # What was answered with 503 because it took too long may be in Kafka all the same.
            "ingest_timeout": "60s",
            "ingest_memory_limit": 3 * MEGABYTE,
            "ingest_body_limit": 2 * MEGABYTE,
        }
    )
    body = json.dumps({"events": [event()], "padding": "x" * MEGABYTE}).encode()
    over = threading.Event()
    seen: list[float] = []

    def watch() -> None:
        while not over.wait(0.0005):
            seen.append(in_flight())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with serve_ingest(limited) as url, ThreadPoolExecutor(12) as pool:

        def post(_: int) -> httpx.Response:
            return httpx.post(f"{url}/v1/events/pod-a", content=body, headers=HEADERS, timeout=90)

        # Three that do not end hold most of the budget, so that some of the flood must be refused.
        held = [open_request(url, len(body), body[: MEGABYTE // 2]) for _ in range(3)]
        eventually(lambda: in_flight() >= 3 * (MEGABYTE // 2))
        answers = list(pool.map(post, range(60)))
        for connection in held:
            connection.close()
        eventually(lambda: in_flight() == 0)
        assert post(0).status_code == 202
    over.set()
    watcher.join()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {202, 503}
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 503)
    assert tape.count() == (statuses.count(202) + 1, 0)
    assert 0 < max(seen) <= 3 * MEGABYTE


def test_endless_body(broker: str, tape: Tape) -> None:
    """A body without end is read up to the limit, dead-lettered, and its connection closed."""
    with serve_ingest(make_settings({"kafka_bootstrap": broker}), drain_limit=9 * MEGABYTE) as url:
        connection = open_request(url, 10**12, b"")
        sent = 0
        try:
            while sent < 100 * MEGABYTE:
                connection.sendall(b" " * MEGABYTE)
                sent += MEGABYTE
        except OSError:
            pass  # the server has closed
        assert sent < 100 * MEGABYTE
        connection.close()
        eventually(lambda: tape.count() == (0, 1))
    (dead_letter,) = tape.dead_letters()
    assert dead_letter.value["reason"] == "oversized"
    assert dead_letter.value["payload_bytes"] > 9 * MEGABYTE
    assert in_flight() == 0


def test_slow_body(broker: str, tape: Tape) -> None:
    """A body that does not arrive in time is refused with 503, and holds no memory."""
    body = envelope(event())
    with serve_ingest(make_settings({"kafka_bootstrap": broker}), body_seconds=0.2) as url:
        connection = open_request(url, len(body), body[:20])
        answer = connection.recv(4096)
        connection.close()
        assert answer.startswith(b"HTTP/1.1 503")
        # This machine, too, may be too slow for that time limit.
        eventually(lambda: httpx.post(f"{url}/v1/events/pod-a", content=body, headers=HEADERS).status_code == 202)
    assert tape.count() == (1, 0)
    assert in_flight() == 0


def test_sender_goes_away(url: str, tape: Tape) -> None:
    """Half a body whose sender went away leaves no record, no dead letter and no memory."""
    body = envelope(event()) + b" " * MEGABYTE
    connection = open_request(url, len(body), body[: MEGABYTE // 2])
    eventually(lambda: in_flight() > 0)
    connection.close()
    eventually(lambda: in_flight() == 0)
    assert tape.count() == (0, 0)


def test_only_authenticated_pods_are_labels(url: str) -> None:
    """A pod name that did not authenticate never becomes a metric's label."""
    httpx.post(f"{url}/v1/events/made-up-name", content=b"", headers=HEADERS)
    httpx.post(f"{url}/v1/events/pod-a", content=envelope(event()), headers=HEADERS)
    labels = {
        sample.labels["pod"]
        for family in REGISTRY.collect()
        if family.name == "baleen_ingest_events"
        for sample in family.samples
    }
    assert "made-up-name" not in labels
    assert "pod-a" in labels
