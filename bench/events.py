"""The workload as Kafka records, made as ingest makes them, and written in bulk.

Route: `make_records` (workload -> envelope event -> normalise -> JSON) -> `publish_records`.
Not here: the webhook (webhook.py posts one by one).
"""

import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer

from bench.workload import Manifest, make_envelope_event, make_manifests
from coordinator.ingest.normalise import Accepted, Origin, normalise_body
from coordinator.kafka.topics import EVENTS
from schemas.records import headers_of, partition_key_of

CONTENT_TYPE = "application/vnd.docker.distribution.events.v2+json"
#: Records in flight at once.
WINDOW = 4000

_encoder = msgspec.json.Encoder()


class Record(NamedTuple):
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def body_of(manifest: Manifest, at: datetime) -> bytes:
    """Return the body that a registry posts for a push."""
    return json.dumps({"events": [make_envelope_event(manifest, at, "bench")]}, separators=(",", ":")).encode()


def make_records(seed: int, count: int) -> Iterator[Record]:
    """`count` pushes as ingest writes them to registry.events."""
    now = datetime.now(UTC)
    for number, manifest in enumerate(make_manifests(seed, count)):
        yield record_of(manifest, now, now + timedelta(milliseconds=number))


def record_of(manifest: Manifest, received_at: datetime, at: datetime | None = None) -> Record:
    pod = manifest.repository.partition("/")[0]
    origin = Origin(pod, (pod,), received_at, CONTENT_TYPE)
    (outcome,) = normalise_body(body_of(manifest, at or received_at), origin)
    assert isinstance(outcome, Accepted), outcome
    return Record(partition_key_of(outcome.event), _encoder.encode(outcome.event), headers_of(outcome.event))


def publish_records(bootstrap: str, found: Iterable[Record], per_s: float | None = None) -> int:
    """Write records as fast as the broker accepts them, or `per_s` a second; return how many it acknowledged."""
    return asyncio.run(_publish(bootstrap, found, per_s))


async def _publish(bootstrap: str, found: Iterable[Record], per_s: float | None) -> int:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", linger_ms=5, max_batch_size=256 * 1024, request_timeout_ms=30_000
    )
    await producer.start()
    try:
        sent, waiting = 0, []
        start = time.perf_counter()
        for number, record in enumerate(found):
            if per_s is not None:
                await asyncio.sleep(max(0.0, start + number / per_s - time.perf_counter()))
            waiting.append(await producer.send(EVENTS, record.value, key=record.key, headers=record.headers))
            if len(waiting) >= WINDOW:
                await asyncio.gather(*waiting)
                sent, waiting = sent + len(waiting), []
        await asyncio.gather(*waiting)
        return sent + len(waiting)
    finally:
        await producer.stop()
