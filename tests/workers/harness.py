"""A place to run workers in: a broker, a database and a bucket, and the table's counts to compare.

Route: `Place` (settings of one test) -> `publish` or `Log.write` -> `Child` (a process) or `InProcess` (a thread)
-> `Table.applied` (the database's progress equals the broker's ends) -> `Table.counts` beside the oracle's.
Not here: what must hold (test_*.py), the services themselves (services.py, conftest.py).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
import psycopg
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, TopicAlreadyExistsError

from coordinator.compose import store as compose_store
from coordinator.ingest.normalise import Accepted, Origin, Outcome, normalise_body
from coordinator.kafka.producer import EventProducer
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.settings import Settings, make_settings
from coordinator.storage.port import ObjectStore
from schemas.records import RegistryEvent, partition_key_of
from tests.oracle import Counts, Oracle
from tests.support.tables import add_pod
from tests.support.wait import eventually
from workers import build as building
from workers.run import run_worker

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "distribution-2.8.3-notifications.jsonl"
PODS = ("pod-a", "pod-b")
DEADLINE = 180.0
#: A server that is away refuses at once; one that is there may be busy.
CONNECT_S = 60


@dataclass(frozen=True)
class Place:
    """The settings of one test: where its services are, and what it sets beside."""

    values: Mapping[str, str]

    def settings(self) -> Settings:
        return make_settings(self.values)

    def but(self, **values: str) -> Place:
        return Place({**self.values, **values})

    def store(self) -> ObjectStore:
        return compose_store.make_object_store(self.settings())

    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BALEEN_")}
        return kept | {f"BALEEN_{name.upper()}": value for name, value in self.values.items()}


class Child:
    """`python -m workers`, which signals can reach."""

    module = "workers"

    def __init__(self, place: Place, log_file: Path) -> None:
        self._log = log_file
        with log_file.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=place.environ(),
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        return self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        return self._popen.wait(seconds)

    def kill(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait(DEADLINE)

    def has_given_up(self) -> bool:
        """Whether it ended, or was about to, by itself."""
        return "worker ends" in self.log()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class InProcess:
    """A worker in a thread of this process: starts in a second, and tests may look inside."""

    def __init__(self, place: Place) -> None:
        self.worker = building.make_worker(place.settings())
        self.error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            self._ready.set()
            await run_worker(self.worker, self._stop)

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error
        finally:
            self.worker.close()

    def start(self) -> Self:
        self._thread.start()
        self._ready.wait(DEADLINE)
        return self

    def do(self, make: Callable[[], Any], seconds: float = DEADLINE) -> Any:
        """Run a coroutine in the worker's loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(seconds)

    def stop(self) -> None:
        if self._thread.is_alive() and self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has just ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the worker does not end"

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def has_ended(self) -> bool:
        """Whether it ended by itself; one that is about to is waited for."""
        self._thread.join(DEADLINE)
        return not self.alive


@contextmanager
def worker(place: Place) -> Iterator[InProcess]:
    """A worker that runs until the block ends; fails if it ended by itself."""
    running = InProcess(place).start()
    try:
        yield running
    finally:
        alive = running.alive
        running.stop()
    assert alive, f"the worker ended: {running.error!r}"
    if running.error is not None:
        raise running.error


class Log:
    """The broker's side: what it holds, and raw records into it."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._consumer: KafkaConsumer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def forget(self) -> None:
        """Connect again at the next call, since the broker was away."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def ends(self) -> dict[tuple[str, int], int]:
        """The offset that the next record of each partition will get."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                return self._ends()
            except (KafkaError, OSError):
                self.forget()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _ends(self) -> dict[tuple[str, int], int]:
        if self._consumer is None:
            self._consumer = KafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)
        found: dict[tuple[str, int], int] = {}
        # Topic by topic: a client that learns of another meanwhile may leave partitions out.
        for topic in (EVENTS, DEAD_LETTERS):
            wanted = [TopicPartition(topic, number) for number in self._consumer.partitions_for_topic(topic) or ()]
            found |= {(at.topic, at.partition): end for at, end in self._consumer.end_offsets(wanted).items()}
        return found

    def write(
        self,
        topic: str,
        values: Iterable[bytes],
        *,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        self._send(topic, ((key, value) for value in values), partition=partition, timestamp_ms=timestamp_ms)

    def write_events(self, events: Sequence[RegistryEvent], *, partition: int | None = None) -> None:
        """Write events as a pod with Kafka credentials of its own does."""
        self._send(EVENTS, ((partition_key_of(event), encoded(event)) for event in events), partition=partition)

    def _send(self, topic: str, records: Iterable[tuple[bytes | None, bytes]], **where: int | None) -> None:
        producer = KafkaProducer(bootstrap_servers=self._bootstrap, acks="all", max_request_size=16 * 1024 * 1024)
        try:
            for each in [producer.send(topic, key=key, value=value, **where) for key, value in records]:
                each.get(timeout=DEADLINE)
        finally:
            producer.close(timeout=DEADLINE)

    def admin(self) -> closing[KafkaAdminClient]:
        return closing(KafkaAdminClient(bootstrap_servers=self._bootstrap))

    def delete_topics(self) -> None:
        with self.admin() as admin:
            known = [topic for topic in (EVENTS, DEAD_LETTERS) if topic in admin.list_topics()]
            if known:
                admin.delete_topics(known)
        self.forget()
        eventually(lambda: not set(known) & set(self._topics()), why="the deletion of the topics")

    def make_anew(self, topic: str, partitions: int) -> None:
        """Delete a topic and create it, though consumers make the embedded broker create it whenever they ask."""

        def made() -> bool:
            with self.admin() as admin:
                admin.delete_topics([topic])
                try:
                    admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1}})
                except TopicAlreadyExistsError:
                    return False
            return True

        eventually(made, why="a new topic")
        self.forget()

    def read(self, topic: str, partition: int, count: int) -> list[Any]:
        """The first records of a partition, as a client gets them."""
        at = TopicPartition(topic, partition)
        with closing(KafkaConsumer(bootstrap_servers=self._bootstrap, enable_auto_commit=False)) as consumer:
            consumer.assign([at])
            consumer.seek(at, 0)
            found: list[Any] = []
            deadline = time.monotonic() + DEADLINE
            while len(found) < count:
                assert time.monotonic() < deadline
                found += consumer.poll(timeout_ms=200).get(at, [])
            return found

    def remove_before(self, topic: str, partition: int, offset: int) -> None:
        with self.admin() as admin:
            admin.delete_records({TopicPartition(topic, partition): offset})

    def _topics(self) -> list[str]:
        with self.admin() as admin:
            return list(admin.list_topics())


def shares(place: Place) -> Counter[str]:
    """How many partitions each member of the group has."""
    name = place.settings().worker_group
    with closing(KafkaAdminClient(bootstrap_servers=place.values["kafka_bootstrap"])) as admin:
        try:
            group = admin.describe_groups([name])[name]
        except KafkaError:  # no worker has joined yet
            return Counter()
    return Counter({member["member_id"]: _assigned(member["member_assignment"]) for member in group["members"]})


def _assigned(assignment: Any) -> int:
    return sum(len(topic["partitions"]) for topic in assignment["assigned_partitions"]) if assignment else 0


class Table:
    """The database's side. Connects for each question, since the server may have been restarted."""

    def __init__(self, url: str) -> None:
        self.url = url

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True, connect_timeout=CONNECT_S)

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(statement, parameters).fetchall()

    def do(self, statement: str, *parameters: object) -> None:
        with self.connect() as connection:
            connection.execute(statement, parameters)

    def add_pods(self, pods: Collection[str] = PODS) -> None:
        """Register pods by name. No reconcile reads their links."""
        with self.connect() as connection:
            for pod in pods:
                add_pod(connection, pod, kind="relay")

    def progress(self) -> dict[tuple[str, int], int]:
        return {
            (row[0], row[1]): row[2]
            for row in self.rows("SELECT topic, partition, next_offset FROM partition_progress")
        }

    def applied(
        self, log: Log, seconds: float = DEADLINE, alive: Callable[[], bool] = lambda: True, markers: int = 0
    ) -> None:
        """Wait until all that the broker holds is applied; up to `markers` last offsets hold no record."""
        deadline = time.monotonic() + seconds
        while True:
            ends = log.ends()
            try:
                progress = self.progress()
            except psycopg.OperationalError:
                progress = {}
            behind = {at: (progress.get(at), end) for at, end in ends.items() if end - progress.get(at, 0) > markers}
            if not behind and ends:
                return
            assert alive(), "the worker ended"
            assert time.monotonic() < deadline, f"not applied (stands, end): {behind}"
            time.sleep(0.03)

    def counts(self) -> dict[str, Counts]:
        """The counts of every digest, in the oracle's form."""
        found = self.rows(
            """
            WITH needs AS (
                SELECT repository_id, manifest_id AS blob FROM repository_manifests
                UNION SELECT h.repository_id, unnest(m.refs)
                      FROM repository_manifests h JOIN manifests m ON m.id = h.manifest_id
                UNION SELECT repository_id, blob_id FROM repository_blobs
            )
            SELECT encode(b.digest, 'hex'), b.reference_count, b.link_count,
                   array_remove(array_agg(r.name), NULL), array_remove(array_agg(DISTINCT p.name), NULL)
            FROM blobs b LEFT JOIN needs n ON n.blob = b.id
            LEFT JOIN repositories r ON r.id = n.repository_id LEFT JOIN pods p ON p.id = r.pod_id
            GROUP BY b.id
            """
        )
        return {f"sha256:{row[0]}": Counts(row[1], row[2], frozenset(row[3]), frozenset(row[4])) for row in found}

    def dead_letters(self) -> list[tuple[str, str]]:
        """(pod, reason) of every dead letter."""
        return self.rows("SELECT pod, reason FROM dead_letters ORDER BY id")

    def gaps(self) -> list[tuple[str, str, int, str, int, int | None]]:
        """(pod, topic, partition, reason, from, to) of every gap."""
        return self.rows(
            """
            SELECT p.name, g.topic, g.partition, g.reason, g.from_offset, g.to_offset
            FROM gaps g JOIN pods p ON p.id = g.pod_id ORDER BY g.id
            """
        )


def encoded(event: RegistryEvent) -> bytes:
    return msgspec.json.encode(event)


def captured() -> list[Outcome]:
    """The outcomes of every captured notification, in order."""
    outcomes: list[Outcome] = []
    for line in FIXTURES.read_text().splitlines():
        entry = json.loads(line)
        received = dt.datetime.fromtimestamp(entry["received"], dt.UTC)
        origin = Origin(entry["pod"], (entry["pod"],), received, entry["content_type"])
        outcomes += normalise_body(json.dumps(entry["envelope"]).encode(), origin)
    return outcomes


def accepted(outcomes: Iterable[Outcome]) -> list[RegistryEvent]:
    return [outcome.event for outcome in outcomes if isinstance(outcome, Accepted)]


def publish(settings: Settings, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes as ingest does, in order."""

    async def main() -> None:
        producer = EventProducer(settings)
        await producer.start()
        try:
            await producer.publish(outcomes)
        finally:
            await producer.stop()

    asyncio.run(main())


@dataclass
class Maker:
    """Makes events of one pod whose clock moves on by a second with each."""

    pod: str = "pod-a"
    clock: dt.datetime = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
    made: list[RegistryEvent] = field(default_factory=list)

    def event(self, **changes: Any) -> RegistryEvent:
        self.clock += dt.timedelta(seconds=1)
        values = {"id": f"{self.pod}-{len(self.made)}", "pod": self.pod, "timestamp": self.clock} | changes
        event = msgspec.convert(values, RegistryEvent)
        self.made.append(event)
        return event

    def blob(self, repository: str, digest: str) -> RegistryEvent:
        return self.event(
            action="push", repository=repository, digest=digest, media_type="application/octet-stream", size=7
        )

    def manifest(self, repository: str, digest: str, references: Sequence[str] | None) -> RegistryEvent:
        listed = None if references is None else [{"digest": each, "size": 7} for each in references]
        pushed = {"action": "push", "repository": repository, "digest": digest, "references": listed}
        return self.event(media_type="application/vnd.oci.image.manifest.v1+json", size=500, **pushed)

    def delete(self, repository: str, digest: str) -> RegistryEvent:
        return self.event(action="delete", repository=repository, digest=digest)


def digest_of(text: str) -> str:
    """A digest that stands for some content."""
    return f"sha256:{text.encode().hex():0<64.64}"


def apply_events(place: Place, table: Table, log: Log, events: Sequence[RegistryEvent], **where: int) -> None:
    """Write events, and run a worker until it has applied them."""
    with worker(place):
        log.write_events(events, **where)
        table.applied(log)


def assert_all_applied(table: Table, maker: Maker) -> None:
    """Check that the table has the counts of plain sets."""
    assert table.counts() == Oracle().take(maker.made).counts()
