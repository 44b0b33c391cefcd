"""Faust's consumer for Baleen: reads chunks instead of single records, and starts at the database's offsets.

It overrides these methods of Faust's Consumer:
- `getmany` yields fetched records one by one, and each record then costs Faust's drain loop, conductor and
  channel about a dozen event loop callbacks. Here one message carries all records that a fetch brought for a
  partition, so that this price is paid once per fetch. Order within a partition is the order of the list.
- `seek_to_committed` sets the positions after each rebalance. The valid offset is in the transaction
  that applied the records, so positions come from the database (workers/position.py), not from the group.
- `_new_consumer_thread` makes the thread in which aiokafka fetches: only committed records, and at most one fetch per
  broker every 100 ms. Many fetches of a few records cost more than applying them, and a broker that answers an empty
  fetch at once (the embedded one does) would be asked a thousand times a second.

A broker that was restarted may have lost its log's tail and given the same offsets to other records. So the first
fetch over a new connection begins one record earlier: that record was applied, and what begins before the
database's offset is compared with the log (processor.py) before it is cut off.

Not here: what is done with a chunk (processor.py).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, cast

from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.errors import IllegalStateError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import Transport as FaustTransport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

#: The shortest time between fetches from one broker. Many fetches of a few records cost more than applying them, and a
#: small batch writes counts of popular blobs that the next one writes again: at half the maximum load 25, 50 and 150 ms
#: all gave a later 99th percentile. Apache Kafka parks a fetch until a record comes, so a single event does not wait.
FETCH_EVERY_S = 0.1
#: How long a broker may hold a fetch that finds nothing. Such a fetch may cover only partitions that are at their end,
#: and aiokafka sends that broker no other until it is answered: Faust's 1.5 s stalled every backlog.
FETCH_HELD_MS = 100


class PositionedApp(Protocol):
    """What the consumer needs from its app."""

    async def positions(self, tps: set[TP]) -> Mapping[TP, int]:
        """Return the offset at which each partition of an assignment continues."""
        ...


class FetchThread(AIOKafkaConsumerThread):
    """Faust's consumer thread, which reads only committed records and pauses after an empty fetch."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust ties this to its own transactions. A pod that produces in transactions may abort one: an aborted
        # delete must not remove anything.
        consumer._isolation_level = "read_committed"  # noqa: SLF001
        consumer._fetch_max_wait_ms = FETCH_HELD_MS  # noqa: SLF001
        return consumer

    async def on_start(self) -> None:
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher  # noqa: SLF001
        fetch = fetcher._proc_fetch_request  # noqa: SLF001

        asked: dict[int, float] = {}

        async def send_paced(assignment: Any, node: int, request: Any) -> bool:
            pause = asked.get(node, 0.0) + FETCH_EVERY_S - time.monotonic()
            if pause > 0:
                try:
                    await asyncio.sleep(pause)
                except asyncio.CancelledError:
                    # The fetcher cancels requests that it no longer waits for, and expects no error from them.
                    return False
            asked[node] = time.monotonic()
            return bool(await fetch(assignment, node, request))

        fetcher._proc_fetch_request = send_paced  # noqa: SLF001


class ChunkConsumer(FaustConsumer):
    """Faust's consumer, with one message per fetched partition: its value is the list of records."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: The connection over which the log was last verified to be the applied one.
        self._read_over: dict[TP, object] = {}

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return FetchThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        if not self.flow_active:
            # A rebalance began; it seeks again before anything is read.
            await self.perform_seek()
            return
        for tp, chunk in records.items():
            # The rest of this fetch is read again from the database's offsets.
            if not self.flow_active or self.app.consumer_generation_id != generation:
                break
            if chunk and (active is None or tp in active or tp in self._buffered_partitions):
                if await self._seek_back_if_reconnected(tp, chunk[0].offset):
                    continue
                # Faust drops records that it considers read. The database's offset decides (processor.py).
                self._read_offset[tp] = None
                yield tp, self._make_message(tp, chunk)

    def _make_message(self, tp: TP, records: list[Any]) -> ConsumerMessage:
        last = records[-1]
        return ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            None,
            None,
            cast(Any, records),
            None,
            -1,
            -1,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def seek_to_committed(self) -> Mapping[TP, int]:
        app = cast(PositionedApp, self.app)
        assigned = set(self.assignment())
        over = {tp: self._find_connection(tp) for tp in assigned}
        positions = await app.positions(assigned)
        self._read_over = over
        for tp, offset in positions.items():
            await self.seek_applied(tp, offset)
        return positions

    async def seek_applied(self, tp: TP, offset: int) -> None:
        """Continue at an offset; records that were fetched already are read again."""
        # Faust's own seek works on the consumer from outside its thread's loop.
        await self._thread.call_thread(self._seek_in_thread, TopicPartition(tp.topic, tp.partition), offset)
        self._read_offset[tp] = offset or None

    async def read_position(self, tp: TP, within: float) -> int | None:
        """Return the offset that is fetched next; None if the client does not answer within so many seconds.

        A partition may have been revoked meanwhile. Must not raise: the caller is a timer, and its error ends the app.
        """
        try:
            async with asyncio.timeout(within):
                return await self.position(tp)
        except (TimeoutError, IllegalStateError):
            return None

    async def _seek_in_thread(self, tp: TopicPartition, offset: int) -> None:
        # A partition that was revoked meanwhile is read by another worker.
        with contextlib.suppress(IllegalStateError):
            self._thread._ensure_consumer().seek(tp, offset)  # noqa: SLF001

    async def _seek_back_if_reconnected(self, tp: TP, offset: int) -> bool:
        """Seek back by one record if this fetch may be the first over a new connection."""
        connection = self._find_connection(tp)
        if connection is None or connection is self._read_over.get(tp):
            return False
        self._read_over[tp] = connection
        if offset == 0:
            return False
        await self.seek_applied(tp, offset - 1)
        return True

    def _find_connection(self, tp: TP) -> object | None:
        client = self._thread._ensure_consumer()._client  # noqa: SLF001
        leader = client.cluster.leader_for_partition(TopicPartition(tp.topic, tp.partition))
        return cast("object | None", client._conns.get((leader, ConnectionGroup.DEFAULT)))  # noqa: SLF001


class Transport(FaustTransport):
    Consumer = ChunkConsumer
