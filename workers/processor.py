"""The reference processor: takes chunks, applies them in batches, and retries when a service is away.

Route: app.py's agent -> `submit` -> one pump: gather waiting chunks -> decode while the previous batch is being
applied -> read manifests whose event lists nothing -> `BatchApplier` -> manifests about which reports differ, children
of new indexes, new doubtful removals. All off the event loop.

What interrupts a batch, and the reaction:
- the database or the store is away: the batch waits, and is retried for as long as this worker owns the partitions;
- a slice does not begin at its partition's position: the position is read again (position.py), applied records are
  cut off, and records after a gap are read again from the right offset;
- a record cannot be applied: the batch is split, and the one record becomes a dead letter.

Invariant: a chunk is either applied whole, or its partition is sought back to its first record that was not applied.
Not here: Faust (app.py, transport.py), the meaning of records (interpret.py).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import psycopg
import structlog

from coordinator.db.connection import Connections
from coordinator.db.errors import BEYOND_LIMITS
from coordinator.errors import BaleenError, UnavailableError
from coordinator.kafka.log import fingerprint_of
from coordinator.pods import directory
from coordinator.reconcile.link_keeper import LinkKeeper
from coordinator.reconcile.linked_manifests import ChildAdder
from coordinator.reconcile.resolve import Resolver
from coordinator.storage import manifests
from coordinator.storage.port import ObjectStore
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import ApplyResult, DeadLetterLimits, OutOfStepError, Slice
from coordinator.table.echoes import KnownProcesses
from workers import contents, metrics
from workers.interpret import Chunk, Interpreter, make_dead_letter, pod_of
from workers.position import Partition, Positions

log = structlog.get_logger()

T = TypeVar("T")

#: Bytes of records that wait to be applied, over all partitions; beyond it Faust's buffers fill and fetching pauses.
#: Counted in bytes and not in chunks, because Faust, once all its buffers are full, looks again only after a second:
#: a worker that keeps up with many small chunks must not reach that state.
WAITING_BYTES_LIMIT = 32 * 1024 * 1024
#: Manifests that are read from storage at once.
READS_AT_ONCE = 16
RETRY_FIRST_S, RETRY_LONGEST_S = 0.1, 5.0

#: Errors of a record itself: a retry would fail forever, and block all later records.
POISON = (
    psycopg.DataError,
    psycopg.IntegrityError,
    *BEYOND_LIMITS,
    BaleenError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

#: Continues to read a partition at an offset.
Seek = Callable[[Partition, int], Awaitable[None]]


class Batch(NamedTuple):
    """Chunks with their decoded slices, one for each."""

    chunks: Sequence[Chunk]
    slices: Sequence[Slice]


class Processor:
    """One per worker process. Chunks of one partition are applied in the order of `submit`."""

    def __init__(
        self,
        connections: Connections,
        store: ObjectStore,
        positions: Positions,
        resolver: Resolver,
        link_keeper: LinkKeeper,
        child_adder: ChildAdder,
        *,
        margin: timedelta,
        request_bound: timedelta,
        batch_records: int,
        limits: DeadLetterLimits | None = None,
    ) -> None:
        self._connections = connections
        self._store = store
        self._positions = positions
        self._margin = margin
        self._request_bound = request_bound
        self._batch_records = batch_records
        self._limits = limits
        self._resolver = resolver
        self._link_keeper = link_keeper
        self._child_adder = child_adder
        self._queue: asyncio.Queue[Chunk] = asyncio.Queue()
        #: Already taken from the queue, for the next batch.
        self._held: Chunk | None = None
        #: Bytes of submitted records that are not finished.
        self._waiting = 0
        self._room = asyncio.Condition()
        #: One thread decodes, one applies: a batch is decoded while the one before it is applied.
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._reading = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="read")
        self._applying = ThreadPoolExecutor(1, thread_name_prefix="apply")
        self.seek: Seek | None = None
        #: Registry processes that the table has; used by the one thread that applies.
        self._processes = KnownProcesses()

    async def submit(self, chunk: Chunk) -> None:
        """Take a chunk; waits while too many bytes wait already."""
        async with self._room:
            await self._room.wait_for(lambda: self._waiting < WAITING_BYTES_LIMIT)
            self._waiting += _chunk_bytes(chunk)
        self._queue.put_nowait(chunk)

    @property
    def is_idle(self) -> bool:
        """Whether everything that was submitted is finished."""
        return self._waiting == 0

    async def run(self) -> None:
        """Apply submitted chunks until cancelled. Raises errors that a retry cannot resolve: the process then ends."""
        # One decoded batch may wait while another is applied: more would only use memory.
        decoded: asyncio.Queue[Batch] = asyncio.Queue(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._decode_all(decoded))
            group.create_task(self._apply_all(decoded))

    async def _decode_all(self, decoded: asyncio.Queue[Batch]) -> None:
        while True:
            chunks = await self._gather_chunks()
            slices = await self._run_with_retries(self._decoding, self._decode_chunks, chunks)
            await decoded.put(Batch(chunks, slices))

    async def _apply_all(self, decoded: asyncio.Queue[Batch]) -> None:
        while True:
            batch = await decoded.get()
            await self._apply_batch(batch)
            async with self._room:
                self._waiting -= sum(_chunk_bytes(chunk) for chunk in batch.chunks)
                self._room.notify_all()

    def close(self) -> None:
        for pool in (self._decoding, self._reading, self._applying):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _gather_chunks(self) -> list[Chunk]:
        """Wait for a chunk and join the other waiting chunks, so that each partition's records are contiguous."""
        first = self._held or await self._queue.get()
        self._held = None
        gathered: dict[Partition, Chunk] = {(first.topic, first.partition): first}
        records = len(first.records)
        while records < self._batch_records and not self._queue.empty():
            chunk = self._queue.get_nowait()
            known = gathered.get((chunk.topic, chunk.partition))
            if known is not None:
                if chunk.records[0].offset != known.records[-1].offset + 1:
                    # Not contiguous: the partition was sought elsewhere in between.
                    self._held = chunk
                    break
                chunk = chunk._replace(records=[*known.records, *chunk.records])
                records -= len(known.records)
            gathered[chunk.topic, chunk.partition] = chunk
            records += len(chunk.records)
        return list(gathered.values())

    def _decode_chunks(self, chunks: Sequence[Chunk]) -> list[Slice]:
        with self._connections.use() as connection:
            pods = directory.read_directory(connection)
        interpreter = Interpreter(pods)
        slices = [interpreter.interpret(chunk) for chunk in chunks]
        with self._connections.use() as connection:
            if unread := directory.find_unread_manifests(connection, contents.find_with_references(slices)):
                slices = contents.drop_unread(slices, unread)
            unlisted = contents.find_without_references(slices)
            if not unlisted:
                return slices
            wanted = unlisted - directory.find_verified_manifests(connection, unlisted)
        bodies = self._reading.map(lambda digest: manifests.read_stored_manifest(self._store, digest), wanted)
        found = dict(zip(wanted, bodies, strict=True))
        return [contents.fill_references(piece, found) for piece in slices]

    async def _apply_batch(self, batch: Batch) -> None:
        waiting = list(batch.slices)
        while waiting:
            try:
                applied = await self._run_with_retries(self._applying, self._apply_once, waiting)
            except OutOfStepError as error:
                waiting.remove(error.piece)
                if (rest := await self._realign(error)) is not None:
                    waiting.append(rest)
            except POISON as error:
                await self._apply_one_by_one(batch.chunks, waiting, error)
                return
            else:
                metrics.count_applied(applied)
                if applied.disputed:
                    reports = contents.find_reports(waiting, applied.disputed)
                    await self._do_if_storage_answers(self._link_keeper.read_disputed, applied.disputed, reports)
                if indexes := contents.find_indexes(waiting):
                    await self._do_if_storage_answers(self._child_adder.add_children, indexes)
                if applied.removals_doubtful:
                    await self._do_if_storage_answers(self._resolver.resolve_new)
                return

    async def _do_if_storage_answers(self, work: Callable[..., object], *arguments: Any) -> None:
        """Do the work if storage answers, else skip it, since a reconcile does it too: nothing waits for it.

        Doubtful removals are kept until they are resolved; blobs that this work skips are not purged before a
        reconcile.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._applying, work, *arguments)
        except BaleenError as error:
            log.warning("storage does not answer, skipped for now", reason=str(error))

    def _apply_once(self, slices: Sequence[Slice]) -> ApplyResult:
        with self._connections.use() as connection:
            return BatchApplier(connection, self._margin, self._processes, self._request_bound, self._limits).apply(
                slices
            )

    async def _realign(self, error: OutOfStepError) -> Slice | None:
        """Return the part of a slice that is not applied yet; None if the slice is to be read again."""
        piece = error.piece
        partition = (piece.topic, piece.partition)
        positions = await self._run_with_retries(self._applying, self._positions.find_offsets, [partition])
        stands = positions[partition]
        if piece.first_offset < stands == error.expected:
            return _drop_applied(piece, stands)
        if piece.first_offset == stands:
            return piece
        if stands < piece.first_offset and await self._run_with_retries(
            self._applying, self._positions.has_none_between, partition, stands, piece.first_offset
        ):
            return piece._replace(first_offset=stands)
        log.info("seek", topic=piece.topic, partition=piece.partition, offset=stands, came=piece.first_offset)
        if self.seek is not None:
            await self.seek(partition, stands)
        return None

    async def _apply_one_by_one(self, chunks: Sequence[Chunk], slices: Sequence[Slice], error: Exception) -> None:
        """Apply record by record; the one that cannot be applied becomes a dead letter."""
        log.warning("a record cannot be applied", error=_format_error(error))
        by_partition = {(chunk.topic, chunk.partition): chunk for chunk in chunks}
        for piece in slices:
            chunk = by_partition[piece.topic, piece.partition]
            records = {record.offset: record for record in chunk.records}
            for single in _split_records(piece, chunk):
                try:
                    await self._apply_single(single)
                except POISON as refused:
                    (item,) = single.items
                    record = records[item.offset]
                    substitute = make_dead_letter(record, pod_of(record), "unappliable", _format_error(refused))
                    instead = single._replace(items=[item._replace(fact=None, dead_letter=substitute, echo=None)])
                    await self._apply_single(instead)

    async def _apply_single(self, single: Slice) -> None:
        left: Slice | None = single
        while left is not None:
            try:
                metrics.count_applied(await self._run_with_retries(self._applying, self._apply_once, [left]))
            except OutOfStepError as error:
                left = await self._realign(error)
            else:
                return

    async def _run_with_retries(self, pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        """Do work in a thread; retry while a service is away."""
        pause = RETRY_FIRST_S
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
            except UnavailableError as error:
                metrics.RETRIES.inc()
                log.warning("waiting for a service", reason=str(error), again_in_s=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_LONGEST_S)


def _chunk_bytes(chunk: Chunk) -> int:
    """Bytes that a chunk holds; a record without a value still counts."""
    return sum(1 + len(record.value or b"") for record in chunk.records)


def _format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:500]


def _drop_applied(piece: Slice, offset: int) -> Slice | None:
    """Cut off the applied records; None if nothing is left."""
    if offset >= piece.next_offset:
        return None
    items = [item for item in piece.items if item.offset >= offset]
    return piece._replace(first_offset=offset, items=items)


def _split_records(piece: Slice, chunk: Chunk) -> list[Slice]:
    """One slice per record of the piece; together they cover the same offsets."""
    records = {record.offset: record for record in chunk.records}
    singles: list[Slice] = []
    first = piece.first_offset
    for item in piece.items:
        record = records[item.offset]
        mark = fingerprint_of(record.timestamp, record.key, record.value)
        singles.append(piece._replace(first_offset=first, next_offset=item.offset + 1, fingerprint=mark, items=[item]))
        first = item.offset + 1
    return singles
