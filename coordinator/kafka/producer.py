"""Write outcomes to Kafka, and return only when Kafka has them all.

Route: Ingest -> `publish(outcomes)` -> registry.events and registry.dead-letters, in order.
Invariants: records of one partition arrive in the order of the outcomes; after a failure nothing of what was
not acknowledged is kept for later, since the registry sends it again and a late copy would be out of order; a
watermark is handed over only after everything else is acknowledged, and stands in every partition of both topics.

Which partitions there are is asked of the brokers for each watermark. One that nobody knew of when a watermark was
written has none, and its source has then not reported as far as that partition goes: once the processor has heard of
the partition, by being given it or by a later watermark, the pod's watermark is unknown until the next probe.

A client (aiokafka's producer, idempotent, `acks=all`) that failed once is thrown away and another connected
in the background: an idempotent client that missed an acknowledgement can have a gap in its numbering,
and would be refused for ever. While there is none, `publish` waits for up to its time limit.
What a client that is given up has not yet handed to the system is never sent (`_Client.give_up`).
A client's buffer holds a batch or two per partition; what waits for a place is bounded by ingest's memory.
Not here: topics are made by topics.py; a client never makes one, for it would have one partition only.
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
from coordinator.ingest.letters import repositories_in
from coordinator.ingest.normalise import (
    Accepted,
    DeadLettered,
    Dropped,
    Origin,
    Outcome,
    Reported,
    dead_letter,
)
from coordinator.kafka.connection import client_arguments
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS, largest_event
from coordinator.settings import Settings
from schemas.records import RECORD_CONTENT_TYPE, Record, RegistryWatermark, headers, key_of

log = logging.getLogger(__name__)

#: The topic's size limit is on batches. Below it, one large record makes no small one fail beside it.
BATCH_BYTES: Final = 16 * 1024
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0
#: What is kept of a dead letter that Kafka refuses as too large.
SHORT_PAYLOAD: Final = 1000
_TOPICS: Final = (EVENTS, DEAD_LETTERS)

_encoder = msgspec.json.Encoder()
_partitioner = DefaultPartitioner()


class _Partitions(NamedTuple):
    """The partitions that there are, by number."""

    events: list[int]
    letters: list[int]


class _Client(AIOKafkaProducer):  # type: ignore[misc] # it has no types
    """aiokafka's producer, which can be given up with all that it was about to send."""

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
        """Let nothing more be sent, from now on: aiokafka sends again, and also what it has said to have failed."""
        self._given_up = True
        # Without this, `stop` would wait until Kafka is back and has everything.
        self._message_accumulator.fail_all(KafkaConnectionError("given up"))
        for task in (self._sender.sender_task, *self._requests):
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        """Give it up, and end its connections."""
        self.give_up()
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(10):
                if self._sender.sender_task is not None:
                    await asyncio.wait([self._sender.sender_task])
                await self.stop()


class EventProducer:
    """Publishes outcomes. `start` and `stop` bracket its life, in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._arguments = client_arguments(settings)
        self._timeout = float(settings.ingest_timeout)
        self._client: _Client | None = None
        self._connected = asyncio.Event()
        self._connector: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to connect; does not wait for Kafka, which may be away."""
        if self._connector is None:
            self._connector = asyncio.create_task(self._connect())

    async def stop(self) -> None:
        """Close the connections; a `publish` that is under way fails."""
        if self._connector is not None:
            self._connector.cancel()
            await asyncio.gather(self._connector, return_exceptions=True)
            self._connector = None
        if self._client is not None:
            self._discard(self._client, reconnect=False)
        await asyncio.gather(*self._closing, return_exceptions=True)

    @property
    def connected(self) -> bool:
        """Whether there is a client that has not failed."""
        return self._client is not None

    async def publish(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Write what is accepted and dead-lettered, then what is reported; return the outcomes as they were written.

        They differ from those given only where Kafka takes no record of that size: such an event goes without its
        references and, if it is still too large, is dead-lettered. Raises UnavailableError when Kafka did not
        acknowledge everything in time.
        """
        written = list(outcomes)
        waiting = [at for at, outcome in enumerate(written) if isinstance(outcome, Accepted | DeadLettered)]
        reports = [outcome.record for outcome in written if isinstance(outcome, Reported)]
        try:
            async with asyncio.timeout(self._timeout):
                while waiting:
                    waiting = await self._deliver(written, waiting)
                # Later events of the envelope may be there already: a watermark claims only what came before it.
                if reports:
                    await self._report(reports)
        except TimeoutError:
            raise UnavailableError("Kafka did not acknowledge the events in time: send them again.") from None
        return written

    async def _deliver(self, written: list[Outcome], waiting: list[int]) -> list[int]:
        """Send what waits, in order; return what must be sent again, because a neighbour was too large."""
        async with self._using() as client:
            sent = [(at, await self._send(client, written, at)) for at in waiting]
            await asyncio.wait([future for _, future in sent])
        failed = [(at, problem) for at, future in sent if (problem := future.exception()) is not None]
        if not failed:
            return []
        self._discard(client)
        too_large = [at for at, problem in failed if isinstance(problem, MessageSizeTooLargeError)]
        if not too_large:
            raise UnavailableError(f"Kafka does not take the events: {failed[0][1]!r}.") from failed[0][1]
        for at in too_large:
            written[at] = _as_oversized(written[at])
        return [at for at, _ in failed]

    async def _report(self, reports: Sequence[RegistryWatermark]) -> None:
        """Write each to every partition of both topics."""
        async with self._using() as client:
            partitions = await _partitions(client)
            sent = [
                _expected(await client.send(topic, value, key=key, partition=number, headers=headers(report)))
                for report in reports
                for topic, number, key, value in _copies(report, partitions)
            ]
            await asyncio.wait(sent)
        if problem := next((problem for future in sent if (problem := future.exception()) is not None), None):
            self._discard(client)
            raise UnavailableError(f"Kafka does not take the watermark: {problem!r}.") from problem

    @contextlib.asynccontextmanager
    async def _using(self) -> AsyncIterator[_Client]:
        """Give a client; one that fails, or whose work is given up, is thrown away."""
        client = await self._any_client()
        try:
            yield client
        except KafkaError as error:
            self._discard(client)
            raise UnavailableError(f"Kafka does not take the events: {error!r}.") from error
        except (asyncio.CancelledError, UnavailableError):
            self._discard(client)
            raise

    async def _send(self, client: _Client, written: list[Outcome], at: int) -> asyncio.Future[object]:
        while True:
            try:
                return _expected(await _hand_over(client, written[at]))
            except MessageSizeTooLargeError:
                # Ends: it is shorter each time, and then raises.
                written[at] = _as_oversized(written[at])

    async def _any_client(self) -> _Client:
        while self._client is None:
            await self._connected.wait()
        return self._client

    async def _connect(self) -> None:
        pause = FIRST_PAUSE
        while True:
            client = _Client(
                **self._arguments,
                acks="all",
                enable_idempotence=True,
                linger_ms=0,
                partitioner=_partitioner,
                max_batch_size=BATCH_BYTES,
                max_request_size=largest_event(self._settings),
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

    def _discard(self, client: _Client, *, reconnect: bool = True) -> None:
        """Give up a client with all that it holds, once, and connect another."""
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


async def _hand_over(client: _Client, outcome: Outcome) -> asyncio.Future[object]:
    """Put one record into the client's buffer, waiting for a place in it."""
    topic: str
    record: Record
    match outcome:
        case Accepted(event):
            topic, record, key = EVENTS, event, key_of(event)
        case DeadLettered(letter):
            topic, record, key = DEAD_LETTERS, letter, letter.pod.encode()
        case Reported() | Dropped():  # pragma: no cover
            raise AssertionError("What is reported is published in another way, and what is dropped is not.")
    _check_topic(client, topic)
    future: asyncio.Future[object] = await client.send(topic, _encoder.encode(record), key=key, headers=headers(record))
    return future


def _copies(report: RegistryWatermark, partitions: _Partitions) -> Iterable[tuple[str, int, bytes | None, bytes]]:
    """Topic, partition, key and value of each copy of a watermark; each copy says where the others count.

    A pod's dead letters are in one partition, and in another one once there are more: those that it had are told of,
    too, so that the watermark there does not stand still.
    """
    key = report.pod.encode()
    letters: int = _partitioner(key, partitions.letters, partitions.letters)
    value = _encoder.encode(
        msgspec.structs.replace(report, partitions=len(partitions.events), letters_partition=letters)
    )
    for number in partitions.letters:
        yield DEAD_LETTERS, number, key, value
    for number in partitions.events:
        yield EVENTS, number, None, value


def _expected(future: asyncio.Future[object]) -> asyncio.Future[object]:
    """A failure that nobody waits for any longer is no surprise."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _as_oversized(outcome: Outcome) -> Outcome:
    """What Kafka is set up to refuse must not come back for ever, and must not be forgotten."""
    match outcome:
        case Accepted(event, hold) if event.references is not None:
            # They make it large, and are read from the manifest's bytes instead.
            return Accepted(msgspec.structs.replace(event, references=None), hold)
        case Accepted(event):
            origin = Origin(event.pod, (), dt.datetime.now(dt.UTC), RECORD_CONTENT_TYPE)
            detail = "Kafka takes no record as large as this event: mend it as `baleen topics create` says."
            sent = _encoder.encode(event)
            return DeadLettered(dead_letter(origin, "oversized", detail, sent, about=repositories_in(sent)))
        case DeadLettered(letter) if len(letter.payload) > SHORT_PAYLOAD:
            return DeadLettered(msgspec.structs.replace(letter, payload=letter.payload[:SHORT_PAYLOAD]))
        case _:
            raise UnavailableError("Kafka takes only tiny records: mend it as `baleen topics create` says.")


async def _check_topics(client: _Client) -> None:
    # The client then asks for all topics that there are; asking for one by its name would make it.
    await client.client.set_topics(())
    for topic in _TOPICS:
        _check_topic(client, topic)


async def _partitions(client: _Client) -> _Partitions:
    """Ask the brokers which partitions there are now: what the client knows may be minutes old."""
    now = _partitions_in(await client.client.fetch_all_metadata())
    if _partitions_in(client.client.cluster) != now:
        await client.client.force_metadata_update()
    if _partitions_in(client.client.cluster) != now or not all(now):
        raise UnavailableError("Kafka's topics are being changed: send the events again.")
    return now


def _partitions_in(cluster: ClusterMetadata) -> _Partitions:
    events, letters = (cluster.partitions_for_topic(topic) or () for topic in _TOPICS)
    return _Partitions(sorted(events), sorted(letters))


def _check_topic(client: _Client, topic: str) -> None:
    if client.client.cluster.partitions_for_topic(topic) is None:
        raise UnavailableError(f"Kafka has no topic {topic}: create it with `baleen topics create`.")
