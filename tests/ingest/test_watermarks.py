"""Probes that come back: where Kafka has their watermarks, always after everything else."""

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.errors import NotEnoughReplicasError
from kafka import KafkaAdminClient

from coordinator.errors import UnavailableError
from coordinator.ingest.metrics import EVENTS as COUNTED
from coordinator.ingest.normalise import Origin, normalise_body
from coordinator.kafka.producer import Client, EventProducer
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS, ensure_topics
from coordinator.settings import Settings, make_settings
from tests.ingest.harness import V1, Tape, envelope, event, run_broker

PATH = "/v1/events/pod-a"
PARTITIONS = 4
NONCES = [f"{number:032x}" for number in range(10)]


def probe(nonce: str = NONCES[0], action: str = "pull", **changes: Any) -> dict[str, Any]:
    agent = {"useragent": f"baleen-probe/{nonce}", "method": "HEAD" if action == "pull" else "PUT"}
    return event(action=action, request=agent, source={"instanceID": "i-1"}, **changes)


def test_in_every_partition(client: httpx.Client, tape: Tape) -> None:
    """A watermark is once in each partition of events and dead letters, and names the pod's own one of these."""
    tape.rewind()
    # A letter of the same pod, to know its partition.
    answer = client.post(PATH, content=envelope(event(action="?"), probe()))
    assert (answer.status_code, answer.json()) == (
        202,
        {"accepted": 0, "dropped": 0, "dead_lettered": 1, "reported": 1},
    )
    dead_letters, copies = tape.dead_letters(), tape.events()
    (dead_letter,) = [record for record in dead_letters if "nonce" not in record.value]
    dead_letters.remove(dead_letter)
    for found in (dead_letters, copies):
        assert sorted(record.partition for record in found) == list(range(PARTITIONS))
    for record in (*copies, *dead_letters):
        assert record.schema == "registry.watermark/1"
        assert record.value == {
            "action": "watermark",
            "pod": "pod-a",
            "process": "i-1",
            "nonce": NONCES[0],
            "partitions": PARTITIONS,
            "dead_letters_partition": dead_letter.partition,
        }


def test_after_all_else(client: httpx.Client, tape: Tape) -> None:
    """A probe's watermark is the last record in each partition, wherever the probe is in its envelope."""
    posted = [event(id=f"{n}", repository=f"pod-a/{n}") for n in range(20)]
    posted[5] = probe(NONCES[2])
    posted[11] = event(action="?")
    posted[12] = probe(NONCES[3], action="push", repository="pod-a/12")
    counted = COUNTED.labels("pod-a", "reported", "probe")._value.get()
    assert client.post(PATH, content=envelope(*posted)).json()["reported"] == 2
    assert COUNTED.labels("pod-a", "reported", "probe")._value.get() == counted + 2
    for stored in (tape.events(), tape.dead_letters()):
        for number in range(PARTITIONS):
            records = [record.value for record in stored if record.partition == number]
            assert [record.get("nonce") for record in records[-2:]] == [NONCES[2], NONCES[3]]
            assert all("nonce" not in record for record in records[:-2])


def publishing(
    settings: Settings,
    scenario: Callable[[EventProducer, list[Any]], Coroutine[Any, Any, None]],
    *posted: Any,
    client: type[Client] = Client,
) -> None:
    """Run a scenario with a producer that is connected, and the outcomes of an envelope."""

    async def run() -> None:
        producer = EventProducer(settings, client)
        await producer.start()
        await producer._wait_for_client()
        try:
            origin = Origin("pod-a", {"pod-a"}, dt.datetime.now(dt.UTC), V1)
            await scenario(producer, list(normalise_body(envelope(*posted), origin)))
        finally:
            await producer.stop()

    asyncio.run(run())


def test_only_after_the_events_are_acknowledged(settings: Settings, tape: Tape) -> None:
    """No copy of a watermark is sent before Kafka has acknowledged everything else."""
    handed: list[tuple[str, bool]] = []
    pending: list[asyncio.Future[Any]] = []

    class Watched(Client):
        async def send(self, topic: str, value: bytes, **more: Any) -> Any:
            handed.append((topic, b"watermark" in value))
            if b"watermark" in value:
                assert all(future.done() and future.exception() is None for future in pending)
            future = await super().send(topic, value, **more)
            if b"watermark" not in value:
                pending.append(future)
            return future

    async def scenario(producer: EventProducer, outcomes: list[Any]) -> None:
        assert await producer.publish(outcomes) == outcomes

    publishing(settings, scenario, event(), probe(), event(action="?"), event(), client=Watched)
    assert [each for _, each in handed] == [False] * 3 + [True] * (2 * PARTITIONS)
    assert len(tape.events()) == 2 + PARTITIONS


@pytest.mark.parametrize("failing", ["event", "watermark"])
def test_a_failure_claims_nothing(settings: Settings, tape: Tape, failing: str) -> None:
    """If an event or a copy of the watermark is not acknowledged, the whole request is refused."""
    failed: list[bytes] = []

    class Broken(Client):
        async def send(self, topic: str, value: bytes, **more: Any) -> Any:
            is_watermark = b"watermark" in value
            if not failed and is_watermark == (failing == "watermark") and more.get("partition") in {None, 2}:
                failed.append(value)
                future = asyncio.get_running_loop().create_future()
                future.set_exception(NotEnoughReplicasError())
                return future
            return await super().send(topic, value, **more)

    async def scenario(producer: EventProducer, outcomes: list[Any]) -> None:
        with pytest.raises(UnavailableError):
            await producer.publish(outcomes)
        assert await producer.publish(outcomes) == outcomes

    publishing(settings, scenario, event(), probe(), client=Broken)
    assert failed
    stored = [(record.partition, record.value["action"]) for record in tape.events()]
    accepted = {at for at, action in stored if action == "push"}
    # A watermark that was kept all the same is true: the event was acknowledged before it.
    for number in accepted:
        assert next(action for at, action in stored if at == number) == "push"
    assert {at for at, action in stored if action == "watermark"} == set(range(PARTITIONS))
    if failing == "event":
        assert sum(action == "watermark" for _, action in stored) == PARTITIONS


@pytest.mark.parametrize("topic", [EVENTS, DEAD_LETTERS])
def test_partitions_that_were_added(tmp_path: Path, topic: str) -> None:
    """A watermark is written to all partitions that the brokers have now, also to those added since the last one."""
    with run_broker(tmp_path) as bootstrap:
        settings = make_settings({"kafka_bootstrap": bootstrap, "kafka_partitions": 2})
        ensure_topics(settings)

        async def scenario(producer: EventProducer, outcomes: list[Any]) -> None:
            await producer.publish(outcomes)
            await asyncio.to_thread(add_partition, bootstrap, topic)
            await producer.publish(outcomes)

        publishing(settings, scenario, probe())
        with Tape(bootstrap) as tape:
            tape.from_the_beginning()
            stored = sorted(record.partition for record in (tape.events() if topic == EVENTS else tape.dead_letters()))
            assert stored == [0, 0, 1, 1, 2]
            shown = sorted(record.value["partitions"] for record in tape.events())
            assert shown == ([2, 2, 3, 3, 3] if topic == EVENTS else [2, 2, 2, 2])


def add_partition(bootstrap: str, topic: str) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.create_partitions({topic: 3})
