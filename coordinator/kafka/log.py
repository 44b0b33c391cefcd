"""Read the present state of a topic's log: its id, its offsets, and the fingerprint of one record.

With these the processor detects what must never be skipped silently: a topic that was deleted and created again
(another id; another record at a known offset), a lost tail (latest below what was applied) and records
that retention removed before they were applied (earliest above it).
Every call is bounded in time and raises UnavailableError. An inspector may be used from any thread: a lock lets one
call at a time use its clients, because kafka-python does not allow sharing them. They are kept between calls, because
connecting costs more than a call, and are replaced after any failure.
Not here: what follows from it (the reference processor).
"""

import contextlib
import struct
import threading
import time
import uuid
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Self, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError, OffsetOutOfRangeError

from coordinator.errors import NotFoundError, UnavailableError
from coordinator.kafka.connection import client_arguments, make_consumer, timeout_arguments
from coordinator.settings import Settings

TIMEOUT: Final = 10.0
POLL: Final = 1.0
#: A fetch returns at least one record, whatever its size; one is enough.
FETCH_BYTES: Final = 64 * 1024

_Result = TypeVar("_Result")


class Offsets(NamedTuple):
    """`earliest` is the first stored offset, `latest` the offset of the next record."""

    earliest: int
    latest: int


class TopicState(NamedTuple):
    """A topic's id and offsets; `topic_id` is None if the broker does not support topic ids."""

    topic_id: uuid.UUID | None
    partitions: dict[int, Offsets]


class LogInspector:
    """Reads the state of topics, for any thread."""

    def __init__(self, settings: Settings, timeout: float = TIMEOUT) -> None:
        self._arguments = client_arguments(settings)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._admin: KafkaAdminClient | None = None
        self._consumer: KafkaConsumer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def read_state(self, topic: str) -> TopicState:
        """Return a topic's id and offsets; raises NotFoundError if there is no such topic."""
        return self._run_guarded(lambda: self._read_state(topic))

    def read_fingerprint(self, topic: str, partition: int, offset: int) -> int | None:
        """Return the fingerprint (signed, 64 bits) of the record at exactly this offset, or None if there is none."""
        return self._run_guarded(lambda: self._read_fingerprint(TopicPartition(topic, partition), offset))

    def first_offset(self, topic: str, partition: int, offset: int) -> int | None:
        """Return the offset of the first committed record at or after an offset, or None if there is none."""

        def ask() -> int | None:
            record = self._first_record(TopicPartition(topic, partition), offset)
            return None if record is None else int(record.offset)

        return self._run_guarded(ask)

    def _run_guarded(self, ask: Callable[[], _Result]) -> _Result:
        if not self._lock.acquire(timeout=2 * self._timeout):
            raise UnavailableError("Kafka answers too slowly to read the state of its log: try again later.")
        try:
            return ask()
        except (KafkaError, OSError, TimeoutError, LookupError) as error:
            self._disconnect()
            raise UnavailableError(f"Kafka does not return the state of its log: {error!r}.") from error
        finally:
            self._lock.release()

    def _read_state(self, topic: str) -> TopicState:
        described = self._connect_administrator().describe_topics([topic])[0]
        if described["error_code"] == _UNKNOWN_TOPIC:
            raise NotFoundError(f"Kafka has no topic {topic}: create it with `baleen topics create`.")
        offsets = self._read_offsets([TopicPartition(topic, at["partition_index"]) for at in described["partitions"]])
        return TopicState(
            _parse_topic_id(described.get("topic_id")), {at.partition: offsets[at] for at in sorted(offsets)}
        )

    def _read_offsets(self, asked: list[TopicPartition]) -> dict[TopicPartition, Offsets]:
        # The consumer's own method sometimes returns without some of the partitions.
        ask = self._connect_administrator().list_partition_offsets
        milliseconds = round(self._timeout * 1000)
        earliest = ask(dict.fromkeys(asked, OffsetSpec.EARLIEST), timeout_ms=milliseconds)
        latest = ask(dict.fromkeys(asked, OffsetSpec.LATEST), timeout_ms=milliseconds)
        return {at: Offsets(earliest[at].offset, latest[at].offset) for at in asked}

    def _read_fingerprint(self, asked: TopicPartition, offset: int) -> int | None:
        record = self._first_record(asked, offset)
        if record is None or record.offset != offset:
            return None  # a later one comes where this offset holds a transaction's marker, for example
        return fingerprint_of(record.timestamp, record.key, record.value)

    def _first_record(self, asked: TopicPartition, offset: int) -> Any:
        """Return the first committed record at or after an offset that is in the log, else None."""
        offsets = self._read_offsets([asked])[asked]
        if not offsets.earliest <= offset < offsets.latest:
            return None
        consumer = self._connect_consumer()
        consumer.assign([asked])
        try:
            consumer.seek(asked, offset)
            return self._next_record(consumer, asked, offset, offsets.latest)
        except OffsetOutOfRangeError:
            return None  # retention was faster
        finally:
            consumer.assign([])

    def _next_record(self, consumer: KafkaConsumer, asked: TopicPartition, offset: int, latest: int) -> Any:
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            for record in consumer.poll(timeout_ms=round(min(left, POLL) * 1000), max_records=1).get(asked, ()):
                return record
            if consumer.position(asked, timeout_ms=round(left * 1000)) >= latest:
                return None  # nothing but what was aborted, and markers
        raise TimeoutError(f"no record at offset {offset} of {asked.topic}/{asked.partition} came")

    def _connect_administrator(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = KafkaAdminClient(**self._arguments, **timeout_arguments(self._timeout))
        return self._admin

    def _connect_consumer(self) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = make_consumer(
                self._arguments,
                self._timeout,
                # Records of an aborted transaction do not count.
                isolation_level="read_committed",
                auto_offset_reset="none",
                max_partition_fetch_bytes=FETCH_BYTES,
            )
        return self._consumer

    def _disconnect(self) -> None:
        clients: tuple[Any, ...] = (self._admin, self._consumer)
        self._admin = self._consumer = None
        for client in clients:
            if client is not None:
                with contextlib.suppress(KafkaError, OSError):
                    client.close()


_UNKNOWN_TOPIC: Final = 3


def fingerprint_of(timestamp: int, key: bytes | None, value: bytes | None) -> int:
    """Return the fingerprint (signed, 64 bits) of a record as the broker stores it; `timestamp` in milliseconds."""
    digest = blake2b(struct.pack(">qq", timestamp, -1 if key is None else len(key)), digest_size=8)
    digest.update(key or b"")
    digest.update(b"-" if value is None else b"+" + value)
    return int.from_bytes(digest.digest(), "big", signed=True)


def _parse_topic_id(value: object) -> uuid.UUID | None:
    topic_id = uuid.UUID(str(value)) if value else None
    return topic_id if topic_id and topic_id.int else None
