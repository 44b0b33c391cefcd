"""What Baleen relies on from a broker, held against the embedded one and Apache Kafka alike.

The embedded broker does less than Kafka, and nothing here may depend on that: it has no topic ids and no
leader epochs, loses the last seconds of its log when it is killed, never expires a member that died without
leaving its group, refuses commits while a group rebalances, and ignores retention.bytes: see
coordinator/stack/noida.py.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol, Self

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import TopicAlreadyExistsError

from coordinator.stack.supervisor import Stack
from tests.conftest import guarded_kafka, temporary_directory
from tests.support.wait import eventually

PARTITIONS = 8
DEADLINE = 60.0


class Broker(Protocol):
    """A broker that can be restarted cleanly."""

    @property
    def bootstrap(self) -> str: ...

    def restart(self) -> None: ...


class EmbeddedBroker:
    """The broker of a stack; a clean restart is the end of the stack and a new one on its directory."""

    def __init__(self, make: Callable[[], Stack]) -> None:
        self._make = make
        self._stack = make()
        self.bootstrap = self._start()

    def restart(self) -> None:
        self.stop()
        self._stack = self._make()
        assert self._start() == self.bootstrap

    def stop(self) -> None:
        self._stack.stop()

    def _start(self) -> str:
        found = self._stack.start().kafka_bootstrap
        assert found is not None
        return found


@pytest.fixture(scope="module", params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker of this file's own, since it is restarted."""
    with temporary_directory() as directory:
        if request.param == "apache":
            with guarded_kafka(directory) as server:
                yield server
        else:
            embedded = EmbeddedBroker(lambda: Stack(directory, services=["kafka"]))
            try:
                yield embedded
            finally:
                embedded.stop()


@pytest.fixture
def topic(broker: Broker) -> str:
    name = f"contract.{uuid.uuid4().hex[:12]}"
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs={"retention.ms": "86400000"})])
        eventually(lambda: len(described(broker, name)["partitions"]) == PARTITIONS)
    return name


def described(broker: Broker, topic: str) -> dict[str, list[object]]:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        return dict(admin.describe_topics([topic])[0])


def produce(broker: Broker, topic: str, count: int, *, partition: int | None = None) -> list[tuple[int, int]]:
    """Write numbered records with keys and headers; (partition, offset) of each, as acknowledged."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", enable_idempotence=True)
    try:
        sent = [
            producer.send(
                topic,
                key=f"pod/{number % 50}".encode(),
                value=str(number).encode(),
                headers=[("schema", b"1"), ("raw", b"\x00\xff")],
                partition=partition,
            )
            for number in range(count)
        ]
        placed = [each.get(timeout=DEADLINE) for each in sent]
        return [(record.partition, record.offset) for record in placed]
    finally:
        producer.close(timeout=DEADLINE)


def consumer(broker: Broker, **more: object) -> KafkaConsumer:
    return KafkaConsumer(bootstrap_servers=broker.bootstrap, enable_auto_commit=False, **more)


def read(reader: KafkaConsumer, count: int) -> list[object]:
    found: list[object] = []
    deadline = time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records came"
        for records in reader.poll(timeout_ms=200).values():
            found += records
    return found


class Member:
    """A member of the topic's group, polled by a thread of its own as a worker would be."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.held: frozenset[TopicPartition] = frozenset()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(broker, topic))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join()

    def _run(self, broker: Broker, topic: str) -> None:
        timing = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 300}
        reader = consumer(broker, group_id=f"group.{topic}", **timing)
        reader.subscribe([topic])
        while not self._leave.is_set():
            reader.poll(timeout_ms=100)
            self.held = frozenset(reader.assignment())
        reader.close()


class TestBroker:
    """One contract, two brokers."""

    def test_topics_are_created_once_and_described(self, broker: Broker, topic: str) -> None:
        """A topic has the partitions it was made with, and a second creation is refused."""
        with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
            with pytest.raises(TopicAlreadyExistsError):
                admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
            assert topic in admin.list_topics()
        assert len(described(broker, topic)["partitions"]) == PARTITIONS

    def test_records_keep_key_value_headers_and_order(self, broker: Broker, topic: str) -> None:
        """Within a partition records come in the order of their acknowledgement, whole."""
        placed = produce(broker, topic, 500, partition=3)
        assert placed == [(3, offset) for offset in range(500)]
        reader = consumer(broker)
        reader.assign([TopicPartition(topic, 3)])
        reader.seek_to_beginning()
        records = read(reader, 500)
        reader.close()
        assert [r.value for r in records] == [str(n).encode() for n in range(500)]  # type: ignore[attr-defined]
        assert records[7].key == b"pod/7"  # type: ignore[attr-defined]
        assert list(records[7].headers) == [("schema", b"1"), ("raw", b"\x00\xff")]  # type: ignore[attr-defined]

    def test_the_same_key_goes_to_the_same_partition(self, broker: Broker, topic: str) -> None:
        """What is said of one repository stays in order because it stays in one partition."""
        placed = produce(broker, topic, 300)
        for key in range(50):
            assert len({partition for partition, _ in placed[key::50]}) == 1
        assert len({partition for partition, _ in placed}) > 1

    def test_earliest_and_latest_offsets(self, broker: Broker, topic: str) -> None:
        """The first and the next offset of each partition are what was written."""
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        produce(broker, topic, 10, partition=0)
        reader = consumer(broker)
        first, following = reader.beginning_offsets(partitions), reader.end_offsets(partitions)
        reader.close()
        assert set(first.values()) == {0}
        assert [following[each] for each in partitions] == [10, 0, 0, 0, 0, 0, 0, 0]

    def test_reading_starts_where_it_was_sought(self, broker: Broker, topic: str) -> None:
        """A reader that goes on from an offset of its own gets that record first."""
        produce(broker, topic, 20, partition=1)
        reader = consumer(broker)
        reader.assign([TopicPartition(topic, 1)])
        for start in (13, 0, 19):
            reader.seek(TopicPartition(topic, 1), start)
            assert read(reader, 1)[0].offset == start  # type: ignore[attr-defined]
        reader.close()

    def test_two_members_share_the_partitions_and_one_takes_over(self, broker: Broker, topic: str) -> None:
        """Two members have four partitions each; the one that stays gets those of the one that leaves."""
        one, two = Member(broker, topic), Member(broker, topic)
        with one:
            with two:
                eventually(lambda: (len(one.held), len(two.held)) == (PARTITIONS // 2, PARTITIONS // 2))
                assert not one.held & two.held
            eventually(lambda: len(one.held) == PARTITIONS)

    def test_records_survive_a_clean_restart(self, broker: Broker, topic: str) -> None:
        """After SIGTERM and a new start everything acknowledged is there, and offsets go on."""
        produce(broker, topic, 100, partition=2)
        broker.restart()
        reader = consumer(broker)
        reader.assign([TopicPartition(topic, 2)])
        reader.seek_to_beginning()
        assert len(read(reader, 100)) == 100
        reader.close()
        assert produce(broker, topic, 1, partition=2) == [(2, 100)]
