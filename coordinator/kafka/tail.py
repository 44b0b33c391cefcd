"""Read one pod's new records of registry.events.

Route: `begin` notes where every partition ends -> the caller does something that causes events -> `poll` returns them.
Other pods' records are skipped without decoding. Used by one thread.
Not here: where logs end and whether they are the same ones (log.py), applying (the reference processor).
"""

import contextlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Self

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from coordinator.errors import UnavailableError
from coordinator.kafka.connection import client_arguments, make_consumer
from coordinator.kafka.log import LogInspector
from coordinator.kafka.topics import EVENTS
from coordinator.settings import Settings
from schemas.records import RegistryEvent, RegistryWatermark

TIMEOUT: Final = 10.0
POLL_RECORDS: Final = 5000

_event = msgspec.json.Decoder(RegistryEvent)
_watermark = msgspec.json.Decoder(RegistryWatermark)


class TailedRecord(NamedTuple):
    """A record with its position."""

    partition: int
    offset: int
    record: RegistryEvent | RegistryWatermark


class EventTail:
    """Reads one pod's records. Records that cannot be decoded are skipped."""

    def __init__(self, settings: Settings, inspector: LogInspector, pod: str, timeout: float = TIMEOUT) -> None:
        self._settings = settings
        self._inspector = inspector
        self._pod = pod
        self._key = f"{pod}/".encode()
        #: A watermark has no key; its value names the pod.
        self._name = msgspec.json.encode(pod)
        self._timeout = timeout
        self._consumer: KafkaConsumer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._consumer is not None:
            with contextlib.suppress(KafkaError, OSError):
                self._consumer.close()

    def begin(self) -> None:
        """Start: `poll` returns records written after this."""
        ends = {number: offsets.latest for number, offsets in self._inspector.read_state(EVENTS).partitions.items()}
        try:
            self._consumer = make_consumer(
                client_arguments(self._settings),
                self._timeout,
                isolation_level="read_committed",
                auto_offset_reset="none",
            )
            self._consumer.assign([TopicPartition(EVENTS, number) for number in ends])
            for number, end in ends.items():
                self._consumer.seek(TopicPartition(EVENTS, number), end)
        except (KafkaError, OSError) as error:
            raise _unavailable(error) from error

    def poll(self, seconds: float) -> list[TailedRecord]:
        """Wait up to `seconds` for records and return the pod's; raises UnavailableError."""
        assert self._consumer is not None, "it was not begun"
        try:
            found = self._consumer.poll(timeout_ms=round(seconds * 1000), max_records=POLL_RECORDS)
        except (KafkaError, OSError) as error:
            raise _unavailable(error) from error
        return [
            TailedRecord(at.partition, record.offset, read)
            for at, records in found.items()
            for record in self._records_of_pod(records)
            if (read := _decode_record(record)) is not None and read.pod == self._pod
        ]

    def _records_of_pod(self, records: Iterable[Any]) -> Iterable[Any]:
        for record in records:
            key = record.key or b""
            if key.startswith(self._key) or (not key and self._name in (record.value or b"")):
                yield record


def _decode_record(record: Any) -> RegistryEvent | RegistryWatermark | None:
    for decoder in (_event, _watermark):
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            return decoder.decode(record.value)
    return None


def _unavailable(error: BaseException) -> UnavailableError:
    return UnavailableError(f"The events cannot be read from Kafka ({type(error).__name__}): try again.")
