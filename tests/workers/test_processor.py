"""The processor alone, given chunks as they may come: overlapping, repeated, out of order, and in bulk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from coordinator.kafka.topics import EVENTS
from tests.oracle import Oracle
from tests.workers.harness import DEADLINE, Log, Maker, Place, Table, assert_all_applied, digest_of
from workers import build as building
from workers.interpret import Chunk
from workers.position import Partition

PARTITION = (EVENTS, 0)


def process(place: Place, chunks: Sequence[Chunk]) -> list[tuple[Partition, int]]:
    """Give chunks to a processor; return where it sought to."""
    sought: list[tuple[Partition, int]] = []
    worker = building.make_worker(place.settings())

    async def seek(partition: Partition, offset: int) -> None:
        sought.append((partition, offset))

    async def main() -> None:
        worker.processor.seek = seek
        pump = asyncio.create_task(worker.processor.run())
        for chunk in chunks:
            await worker.processor.submit(chunk)
        async with asyncio.timeout(DEADLINE):
            while not worker.processor.is_idle and not pump.done():  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pump

    try:
        asyncio.run(main())
    finally:
        worker.close()
    return sought


@pytest.fixture
def maker(log: Log) -> Maker:
    """Has written twelve events to one partition."""
    maker = Maker()
    log.write_events([maker.blob("pod-a/app", digest_of(f"layer {number}")) for number in range(12)], partition=0)
    return maker


@pytest.fixture
def records(log: Log, maker: Maker) -> Sequence[Any]:
    return log.read(EVENTS, 0, len(maker.made))


def chunk(records: Sequence[Any], start: int, end: int) -> Chunk:
    return Chunk(EVENTS, 0, records[start:end])


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 5), (3, 9), (0, 2), (8, 12)],
        [(0, 12), (0, 12)],
        [(0, 4), (0, 4), (4, 8), (2, 12)],
        [(number, min(number + 3, 12)) for number in range(12)],
    ],
)
def test_overlapping_chunks(
    place: Place, table: Table, maker: Maker, records: Sequence[Any], pieces: list[tuple[int, int]]
) -> None:
    """Chunks that overlap what is applied lose exactly that part, and nothing is read again."""
    assert process(place, [chunk(records, *piece) for piece in pieces]) == []
    assert_all_applied(table, maker)
    assert table.progress()[PARTITION] == 12


def test_chunks_behind_a_hole(place: Place, table: Table, maker: Maker, records: Sequence[Any]) -> None:
    """A chunk behind a hole is dropped, and the partition is sought back to the first missing record."""
    sought = process(place, [chunk(records, 0, 3), chunk(records, 6, 9), chunk(records, 9, 12)])
    assert set(sought) == {(PARTITION, 3)}
    assert table.counts() == Oracle().take(maker.made[:3]).counts()
    assert table.progress()[PARTITION] == 3
    assert table.gaps() == []
