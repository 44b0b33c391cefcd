"""Write outcomes to Kafka, and return only when Kafka has acknowledged them all.

Route: Ingest -> `publish(outcomes)` -> registry.events and registry.dead-letters, in order.
Invariants: records of one partition arrive in the order of the outcomes; after a failure no unacknowledged record is
kept for later, since the registry sends it again and a late copy would be out of order; a watermark is sent only after
everything else is acknowledged, and is written to every partition of both topics.

The brokers are asked for the partitions for each watermark. A partition that was not yet known then has no watermark,
so for that partition the registry process has not reported. Once the processor learns of the partition, by assignment
or by a later watermark, the pod's watermark is unknown until the next probe.

A client (aiokafka's producer, idempotent, `acks=all`) that failed once is discarded, and another connects in the
background: an idempotent client that missed an acknowledgement can have a gap in its numbering, and would be refused
forever. Without a client, `publish` waits up to its time limit.
A discarded client never sends what it has not yet passed to the operating system (`Client.give_up`).
A client's buffer holds a batch or two per partition; ingest's memory limit bounds what waits for a place in it.
Not here: creating topics (topics.py); a client never creates one, because it would have only one partition.
"""

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import DefaultPartitioner

from coordinator.errors import UnavailableError
from coordinator.ingest.dead_letters import repositories_in
from coordinator.ingest.normalise import (
    Accepted,
    DeadLettered,
    Dropped,
    Origin,
    Outcome,
    Reported,
    make_dead_letter,
)
from coordinator.kafka.connection import client_arguments
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS, largest_event_bytes
from coordinator.settings import Settings
from schemas.records import RECORD_CONTENT_TYPE, Record, RegistryWatermark, headers_of, partition_key_of

log = logging.getLogger(__name__)

#: The topic's size limit applies to batches. Below it, a large record does not make a small one in its batch fail.
BATCH_BYTES: Final = 16 * 1024
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
#: Bytes kept of a dead letter that Kafka refuses as too large.
SHORT_PAYLOAD: Final = 1000
_TOPICS: Final = (EVENTS, DEAD_LETTERS)

_encoder = msgspec.json.Encoder()
_partitioner = DefaultPartitioner()


class _Partitions(NamedTuple):
    """The existing partitions, by number."""

    events: list[int]
    dead_letters: list[int]


class Client(AIOKafkaProducer):  # type: ignore[misc] # it has no types
    """aiokafka's producer, which can be abandoned with everything that it was about to send."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._given_up = False
        #: Requests that wait for a connection or for their answer.
        self._requests: set[asyncio.Task[Any]] = set()
        self._send_request = self._sender._send_produce_req  # noqa: SLF001
        self._sender._send_produce_req = self._requesting  # noqa: SLF001

    async def _requesting(self, node: int, batches: Any) -> None:
        request = asyncio.current_task()
        if self._given_up or request is None:
            return
        self._requests.add(request)
        try:
            await self._send_request(node, batches)
        finally:
            self._requests.discard(request)

    def give_up(self) -> None:
        """Send nothing more from now on: aiokafka would retry, even records that it has reported as failed."""
        self._given_up = True
        # Without this, `stop` would wait until Kafka is back and has acknowledged everything.
        self._message_accumulator.fail_all(KafkaConnectionError("given up"))
        for task in (self._sender.sender_task, *self._requests):
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        """Abandon the client and close its connections."""
        self.give_up()
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(10):
                if self._sender.sender_task is not None:
                    await asyncio.wait([self._sender.sender_task])
                await self.stop()


class EventProducer:
    """Publishes outcomes. `start` and `stop` bracket its life, in one event loop."""

    def __init__(self, settings: Settings, client: type[Client] = Client) -> None:
        self._settings = settings
        self._make_client = client
        self._arguments = client_arguments(settings)
        self._timeout = float(settings.ingest_timeout)
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._connector: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start connecting; does not wait for Kafka, which may be away."""
        if self._connector is None:
            self._connector = asyncio.create_task(self._connect())

    async def stop(self) -> None:
        """Close the connections; a running `publish` fails."""
        if self._connector is not None:
            self._connector.cancel()
            await asyncio.gather(self._connector, return_exceptions=True)
            self._connector = None
        if self._client is not None:
            self._discard(self._client, reconnect=False)
        await asyncio.gather(*self._closing, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        """Whether there is a client that has not failed."""
        return self._client is not None

    async def publish(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Write accepted and dead-lettered outcomes, then watermarks; return the outcomes as written.

        They differ from the given ones only if Kafka refuses a record as too large: such an event is written without
        its references and, if it is still too large, dead-lettered. Raises UnavailableError if Kafka did not
        acknowledge everything in time.
        """
        written = list(outcomes)
        waiting = [at for at, outcome in enumerate(written) if isinstance(outcome, Accepted | DeadLettered)]
        reports = [outcome.record for outcome in written if isinstance(outcome, Reported)]
        try:
            async with asyncio.timeout(self._timeout):
                while waiting:
                    waiting = await self._deliver(written, waiting)
                # Later events of the envelope may be there already: a watermark covers only events before it.
                if reports:
                    await self._send_reports(reports)
        except TimeoutError:
            raise UnavailableError("Kafka did not acknowledge the events in time: send them again.") from None
        return written

    async def _deliver(self, written: list[Outcome], waiting: list[int]) -> list[int]:
        """Send waiting outcomes in order; return those to send again, because another of their batch was too large."""
        async with self._use_client() as client:
            sent = [(at, await self._send_waiting(client, written, at)) for at in waiting]
            await asyncio.wait([future for _, future in sent])
        failed = [(at, problem) for at, future in sent if (problem := future.exception()) is not None]
        if not failed:
            return []
        self._discard(client)
        too_large = [at for at, problem in failed if isinstance(problem, MessageSizeTooLargeError)]
        if not too_large:
            raise UnavailableError(f"Kafka does not accept the events: {failed[0][1]!r}.") from failed[0][1]
        for at in too_large:
            written[at] = _as_oversized(written[at])
        return [at for at, _ in failed]

    async def _send_reports(self, reports: Sequence[RegistryWatermark]) -> None:
        """Write each to every partition of both topics."""
        async with self._use_client() as client:
            partitions = await _read_partitions(client)
            sent = [
                _mark_failure_seen(
                    await client.send(topic, value, key=key, partition=number, headers=headers_of(report))
                )
                for report in reports
                for topic, number, key, value in _make_copies(report, partitions)
            ]
            await asyncio.wait(sent)
        if problem := next((problem for future in sent if (problem := future.exception()) is not None), None):
            self._discard(client)
            raise UnavailableError(f"Kafka does not accept the watermark: {problem!r}.") from problem

    @contextlib.asynccontextmanager
    async def _use_client(self) -> AsyncIterator[Client]:
        """Give a client; it is discarded if it fails or its work is cancelled."""
        client = await self._wait_for_client()
        try:
            yield client
        except KafkaError as error:
            self._discard(client)
            raise UnavailableError(f"Kafka does not accept the events: {error!r}.") from error
        except (asyncio.CancelledError, UnavailableError):
            self._discard(client)
            raise

    async def _send_waiting(self, client: Client, written: list[Outcome], at: int) -> asyncio.Future[object]:
        while True:
            try:
                return _mark_failure_seen(await _send_outcome(client, written[at]))
            except MessageSizeTooLargeError:
                # This ends: the event gets shorter each time, and at last this raises.
                written[at] = _as_oversized(written[at])

    async def _wait_for_client(self) -> Client:
        while self._client is None:
            await self._connected.wait()
        return self._client

    async def _connect(self) -> None:
        pause = FIRST_PAUSE
        while True:
            client = self._make_client(
                **self._arguments,
                acks="all",
                enable_idempotence=True,
                linger_ms=0,
                partitioner=_partitioner,
                max_batch_size=BATCH_BYTES,
                max_request_size=largest_event_bytes(self._settings),
                request_timeout_ms=round(self._timeout * 1000),
            )
            try:
                async with asyncio.timeout(2 * self._timeout):
                    await client.start()
                    await _check_topics(client)
            except (KafkaError, OSError, TimeoutError, UnavailableError) as error:
                log.warning("Kafka cannot be used at %s: %r", self._settings.kafka_bootstrap, error)
                await client.close()
            except BaseException:
                await client.close()
                raise
            else:
                self._client = client
                self._connected.set()
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _discard(self, client: Client, *, reconnect: bool = True) -> None:
        """Abandon a client with its buffer, once, and connect another."""
        if self._client is not client:
            return
        self._client = None
        self._connected.clear()
        client.give_up()
        closing = asyncio.create_task(client.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        if reconnect:
            self._connector = asyncio.create_task(self._connect())


async def _send_outcome(client: Client, outcome: Outcome) -> asyncio.Future[object]:
    """Put one record into the client's buffer, waiting for a place in it."""
    topic: str
    record: Record
    match outcome:
        case Accepted(event):
            topic, record, key = EVENTS, event, partition_key_of(event)
        case DeadLettered(substitute):
            topic, record, key = DEAD_LETTERS, substitute, substitute.pod.encode()
        case Reported() | Dropped():  # pragma: no cover
            raise AssertionError("What is reported is published in another way, and what is dropped is not.")
    _check_topic(client, topic)
    future: asyncio.Future[object] = await client.send(
        topic, _encoder.encode(record), key=key, headers=headers_of(record)
    )
    return future


def _make_copies(report: RegistryWatermark, partitions: _Partitions) -> Iterable[tuple[str, int, bytes | None, bytes]]:
    """Yield topic, partition, key and value of each copy of a watermark; each copy names the partitions of the others.

    A pod's dead letters are in one partition, and in another one once there are more partitions. The earlier ones get a
    copy too, so that the watermark there still advances.
    """
    key = report.pod.encode()
    dead_letters: int = _partitioner(key, partitions.dead_letters, partitions.dead_letters)
    value = _encoder.encode(
        msgspec.structs.replace(report, partitions=len(partitions.events), dead_letters_partition=dead_letters)
    )
    for number in partitions.dead_letters:
        yield DEAD_LETTERS, number, key, value
    for number in partitions.events:
        yield EVENTS, number, None, value


def _mark_failure_seen(future: asyncio.Future[object]) -> asyncio.Future[object]:
    """Mark a failure that nothing waits for as seen, so that asyncio does not log it."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _as_oversized(outcome: Outcome) -> Outcome:
    """Return a smaller outcome for one that Kafka refuses as too large: it must neither repeat forever nor be lost."""
    match outcome:
        case Accepted(event, hold) if event.references is not None:
            # References make it large; they can be read from the manifest's bytes instead.
            return Accepted(msgspec.structs.replace(event, references=None), hold)
        case Accepted(event):
            origin = Origin(event.pod, (), dt.datetime.now(dt.UTC), RECORD_CONTENT_TYPE)
            detail = "Kafka accepts no record as large as this event: fix the topic as `baleen topics create` says."
            sent = _encoder.encode(event)
            return DeadLettered(make_dead_letter(origin, "oversized", detail, sent, about=repositories_in(sent)))
        case DeadLettered(substitute) if len(substitute.payload) > SHORT_PAYLOAD:
            return DeadLettered(msgspec.structs.replace(substitute, payload=substitute.payload[:SHORT_PAYLOAD]))
        case _:
            raise UnavailableError("Kafka accepts only tiny records: fix the topic as `baleen topics create` says.")


async def _check_topics(client: Client) -> None:
    # The client then asks for all existing topics; a request for one by its name would create it.
    await client.client.set_topics(())
    for topic in _TOPICS:
        _check_topic(client, topic)


async def _read_partitions(client: Client) -> _Partitions:
    """Ask the brokers for the present partitions: the client's metadata may be minutes old."""
    now = _partitions_of(await client.client.fetch_all_metadata())
    if _partitions_of(client.client.cluster) != now:
        await client.client.force_metadata_update()
    if _partitions_of(client.client.cluster) != now or not all(now):
        raise UnavailableError("Kafka's topics are being changed: send the events again.")
    return now


def _partitions_of(cluster: ClusterMetadata) -> _Partitions:
    events, dead_letters = (cluster.partitions_for_topic(topic) or () for topic in _TOPICS)
    return _Partitions(sorted(events), sorted(dead_letters))


def _check_topic(client: Client, topic: str) -> None:
    if client.client.cluster.partitions_for_topic(topic) is None:
        raise UnavailableError(f"Kafka has no topic {topic}: create it with `baleen topics create`.")
