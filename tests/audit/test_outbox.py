"""Changes of blobs are published to blob.lifecycle in order and once, and deleted only after that."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema
import pytest
from kafka import KafkaConsumer, TopicPartition

from coordinator.db.connection import Connections
from coordinator.errors import UnavailableError
from coordinator.kafka.lifecycle import LifecycleProducer
from coordinator.kafka.log import LogInspector
from coordinator.kafka.topics import LIFECYCLE, ensure_topics
from coordinator.settings import Settings, make_settings
from coordinator.stack.guard import Guard
from coordinator.table import outbox
from schemas.publish import schema_of
from schemas.records import BlobLifecycle
from tests.audit.harness import World
from tests.conftest import temporary_directory
from tests.support.wait import eventually
from tests.workers.services import Broker


class Published:
    """A topic that can be away, and a process that can end at any moment."""

    def __init__(self) -> None:
        self.records: list[BlobLifecycle] = []
        self.away = False
        self.dies = False

    def publish(self, records: Sequence[BlobLifecycle]) -> None:
        if self.away:
            raise UnavailableError("Kafka does not answer: try again.")
        self.records += records
        if self.dies:
            raise KeyboardInterrupt

    def changes(self) -> list[tuple[str, str]]:
        return [(record.digest, record.change) for record in self.records]


def publish(world: World, published: Published, batch: int = outbox.BATCH_SIZE) -> int:
    return outbox.publish_outbox(world.connections, published, batch)  # type: ignore[arg-type]


def happen(world: World) -> list[tuple[str, str]]:
    """Let a blob be lost and come again, twice; and another be lost."""
    world.needed("here")
    world.lose("a", "b")
    expected = []
    for _ in range(2):
        world.presence.resolve([world.digest("a")])
        world.put("a")
        world.presence.round()
        world.store.delete(world.key("a"))
        expected += [(world.text("a"), "missing"), (world.text("a"), "live")]
    world.presence.resolve([world.digest("b")])
    return [*expected, (world.text("b"), "missing")]


def test_all_is_reported_in_order(world: World) -> None:
    """Each change is published once, in the order in which it happened, in batches of any size."""
    published, expected = Published(), happen(world)
    assert publish(world, published, batch=2) == len(expected)
    assert published.changes() == expected
    assert [record.at for record in published.records] == sorted(record.at for record in published.records)
    assert (published.records[0].reference_count, published.records[0].link_count) == (0, 1)
    assert world.outbox() == []
    assert publish(world, published) == 0


def test_what_is_not_acknowledged_waits(world: World) -> None:
    """While Kafka is away changes wait, and are published in order when it is back."""
    published, expected = Published(), happen(world)
    published.away = True
    with pytest.raises(UnavailableError):
        publish(world, published)
    assert len(world.outbox()) == len(expected)
    published.away = False
    publish(world, published)
    assert published.changes() == expected


def test_a_process_that_ends_in_between(world: World) -> None:
    """A process that ends between acknowledgement and delete leaves its changes, which are sent again by their ids."""
    published, expected = Published(), happen(world)
    published.dies = True
    with pytest.raises(KeyboardInterrupt):
        publish(world, published)
    published.dies = False
    publish(world, published)
    assert published.changes() == [*expected, *expected]
    ids = [record.id for record in published.records]
    assert ids[len(expected) :] == ids[: len(expected)]
    assert world.outbox() == []


def test_two_publishers(world: World) -> None:
    """While one process publishes, another one publishes nothing, so that the order is kept."""
    published, other = Published(), Published()
    expected = happen(world)
    connections = Connections(world.url, name="another")
    found: list[int] = []

    class Meanwhile(Published):
        def publish(self, records: Sequence[BlobLifecycle]) -> None:
            found.append(outbox.publish_outbox(connections, other))  # type: ignore[arg-type]
            published.publish(records)

    publish(world, Meanwhile())
    connections.close()
    assert (found, other.records) == ([0], [])
    assert published.changes() == expected


@pytest.fixture
def broker() -> Iterator[Broker]:
    guard = Guard()
    with temporary_directory() as directory:
        broker = Broker(guard, directory)
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()
            guard.close()


def settings_of(broker: Broker) -> Settings:
    return make_settings({"kafka_bootstrap": broker.bootstrap, "kafka_partitions": "3"})


def publisher(broker: Broker, timeout: float = 10.0) -> LifecycleProducer:
    settings = settings_of(broker)
    return LifecycleProducer(settings, LogInspector(settings, timeout), timeout)


def test_on_a_real_broker(world: World, broker: Broker) -> None:
    """Records of one digest are in one partition in order, keyed by it, and as the published schema says."""
    ensure_topics(settings_of(broker))
    expected = happen(world)
    producer = publisher(broker)
    for _ in range(2):
        assert outbox.publish_outbox(world.connections, producer) in {len(expected), 0}
    producer.close()
    found = list(records(broker, len(expected)))
    for record in found:
        assert dict(record.headers) == {"schema": b"blob.lifecycle/1"}
        jsonschema.validate(json.loads(record.value), schema_of("blob.lifecycle/1"))
        assert record.key.decode() == json.loads(record.value)["digest"]
    for name in "ab":
        mine = [record for record in found if record.key.decode() == world.text(name)]
        assert len({record.partition for record in mine}) == 1
        in_order = [json.loads(record.value)["change"] for record in sorted(mine, key=lambda record: record.offset)]
        assert in_order == [change for digest, change in expected if digest == world.text(name)]


def test_what_kafka_has_is_not_reported_again(world: World, broker: Broker) -> None:
    """What a process sent before it died is not sent again, by it or by another process."""
    ensure_topics(settings_of(broker))
    expected = happen(world)
    one, other = publisher(broker), publisher(broker)

    def ends_in_between(producer: LifecycleProducer) -> None:
        class Ends:
            def publish(self, records: Sequence[BlobLifecycle]) -> None:
                producer.publish(records)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            outbox.publish_outbox(world.connections, Ends())  # type: ignore[arg-type]

    for producer in (one, one, other, one):
        ends_in_between(producer)
    assert len(world.outbox()) == len(expected)
    assert outbox.publish_outbox(world.connections, other) == len(expected)
    world.presence.resolve([world.digest("a")])
    assert outbox.publish_outbox(world.connections, one) == 1
    found = list(records(broker, len(expected) + 1))
    one.close()
    other.close()
    assert len({json.loads(record.value)["id"] for record in found}) == len(expected) + 1
    with LogInspector(settings_of(broker)) as inspector:
        ends = inspector.read_state(LIFECYCLE).partitions
    assert sum(offsets.latest for offsets in ends.values()) == len(found)


def test_a_broker_that_is_away(world: World, broker: Broker) -> None:
    """Without a broker, or without the topic, changes wait; once both exist they are published."""
    expected = happen(world)
    producer = publisher(broker, timeout=2.0)

    def refused() -> str:
        with pytest.raises(UnavailableError, match=LIFECYCLE) as raised:
            outbox.publish_outbox(world.connections, producer)
        return str(raised.value)

    def published() -> int:
        # A broker that has just begun may need longer than the producer waits: schedulers come again, too.
        with contextlib.suppress(UnavailableError):
            return outbox.publish_outbox(world.connections, producer)
        return 0

    broker.kill()
    assert "topics create" not in refused()
    broker.start()
    eventually(lambda: "topics create" in refused(), "the topic is missed")
    ensure_topics(settings_of(broker))
    assert eventually(published, "all is published") == len(expected)
    assert len(list(records(broker, len(expected)))) == len(expected)
    # Away while there is a connection.
    world.presence.resolve([world.digest("a")])
    broker.kill()
    refused()
    assert len(world.outbox()) == 1
    broker.start()
    ensure_topics(settings_of(broker))
    assert eventually(published, "the last is published") == 1
    assert world.outbox() == []
    producer.close()


def records(broker: Broker, count: int) -> Iterator[Any]:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, enable_auto_commit=False, consumer_timeout_ms=20_000)
    try:
        consumer.assign([TopicPartition(LIFECYCLE, number) for number in range(3)])
        consumer.seek_to_beginning()
        for _ in range(count):
            yield next(consumer)
    finally:
        consumer.close()
