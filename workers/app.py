"""The Faust app: one agent submits chunks to the processor; timers run what no event triggers (housekeeping.py).

Not here: how Faust reads (transport.py), how a chunk is applied (processor.py).
"""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import faust
import structlog
from faust.auth import Credentials
from faust.types import TP, StreamT

from coordinator.errors import BaleenError, UnavailableError
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from workers import metrics
from workers.housekeeping import Housekeeping
from workers.interpret import Chunk
from workers.position import Partition, Positions
from workers.processor import Processor
from workers.transport import ChunkConsumer, Transport

log = structlog.get_logger()

#: How long a worker may be silent before its partitions move.
SESSION_TIMEOUT_S = 10.0
#: A topic that was created again, or has more partitions, is noticed after this. Until then nothing reads it.
METADATA_EVERY_S = 10.0
#: Seconds between runs of work that no event triggers.
POSITIONS_EVERY_S = 30.0
RESOLVE_EVERY_S = 60.0
RETRY_S = 1.0
SWEEP_EVERY_S = 60.0
#: GC is blocked while links are to be kept for a manifest. A run without work reads two empty indexes.
KEEP_EVERY_S = 5.0
#: A hidden blob that is needed again is restored within seconds. A run without work reads one empty index.
RESTORE_EVERY_S = 0.5


#: Bytes of one fetch of a partition: some thousand events, or one record of any size. Memory holds about twenty.
FETCH_BYTES = 4 * 1024 * 1024


class ReferenceApp(faust.App):
    """Faust's app, which gives its consumer the positions (transport.py)."""

    def __init__(self, *args: Any, positions: Positions, processor: Processor, **options: Any) -> None:
        super().__init__(*args, **options)
        self._positions = positions
        self._processor = processor
        #: The position of each assigned partition at the last check.
        self._stood: dict[Partition, int] = {}

    def _create_directories(self) -> None:
        """Do nothing: Faust would make directories for tables, and Baleen has none."""

    async def positions(self, tps: set[TP]) -> Mapping[TP, int]:
        wanted = sorted((tp.topic, tp.partition) for tp in tps)
        metrics.PARTITIONS.set(len(wanted))
        # Without positions nothing may be read. Faust's time limit for this call is that of one request to the broker.
        while True:
            try:
                found = await asyncio.to_thread(self._positions.find_offsets, wanted)
                break
            except UnavailableError as error:
                log.warning("waiting for positions", reason=str(error))
                await asyncio.sleep(RETRY_S)
        self._stood = found
        return {TP(topic, partition): offset for (topic, partition), offset in found.items()}

    async def seek(self, partition: Partition, offset: int) -> None:
        tp = TP(*partition)
        if tp in self.consumer.assignment():
            await cast(ChunkConsumer, self.consumer).seek_applied(tp, offset)

    async def check_positions(self) -> None:
        """Detect a log that was replaced while it was being read, and a partition that is read at a wrong offset."""
        idle = self._processor.is_idle
        try:
            found = await asyncio.to_thread(self._positions.find_offsets, list(self._stood))
        except BaleenError as error:
            log.warning("positions cannot be checked", reason=str(error))
            return
        for partition, offset in list(found.items()):
            moved = offset < self._stood.get(partition, 0) or (idle and self._processor.is_idle)
            if moved and not await self._read_from(partition, offset):
                # Keep the last position for the next check.
                log.warning("a partition cannot be checked yet", topic=partition[0], partition=partition[1])
                del found[partition]
        self._stood = {partition: found.get(partition, stood) for partition, stood in self._stood.items()}

    async def _read_from(self, partition: Partition, offset: int) -> bool:
        """Seek if the partition is read at another offset, so that chunks lost inside Faust are read again.

        False if the client does not say which offset it reads.
        """
        tp = TP(*partition)
        if tp not in self.consumer.assignment():
            return True
        at = await cast(ChunkConsumer, self.consumer).read_position(tp, RETRY_S)
        if at is not None and at != offset:
            await self.seek(partition, offset)
        return at is not None


def make_app(
    brokers: list[str],
    processor: Processor,
    positions: Positions,
    housekeeping: Housekeeping,
    *,
    credentials: Credentials | None = None,
    group: str,
    fetch_records: int,
) -> ReferenceApp:
    """Make the app. Kafka keeps only the group's membership: offsets and state are in the database."""
    app = ReferenceApp(
        group,
        positions=positions,
        processor=processor,
        broker=";".join(f"kafka://{broker}" for broker in brokers),
        broker_credentials=credentials,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=SESSION_TIMEOUT_S / 4,
        broker_request_timeout=30.0,
        broker_max_poll_records=fetch_records,
        consumer_max_fetch_size=FETCH_BYTES,
        consumer_metadata_max_age_ms=round(METADATA_EVERY_S * 1000),
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=8,
        stream_wait_empty=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        store="memory://",
        autodiscover=False,
    )
    app.transport = Transport(app.conf.broker_consumer, app)
    processor.seek = app.seek
    # Progress is in the database, so nothing is acknowledged to Kafka.
    channel = app.topic(EVENTS, DEAD_LETTERS, value_serializer="raw", key_serializer="raw", acks=False)

    @app.agent(channel, name="references")
    async def references(stream: StreamT[list[Any]]) -> None:
        async for records in stream:
            await processor.submit(Chunk(records[0].topic, records[0].partition, records))

    _ = references
    app.timer(POSITIONS_EVERY_S)(app.check_positions)
    app.timer(RESOLVE_EVERY_S, on_leader=False)(housekeeping.resolve)
    app.timer(KEEP_EVERY_S, on_leader=False)(housekeeping.keep_links)
    app.timer(SWEEP_EVERY_S, on_leader=False)(housekeeping.sweep)
    app.timer(RESTORE_EVERY_S, on_leader=False)(housekeeping.restore)
    return app
