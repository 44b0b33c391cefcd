"""Everything at once on Apache Kafka: workers, database and broker are killed, paused and restarted under load.

CHAOS_SEED gives the seed of a run that is to be repeated; without it each run has another, and prints it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.audit.check import check_counts
from coordinator.db import migrate
from coordinator.db.engine import temporary_engine
from coordinator.errors import UnavailableError
from coordinator.ingest.normalise import Accepted
from coordinator.kafka.producer import EventProducer
from coordinator.kafka.topics import ensure_topics
from coordinator.stack.guard import Guard
from schemas.records import RegistryEvent
from tests.chaos.history import history
from tests.conftest import guarded_kafka, temporary_directory
from tests.oracle import Oracle
from tests.services.apache_kafka import ApacheKafka
from tests.support.wait import eventually
from tests.workers.harness import DEADLINE, Child, Log, Place, Table, shares
from tests.workers.services import Database

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

EVENTS = 24_000
WORKERS = 2
#: Events that are published together: a failure repeats all of them, as registries would.
TOGETHER = 50
#: Over this time the events are spread; disturbances go on meanwhile.
SECONDS = 90.0
PODS = ("pod-a", "pod-b")


@pytest.fixture
def kafka() -> Iterator[ApacheKafka]:
    with temporary_directory() as directory, guarded_kafka(directory) as server:
        yield server


@pytest.fixture
def database() -> Iterator[Database]:
    with closing(Guard()) as guard, temporary_directory() as directory, Database(guard, directory) as database:
        yield database


class Load(threading.Thread):
    """Publishes the history in order, each part again until Kafka has it."""

    def __init__(self, place: Place, events: list[RegistryEvent]) -> None:
        super().__init__(daemon=True)
        self._settings = place.settings()
        self._events = events
        self.published = 0
        #: So many may be published by now.
        self.allowed = 0
        self.repeated = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._publish())
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error

    async def _publish(self) -> None:
        producer = EventProducer(self._settings)
        await producer.start()
        pause = SECONDS * TOGETHER / len(self._events)
        try:
            for start in range(0, len(self._events), TOGETHER):
                while start >= self.allowed:  # noqa: ASYNC110 - another thread allows it
                    await asyncio.sleep(pause)
                part = [Accepted(event) for event in self._events[start : start + TOGETHER]]
                while True:
                    try:
                        await producer.publish(part)
                        break
                    except UnavailableError:
                        self.repeated += 1
                self.published += len(part)
                await asyncio.sleep(pause)
        finally:
            await producer.stop()


class Workers:
    """Workers that are started again when they end."""

    def __init__(self, place: Place, directory: Path) -> None:
        self._place = place
        self._directory = directory
        self._started = 0
        self.ended_by_themselves = 0
        self.running = [self._start() for _ in range(WORKERS)]

    def _start(self) -> Child:
        self._started += 1
        return Child(self._place, self._directory / f"worker-{self._started}.log")

    def replace(self, child: Child) -> None:
        child.kill()
        self.running[self.running.index(child)] = self._start()

    def check(self) -> bool:
        """Start what has ended; return true, so that conditions can call it."""
        for child in list(self.running):
            if child.status is not None:
                self.ended_by_themselves += 1
                self.replace(child)
        return True

    def stop(self) -> None:
        for child in self.running:
            child.kill()


class Disturber:
    """Does what production does to services, one thing after the other."""

    def __init__(self, seed: int, workers: Workers, database: Database, kafka: ApacheKafka, place: Place) -> None:
        self._chance = random.Random(seed)
        self._workers = workers
        self._database = database
        self._kafka = kafka
        self._place = place
        self._table = Table(place.values["database_url"])

    def steps(self) -> list[Callable[[], None]]:
        steps = [*([self._kill_worker] * 4), *([self._pause_worker] * 2), self._stop_worker]
        steps += [self._restart_database, self._kill_database, self._kafka.restart]
        self._chance.shuffle(steps)
        return steps

    def wait(self) -> None:
        """Wait until something more is applied, so that each disturbance meets busy workers, and a little longer."""
        stood = self._applied()
        eventually(lambda: self._workers.check() and self._applied() > stood, why="progress")
        time.sleep(self._chance.random() * 2)

    def _applied(self) -> int:
        return sum(self._table.progress().values())

    def _any(self) -> Child:
        return self._chance.choice(self._workers.running)

    def _kill_worker(self) -> None:
        self._workers.replace(self._any())

    def _stop_worker(self) -> None:
        self._workers.check()
        child = self._any()
        child.send(signal.SIGTERM)
        # By the signal itself while it still imports; with 1 if it had just given up by itself.
        assert child.wait() in ({0, 1, -signal.SIGTERM} if child.has_given_up() else {0, -signal.SIGTERM})
        self._workers.replace(child)

    def _pause_worker(self) -> None:
        """Pause a worker until its partitions have moved, while it holds batches of them."""
        child = self._any()
        child.send(signal.SIGSTOP)
        eventually(lambda: len(shares(self._place)) < WORKERS, why="the move of the partitions")
        child.send(signal.SIGCONT)

    def _restart_database(self) -> None:
        self._database.stop()
        self._database.start()

    def _kill_database(self) -> None:
        self._database.kill()
        self._database.start()


def test_counts_are_exact_whatever_happens(kafka: ApacheKafka, database: Database, tmp_path: Path) -> None:
    """After kills, pauses and restarts of everything, the counts are those of plain sets, digest by digest."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**9))
    print(f"CHAOS_SEED={seed}")
    events = history(seed, PODS, EVENTS)
    migrate.upgrade(database.url)
    table = Table(database.url)
    table.add_pods()
    place = Place(
        {
            "database_url": database.url,
            "kafka_bootstrap": kafka.bootstrap,
            "kafka_partitions": "8",
            # Nothing here needs storage, and a worker that needed it would fail.
            "s3_endpoint_url": "http://127.0.0.1:9",
            "s3_bucket": "none",
            "s3_access_key": "none",
            "s3_secret_key": "none",
            "safety_clock_skew": "0s",
            "unsafe_times": "true",
            "worker_batch": "200",
        }
    )
    ensure_topics(place.settings())
    load = Load(place, events)
    workers = Workers(place, tmp_path)
    try:
        load.start()
        disturber = Disturber(seed, workers, database, kafka, place)
        steps = disturber.steps()
        for number, step in enumerate(steps, start=1):
            # However slowly things go, something is left to be applied before each step.
            load.allowed = len(events) * (number + 1) // (len(steps) + 1)
            disturber.wait()
            print(f"{load.published:6} published  {step.__name__}")
            step()
        eventually(lambda: workers.check() and not load.is_alive(), "the end of the load", seconds=3 * DEADLINE)
        assert load.error is None
        with Log(kafka.bootstrap) as log:
            table.applied(log, alive=workers.check)
    finally:
        workers.stop()
    print(f"parts repeated: {load.repeated}, workers that ended by themselves: {workers.ended_by_themselves}")
    assert table.dead_letters() == []
    assert table.gaps() == []
    assert table.counts() == Oracle().take(events).counts()
    with temporary_engine(database.url, name="test") as engine:
        report = check_counts(engine)
    assert report.is_healthy, report.differences
