"""Write state changes of blobs to blob.lifecycle, and return only when Kafka has acknowledged them all.

Route: coordinator/table/outbox.py -> `publish(records)`. Records of one digest go to one partition, in the order given.
No duplicates: after a failure or a crash the same records are given again, by this process or another, and those that
Kafka already has are not written again. They are found at the ends of partitions, because one process writes at a time,
and at most TAIL records at once. One exception: a broker may still execute a write of an abandoned client after that
look; then a record is there twice, with one id. A client (kafka-python's, idempotent, `acks=all`) that failed is
discarded with its buffer, and the next call makes another.
Not here: which records wait (table/lifecycle.py), creating the topic (topics.py).
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from coordinator.errors import NotFoundError, UnavailableError
from coordinator.kafka.connection import client_arguments, make_consumer
from coordinator.kafka.log import LogInspector
from coordinator.kafka.topics import LIFECYCLE
from coordinator.settings import Settings
from schemas.records import BlobLifecycle, headers_of

#: Time limit for all records of one call. Their rows are locked meanwhile, so it is well below the database's limit.
TIMEOUT_S: Final = 15.0

POLL_S: Final = 1.0
#: The most records that one call writes.
TAIL_RECORDS: Final = 500

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(BlobLifecycle)


class LifecycleProducer:
    """Writes lifecycle records; for one thread. Connects when there is something to write."""

    def __init__(self, settings: Settings, inspector: LogInspector, timeout: float = TIMEOUT_S) -> None:
        self._arguments = client_arguments(settings)
        self._timeout = timeout
        self._inspector = inspector
        self._client: KafkaProducer | None = None
        #: Where each partition ended after the last write; later records are another process's. None: not known.
        self._ends: dict[int, int] | None = None
        #: The records of the last call. If they come again, the caller did not note that Kafka has them.
        self._written: set[int] = set()

    def publish(self, records: Sequence[BlobLifecycle]) -> None:
        """Write the records that Kafka does not have yet; at most TAIL.

        Raises UnavailableError if Kafka did not acknowledge all of them in time.
        """
        assert len(records) <= TAIL_RECORDS
        deadline = time.monotonic() + self._timeout
        try:
            ends, published = self._read_published(deadline)
            client = self._connect()
            sent = [
                client.send(
                    LIFECYCLE, key=record.digest.encode(), value=_encoder.encode(record), headers=headers_of(record)
                )
                for record in records
                if record.id not in published and record.id not in self._written
            ]
            for each in sent:
                written = each.get(timeout=max(0.0, deadline - time.monotonic()))
                ends[written.partition] = max(ends.get(written.partition, 0), written.offset + 1)
            self._ends, self._written = ends, {record.id for record in records}
        except NotFoundError as error:
            # A broker would create a topic that is requested by name, with one partition and too short a retention.
            raise UnavailableError(str(error)) from error
        except (KafkaError, OSError, TimeoutError, UnavailableError) as error:
            self._discard()
            raise UnavailableError(
                f"Kafka does not accept records for {LIFECYCLE} ({type(error).__name__}): check that it runs."
            ) from error
        except BaseException:
            self._discard()
            raise

    def close(self) -> None:
        self._discard()
        self._inspector.close()

    def _read_published(self, deadline: float) -> tuple[dict[int, int], set[int]]:
        """Return where each partition ends, and the ids of the changes after what this process has written."""
        state = self._inspector.read_state(LIFECYCLE)
        ends = {number: offsets.latest for number, offsets in state.partitions.items()}
        known = self._ends
        begins = {
            number: max(offsets.earliest, ends[number] - TAIL_RECORDS if known is None else known.get(number, 0))
            for number, offsets in state.partitions.items()
        }
        unread = {number: begin for number, begin in begins.items() if begin < ends[number]}
        return ends, self._read_ids(unread, ends, deadline) if unread else set()

    def _read_ids(self, begins: Mapping[int, int], ends: Mapping[int, int], deadline: float) -> set[int]:
        consumer = make_consumer(self._arguments, self._timeout, auto_offset_reset="earliest")
        found: set[int] = set()
        try:
            waiting = {TopicPartition(LIFECYCLE, number) for number in begins}
            consumer.assign(waiting)
            for number, begin in begins.items():
                consumer.seek(TopicPartition(LIFECYCLE, number), begin)
            while waiting:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                for records in consumer.poll(timeout_ms=round(min(left, POLL_S) * 1000)).values():
                    found |= {published for record in records if (published := _change_id(record.value)) is not None}
                waiting = {at for at in waiting if consumer.position(at, timeout_ms=1000) < ends[at.partition]}
        finally:
            with contextlib.suppress(KafkaError, OSError):
                consumer.close()
        return found

    def _connect(self) -> KafkaProducer:
        if self._client is None:
            self._client = KafkaProducer(
                **self._arguments,
                acks="all",
                max_block_ms=round(self._timeout * 1000),
                bootstrap_timeout_ms=round(self._timeout * 1000),
                request_timeout_ms=round(self._timeout * 1000 / 2),
                delivery_timeout_ms=round(self._timeout * 1000),
            )
        return self._client

    def _discard(self) -> None:
        self._ends = None
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(KafkaError):
            client.close(timeout=0)
        # While records wait, `close` returns before the thread that still sends them has ended.
        client._sender.force_close()  # noqa: SLF001


def _change_id(value: bytes | None) -> int | None:
    """Return the id of a record's change; None for a record that Baleen did not write."""
    try:
        return _decoder.decode(value or b"").id
    except (msgspec.MsgspecError, ValueError):
        return None
