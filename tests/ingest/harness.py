"""Ingest behind a real HTTP server, and what Kafka holds afterwards. Not here: what must hold (test_*.py)."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import uvicorn
import uvloop
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec
from litestar import Litestar, Request, Response
from litestar.openapi import OpenAPIConfig

from coordinator.api.events import post_events
from coordinator.api.server import KEEP_ALIVE_SECONDS
from coordinator.domain.names import PodName
from coordinator.errors import BaleenError
from coordinator.ingest.directory import KnownPod
from coordinator.ingest.service import Ingest
from coordinator.kafka.producer import EventProducer
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.settings import Settings
from coordinator.stack.supervisor import Stack
from tests.support.wait import eventually

V1 = "application/vnd.docker.distribution.events.v1+json"
V2 = "application/vnd.docker.distribution.events.v2+json"
TOKENS = {"pod-a": "token-of-a", "pod-b": "token-of-b"}
DIGEST = "sha256:" + "ab" * 32


class FixedDirectory:
    """The pods of the captured notifications."""

    def __init__(self) -> None:
        self.pods = {
            name: KnownPod(PodName(name), (name,), sha256(token.encode()).digest()) for name, token in TOKENS.items()
        }

    async def get(self, name: PodName, *, fresh: bool = False) -> KnownPod | None:
        del fresh
        return self.pods.get(name)


def _problem(_: Request[Any, Any, Any], error: BaleenError) -> Response[dict[str, Any]]:
    return Response({"title": str(error)}, status_code=error.status, headers=dict(error.headers))


async def find_any_probe(nonces: Collection[str]) -> dict[str, str]:
    """Find every probe, as one of pod-a."""
    return dict.fromkeys(nonces, "pod-a")


def make_app(settings: Settings, **arguments: Any) -> Litestar:
    producer = EventProducer(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        await producer.start()
        app.state.ingest = Ingest(settings, FixedDirectory(), producer, **{"find_probes": find_any_probe} | arguments)
        yield
        await producer.stop()

    return Litestar(
        [post_events],
        lifespan=[lifespan],
        exception_handlers={BaleenError: _problem},  # type: ignore[dict-item]
        openapi_config=OpenAPIConfig("Baleen", "0"),
        debug=False,
    )


@contextlib.contextmanager
def serve_ingest(settings: Settings, **arguments: Any) -> Iterator[str]:
    """The base URL of an ingest that runs in a thread of its own until the block ends."""
    # asyncio switches Nagle's delay off only if the protocol number is that of TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(settings, **arguments),
                log_level="warning",
                timeout_graceful_shutdown=5,
                lifespan="on",
                # As in service: a client that has kept a connection for as long as the server would lose a request.
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )

        def run() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(server.serve([listening]))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def run_broker(directory: Path) -> Iterator[str]:
    """The address of an embedded broker, which keeps its log and its port in the directory."""
    with Stack(directory, services=("kafka",)) as stack:
        assert stack.endpoints.kafka_bootstrap is not None
        yield stack.endpoints.kafka_bootstrap


def open_client_of_pod_a(url: str, **options: Any) -> httpx.Client:
    headers = {"Authorization": f"Bearer {TOKENS['pod-a']}", "Content-Type": V1}
    return httpx.Client(base_url=url, headers=headers, **{"timeout": 90} | options)


class Stored(NamedTuple):
    partition: int
    key: bytes
    value: dict[str, Any]
    schema: str


class Tape:
    """The records of both topics since this was made, or since the last `rewind`."""

    def __init__(self, bootstrap: str) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            auto_offset_reset="none",
            enable_auto_commit=False,
            max_partition_fetch_bytes=16 * 1024 * 1024,
            max_poll_records=10_000,
        )
        self._admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        self._from: dict[TopicPartition, int] = {}
        self.rewind()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
        self._admin.close()

    def _ends(self) -> dict[TopicPartition, int]:
        partitions = [
            TopicPartition(topic, partition)
            for topic in (EVENTS, DEAD_LETTERS)
            for partition in self._consumer.partitions_for_topic(topic)
        ]
        found = self._admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
        return {at: found[at].offset for at in partitions}

    def rewind(self) -> None:
        self._from = self._ends()

    def from_the_beginning(self) -> None:
        self._from = dict.fromkeys(self._ends(), 0)

    def count(self) -> tuple[int, int]:
        """How many events and dead letters were written."""
        ends = self._ends()
        events, dead_letters = (
            sum(ends[at] - self._from[at] for at in ends if at.topic == topic) for topic in (EVENTS, DEAD_LETTERS)
        )
        return events, dead_letters

    def read(self, topic: str) -> list[Stored]:
        """The records of one topic, each partition's in order."""
        wanted = {at: end for at, end in self._ends().items() if at.topic == topic and end > self._from[at]}
        self._consumer.assign(list(wanted))
        for at in wanted:
            self._consumer.seek(at, self._from[at])
        found: list[Stored] = []
        deadline = time.monotonic() + 20
        while any(self._consumer.position(at) < end for at, end in wanted.items()):
            assert time.monotonic() < deadline
            for records in self._consumer.poll(timeout_ms=200).values():
                for each in records:
                    schema = dict(each.headers)["schema"].decode()
                    found.append(Stored(each.partition, each.key, json.loads(each.value), schema))
        return found

    def events(self) -> list[Stored]:
        return self.read(EVENTS)

    def dead_letters(self) -> list[Stored]:
        return self.read(DEAD_LETTERS)


def event(**changes: Any) -> dict[str, Any]:
    """A blob push of pod-a, with changes: keys of `target` by their names there, others on the event."""
    target = {"mediaType": "application/octet-stream", "size": 5, "digest": DIGEST, "repository": "pod-a/app"}
    base: dict[str, Any] = {"id": "e-1", "timestamp": "2026-11-24T05:31:11.842050262Z", "action": "push"}
    for name, value in changes.items():
        if name in {"id", "timestamp", "action", "source", "actor", "request", "meta"}:
            base[name] = value
        else:
            target[name] = value
    return base | {"target": {name: value for name, value in target.items() if value is not ...}}


def envelope(*events: dict[str, Any]) -> bytes:
    return json.dumps({"events": events}).encode()
