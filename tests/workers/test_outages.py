"""Services that go away in the middle, and workers that are killed: everything is applied once, in the end."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import IllegalStateError

from coordinator.kafka.topics import EVENTS
from tests.support.wait import eventually
from tests.workers.harness import (
    Child,
    InProcess,
    Log,
    Maker,
    Place,
    Table,
    assert_all_applied,
    digest_of,
    encoded,
    worker,
)
from tests.workers.services import Broker, Database

#: These stop, kill and start services, which takes its time.
pytestmark = pytest.mark.outage


def blobs(maker: Maker, name: str, count: int) -> list[bytes]:
    return [
        encoded(maker.blob(f"pod-a/{name.replace(' ', '-')}-{number % 7}", digest_of(f"{name} {number}")))
        for number in range(count)
    ]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_database_that_goes_away(place: Place, log: Log, maker: Maker, database: Database, how: str) -> None:
    """Events that come while the database is stopped or killed are applied when it is back."""
    table = Table(database.url)
    with worker(place.but(database_url=database.url)):
        log.write(EVENTS, blobs(maker, "before", 50))
        table.applied(log)
        log.write(EVENTS, blobs(maker, "under way", 2000))
        getattr(database, how)()
        log.write(EVENTS, blobs(maker, "away", 50))
        database.start()
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.gaps() == []


def test_a_worker_may_start_before_its_database(place: Place, log: Log, maker: Maker, database: Database) -> None:
    """Partitions that are assigned while the database is away are read from its position once it is back."""
    table = Table(database.url)
    log.write(EVENTS, blobs(maker, "early", 50))
    database.stop()
    with worker(place.but(database_url=database.url)) as running:
        eventually(lambda: running.worker.app.rebalancing_count > 0, why="an assignment")
        database.start()
        table.applied(log)
    assert_all_applied(table, maker)


@pytest.mark.parametrize("away", ["nothing", "both"])
def test_a_worker_ends_when_stopped_whatever_is_away(
    place: Place, log: Log, maker: Maker, database: Database, broker: Broker, tmp_path: Path, away: str
) -> None:
    """SIGTERM ends a worker with 0 within seconds, even in the middle of work that cannot be finished."""
    table = Table(database.url)
    with Child(place.but(database_url=database.url), tmp_path / "worker.log") as child:
        log.write(EVENTS, blobs(maker, "before", 20))
        table.applied(log, alive=lambda: child.status is None)
        if away == "both":
            database.stop()
            log.write(EVENTS, blobs(maker, "more", 500))
            broker.kill()
        child.send(signal.SIGTERM)
        assert child.wait() == 0, child.log()


def test_a_store_that_is_away(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """A doubtful delete stays doubtful while storage does not answer; later events are applied."""
    place = place.but(safety_clock_skew="5m", s3_endpoint_url="http://127.0.0.1:9")
    with worker(place):
        log.write_events([maker.blob("pod-a/app", digest_of("kept"))], partition=0)
        log.write_events([Maker(clock=maker.clock).delete("pod-a/app", digest_of("kept"))], partition=0)
        table.applied(log)
        log.write_events([maker.blob("pod-a/app", digest_of("later"))], partition=0)
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.rows("SELECT count(*) FROM removals WHERE doubtful_since IS NOT NULL") == [(1,)]


def test_what_was_lost_on_the_way_is_read_again(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """Records that never reached the processor are found by the next check, and by the partition's next record."""
    with worker(place) as running:
        log.write(EVENTS, blobs(maker, "first", 5), partition=0)
        table.applied(log)
        skip(running, 7)
        log.write(EVENTS, blobs(maker, "second", 2), partition=0)
        log.write(EVENTS, blobs(maker, "third", 2), partition=0)
        table.applied(log)  # the third shows that the second is missing
        skip(running, 11)
        log.write(EVENTS, blobs(maker, "fourth", 2), partition=0)
        running.do(running.worker.app.check_positions)
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.gaps() == []


async def never() -> int:
    return await asyncio.Event().wait()


async def not_assigned() -> int:
    raise IllegalStateError("the partition is another worker's since a moment ago")


@pytest.mark.parametrize("answer", [never, not_assigned])
def test_a_check_of_where_a_partition_is_read_that_comes_to_nothing(
    place: Place, table: Table, log: Log, maker: Maker, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any]
) -> None:
    """If the client does not know its position, the check is left to the next one, and the worker goes on."""
    with worker(place) as running:
        log.write(EVENTS, blobs(maker, "first", 2), partition=0)
        table.applied(log)
        monkeypatch.setattr(running.worker.app.consumer, "position", lambda tp: answer())
        running.do(running.worker.app.check_positions)
        log.write(EVENTS, blobs(maker, "second", 2), partition=0)
        table.applied(log)
    assert_all_applied(table, maker)


def skip(running: InProcess, offset: int) -> None:
    """Let Faust continue at an offset, as if the records before it had been dropped."""
    consumer = running.worker.app.consumer
    (tp,) = (tp for tp in consumer.assignment() if tp == (EVENTS, 0))
    running.do(lambda: consumer.seek_applied(tp, offset))  # type: ignore[attr-defined]


def test_a_worker_that_is_killed(place: Place, table: Table, log: Log, maker: Maker, tmp_path: Path) -> None:
    """After SIGKILL at any moment the next worker continues where the database stands."""
    chance = random.Random(20261124)
    for attempt in range(2):
        # The embedded broker never forgets a member that was killed: each start is a group of its own.
        named = place.but(worker_group=f"attempt-{attempt}", worker_batch="20")
        with Child(named, tmp_path / "worker.log") as child:
            started = sum(table.progress().values())
            log.write(EVENTS, blobs(maker, f"attempt {attempt}", 600))
            eventually(lambda: sum(table.progress().values()) > started, why="a first batch")  # noqa: B023
            time.sleep(chance.random() * 0.2)
            child.kill()
    with worker(place.but(worker_group="last")):
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.gaps() == []


def test_a_worker_leaves_nothing_where_it_was_started(
    place: Place, table: Table, log: Log, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker writes nothing to its directory: all state is in the database."""
    monkeypatch.chdir(tmp_path)
    with worker(place):
        log.write(EVENTS, blobs(maker, "some", 3))
        table.applied(log)
    assert list(tmp_path.iterdir()) == []
