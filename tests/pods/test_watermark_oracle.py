"""Watermarks against an oracle that knows which request finished when, and which of its events are applied.

Real are the rules of ingest (ingest/normalise.py), the producer's order, the worker's reading of records, the batch
apply in a real database and the question for W. Only Kafka's client and the registries are played: requests, probes,
lost, late and repeated deliveries, brokers that fail in the middle, processes that are killed with all that they had
not delivered, that nobody ever hears, that share an address, that come and go with addresses of the registry's name,
partitions that are added, batches that are applied in any order.
"""

import asyncio
import itertools
import json
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, RequestTimedOutError
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from coordinator.db.engine import open_engine
from coordinator.db.session import read_connection
from coordinator.doctor import table as findings
from coordinator.domain.watermarks import PodWatermark, ProcessState
from coordinator.errors import UnavailableError
from coordinator.ingest.normalise import Origin, normalise_body
from coordinator.kafka.producer import EventProducer
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.pods import directory
from coordinator.pods.watermarks import read_watermarks
from coordinator.settings import make_settings
from coordinator.table import processes
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Slice
from coordinator.table.echoes import KnownProcesses
from tests.table.harness import NO_MARGIN, Table, begin
from workers.interpret import Chunk, Interpreter

URL = "http://r:5000"
V2 = "application/vnd.docker.distribution.events.v2+json"
ADDRESSES = ("10.0.0.1", "10.0.0.2")
#: The registry's name leads there at times.
VISITED = "10.0.0.3"
PLACES = (*ADDRESSES, VISITED)
Partition = tuple[str, int]

_numbers = itertools.count(1)


class Broker:
    """Partitions and what they hold; it acknowledges in any order, but for that of each partition."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.log: dict[Partition, list[bytes]] = {(EVENTS, 0): [], (EVENTS, 1): [], (DEAD_LETTERS, 0): []}
        #: The same, read: the id of the event and the process of each record, "" where it names none.
        self.read: dict[Partition, list[tuple[str, str]]] = defaultdict(list)
        #: Where each event came first. What comes again, later and perhaps elsewhere, says nothing new.
        self.first: dict[str, Partition] = {}
        #: So many records are still kept; then it fails once.
        self.fails_after: int | None = None

    def keep(self, partition: Partition, value: bytes) -> None:
        record = json.loads(value)
        if "payload" in record:
            # Who sent it stands only in what nobody understood.
            record = {"id": json.loads(record["payload"])["id"]}
        self.log[partition].append(value)
        self.first.setdefault(record.get("id", ""), partition)
        self.read[partition].append((record.get("id", ""), record.get("process", "")))

    def numbers(self, topic: str) -> set[int]:
        return {number for name, number in self.log if name == topic}


class Cluster:
    def __init__(self, broker: Broker) -> None:
        self.known = {topic: broker.numbers(topic) for topic in (EVENTS, DEAD_LETTERS)}

    def partitions_for_topic(self, topic: str) -> set[int]:
        return self.known[topic]


class Client:
    """The producer's client, as far as EventProducer uses it. What it knows of partitions is as old as it is."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.client = self
        self.cluster = Cluster(broker)
        self.waiting: dict[Partition, deque[tuple[bytes, asyncio.Future[None]]]] = defaultdict(deque)

    async def fetch_all_metadata(self) -> Cluster:
        return Cluster(self.broker)

    async def force_metadata_update(self) -> None:
        self.cluster = Cluster(self.broker)

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None, headers: Any, partition: int | None = None
    ) -> asyncio.Future[None]:
        del headers
        if partition is None:
            partition = DefaultPartitioner()(key, sorted(self.cluster.known[topic]), [])
        assert partition in self.cluster.known[topic]
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.waiting[topic, partition].append((value, future))
        loop.call_soon(self.acknowledge)
        return future

    def acknowledge(self) -> None:
        partition = self.broker.chance.choice([at for at, waiting in self.waiting.items() if waiting] or [None])
        if partition is None:
            return
        if self.broker.fails_after == 0:
            self.broker.fails_after = None
            self.fail_all(RequestTimedOutError())
            return
        if self.broker.fails_after is not None:
            self.broker.fails_after -= 1
        value, future = self.waiting[partition].popleft()
        self.broker.keep(partition, value)
        if not future.done():
            future.set_result(None)

    def fail_all(self, error: KafkaError) -> None:
        for waiting in self.waiting.values():
            while waiting:
                _, future = waiting.popleft()
                if not future.done():
                    future.set_exception(error)

    def give_up(self) -> None:
        self.fail_all(KafkaConnectionError())

    async def close(self) -> None:
        pass


class Producer(EventProducer):
    def __init__(self, broker: Broker) -> None:
        super().__init__(make_settings({"kafka_bootstrap": "127.0.0.1:9"}))
        self._broker = broker

    async def _connect(self) -> None:
        self._client = Client(self._broker)  # type: ignore[assignment]
        self._connected.set()


class Request:
    """A client's request that a process has finished, with the event about it."""

    def __init__(self, event: dict[str, Any], finished: datetime) -> None:
        self.event = event
        self.finished = finished
        #: A reconcile has seen what it wrote.
        self.resolved = False


class Process:
    def __init__(self) -> None:
        self.name = f"s{next(_numbers)}"
        self.alive = True
        #: Its notifications arrive nowhere.
        self.cut_off = False
        #: Another was at its address while it was.
        self.crowded = False
        #: Of the first probe that it was seen to answer; None if there is none, or nothing was known then.
        self.known_until: datetime | None = None
        self.answered = False
        self.requests: list[Request] = []
        self.queue: deque[dict[str, Any]] = deque()
        #: The last envelope that was posted: a registry that heard no answer in time posts it again.
        self.posted: list[dict[str, Any]] = []
        #: It died without a trace: nobody who asked has ever seen it (see docs/adr/0008-watermarks.md).
        self.traceless = False

    def event(self, identity: str, action: str, target: dict[str, Any], **more: Any) -> dict[str, Any]:
        event = {"id": identity, "timestamp": datetime.now(UTC).isoformat(), "action": action, "target": target}
        return event | {"source": {"instanceID": self.name}} | more

    def unseen(self, request: Request) -> bool:
        """Whether nobody could know of the request: behind an address where others answer, before it was asked."""
        return self.crowded and (
            not self.answered or (self.known_until is not None and request.finished < self.known_until)
        )


class World:
    def __init__(self, table: Table, seed: int, runner: asyncio.Runner, engine: Engine) -> None:
        self.table, self.connection, self.pod = table, table.connection, table.pods["pod-a"]
        self.chance = random.Random(seed)
        self.broker = Broker(self.chance)
        self.runner, self.engine = runner, engine
        self.replicas = [Producer(self.broker), Producer(self.broker)]
        for name in ("probes", "endpoints", "watermarks", "processes", "dead_letters", "partition_progress"):
            self.connection.execute(f"DELETE FROM {name}")
        self.connection.execute("UPDATE pods SET registries = %s WHERE id = %s", ([URL], self.pod))
        self.known = KnownProcesses()
        self.applied: dict[Partition, int] = {}
        self.interpreter = Interpreter(directory.read_directory(self.connection))
        for partition in self.broker.log:
            self.assign(partition)
        self.at: dict[str, list[Process]] = {address: [] for address in PLACES}
        self.processes: list[Process] = []
        #: Where the name leads, and where it led when it could last be looked up.
        self.name, self.addresses = set(ADDRESSES), set(ADDRESSES)
        self.looked_up = True
        #: Probes that the network holds up.
        self.under_way: list[tuple[str, str]] = []
        for address in ADDRESSES:
            self.start(address)
        self.resolve()

    # What happens

    def now(self) -> datetime:
        ((now,),) = self.table.rows("SELECT clock_timestamp()")
        return now

    def assign(self, partition: Partition) -> None:
        if partition not in self.applied:
            begin(self.connection, *partition)
            self.applied[partition] = 0

    def start(self, address: str, *, cut_off: bool = False) -> None:
        """A process comes up, unless one is there; the name leads to it at once."""
        if not self.at[address]:
            self.join(address, cut_off=cut_off)

    def start_cut_off(self, address: str) -> None:
        self.start(address, cut_off=True)

    def join(self, address: str, *, cut_off: bool = False) -> None:
        """A process comes up beside others, behind one address."""
        process = Process()
        process.cut_off = cut_off
        self.at[address].append(process)
        self.processes.append(process)
        self.name.add(address)
        if len(self.at[address]) > 1:
            for each in self.at[address]:
                each.crowded = True

    def share(self, address: str) -> None:
        """Resolve everything; then a second process joins the address, and one of the two is cut off."""
        self.resolve()
        if len(self.at[address]) == 1:
            self.join(address)
            lost = self.chance.choice(self.at[address])
            self.round()
            lost.cut_off = True
            self.round()
            if self.chance.random() < 0.5:
                self.reconcile()
            self.request_of(lost)
            if self.chance.random() < 0.3:
                self.remove(lost, address)
            for _ in range(3):
                self.round()

    def cut(self, address: str) -> None:
        """From now on nothing of a process arrives any more."""
        if (process := self.who(address)) is not None:
            process.cut_off = True

    def repair(self, address: str) -> None:
        for process in self.at[address]:
            process.cut_off = False

    def who(self, address: str) -> Process | None:
        """The process that takes the next connection."""
        return self.chance.choice(self.at[address]) if self.at[address] else None

    def kill(self, address: str) -> None:
        if (process := self.who(address)) is not None:
            self.remove(process, address)

    def remove(self, process: Process, address: str) -> None:
        self.at[address].remove(process)
        process.alive = False
        process.queue.clear()
        if not process.answered:
            last = self.table.rows(
                "SELECT s.retired_at FROM endpoints e JOIN processes s ON s.id = e.process_id WHERE address = %s",
                (address,),
            )
            # Had the one before it still counted, its retirement would have waited for a reconcile of both.
            counts = bool(last) and last[0][0] is None
            process.traceless = process.name not in self.echoed_by() and not counts

    def visit(self, address: str) -> None:
        """Resolve everything; then a process of which no event arrives comes up, gets requests and ends, while
        others are heard.
        """
        self.resolve()
        while self.at[address]:
            self.deserted(address)
        self.start(address, cut_off=True)
        if self.chance.random() < 0.3:
            self.lose_names()
        self.round()
        for step in self.chance.choices((self.round, self.reconcile, self.round), k=2):
            self.request(address)
            step()
        self.request(address)
        self.leave(address)
        if self.chance.random() < 0.5:
            self.start(address)
        for _ in range(2):
            self.round()
        self.find_names()

    def leave(self, address: str) -> None:
        """All at an address end, and the name leads there no more; somewhere it always leads."""
        while self.at[address]:
            self.kill(address)
        if self.name != {address}:
            self.name.discard(address)

    def lose_names(self) -> None:
        """Names cannot be looked up."""
        self.looked_up = False

    def find_names(self) -> None:
        self.looked_up = True

    def look_up(self) -> None:
        """Look the name up, as the prober does before each round."""
        if self.looked_up:
            self.addresses = set(self.name)
            processes.record_endpoints(
                self.connection, self.pod, {URL: self.addresses}, findings.read_clock(self.connection)
            )

    def request(self, address: str, *, understood: bool = True) -> None:
        """A client pushes a blob; or something of a kind that nobody knows yet."""
        if (process := self.who(address)) is not None:
            self.request_of(process, understood=understood)

    def request_of(self, process: Process, *, understood: bool = True) -> None:
        if process.alive:
            number = next(_numbers)
            target = {
                "mediaType": "application/octet-stream" if understood else "application/unheard-of",
                "digest": f"sha256:{number:064x}",
                "size": 1,
                "repository": f"pod-a/r{self.chance.randrange(6)}",
            }
            event = process.event(f"e{number}", "push", target)
            process.queue.append(event)
            process.requests.append(Request(event, self.now()))

    def probe(self, address: str) -> None:
        self.look_up()
        if address not in self.addresses:
            return
        nonce = processes.insert_probe(self.connection, self.pod, URL, address)
        if not self.at[address]:
            processes.record_probe_failure(self.connection, nonce, "refused", refused=True)
        elif self.chance.random() < 0.2:
            self.under_way.append((address, nonce))
        else:
            self.arrive(address, nonce)

    def arrive(self, address: str, nonce: str) -> None:
        process = self.who(address)
        if process is None or self.chance.random() < 0.1:
            processes.record_probe_failure(self.connection, nonce, "timed out", refused=False)
        else:
            self.answer(process, nonce)

    def ask_all(self) -> None:
        """Each process is asked, as in any hour, and answers."""
        self.look_up()
        for address in sorted(self.addresses):
            for process in self.at[address]:
                self.answer(process, processes.insert_probe(self.connection, self.pod, URL, address))
            if not self.at[address]:
                nonce = processes.insert_probe(self.connection, self.pod, URL, address)
                processes.record_probe_failure(self.connection, nonce, "refused", refused=True)

    def answer(self, process: Process, nonce: str) -> None:
        target = {"repository": "pod-a/baleen-probe", "digest": f"sha256:{0:064x}"}
        agent = {"useragent": f"baleen-probe/{nonce}"}
        process.queue.append(process.event(f"p{nonce}", "pull", target, request=agent))
        if self.chance.random() < 0.3:
            # Before the prober hears the answer.
            self.request_of(process)
        processes.record_probe_answer(self.connection, nonce)
        if not process.answered:
            process.answered = True
            ((process.known_until,),) = self.table.rows(
                "SELECT known_until FROM probes WHERE nonce = %s::uuid", (nonce,)
            )

    def forget(self) -> None:
        """Old probes are forgotten; any that is not on its way may be old by now."""
        if not self.under_way:
            processes.delete_old_probes(self.connection, timedelta())

    def late_probe(self) -> None:
        if self.under_way:
            self.arrive(*self.under_way.pop(self.chance.randrange(len(self.under_way))))

    def deliver(self, address: str, count: int = 1) -> None:
        """Post what is at the head of the queue; what is not taken stays there."""
        process = self.who(address)
        if process is not None and process.queue and not process.cut_off:
            process.posted = [process.queue[n] for n in range(min(count, len(process.queue)))]
            if self.post(process.posted):
                for _ in process.posted:
                    process.queue.popleft()

    def deliver_again(self) -> None:
        """A delivery of which the registry heard no answer in time, and that it repeated, arrives after all."""
        posted = [process.posted for process in self.processes if process.posted]
        if posted:
            self.post(self.chance.choice(posted))

    def post(self, events: list[dict[str, Any]]) -> bool:
        origin = Origin("pod-a", {"pod-a"}, datetime.now(UTC), V2)

        async def publish() -> None:
            replica = self.chance.choice(self.replicas)
            await replica.start()
            await replica.publish(normalise_body(json.dumps({"events": events}).encode(), origin))

        try:
            self.runner.run(publish())
        except UnavailableError:
            return False
        return True

    def together(self, address: str, count: int) -> None:
        """Requests, a probe and more requests that are posted as one."""
        for _ in range(count):
            self.request(address, understood=self.chance.random() < 0.7)
        self.probe(address)
        self.request(address)
        if self.chance.random() < 0.5:
            self.broker.fails_after = self.chance.randrange(8)
        self.deliver(address, 9)
        self.broker.fails_after = None

    def broken(self, address: str) -> None:
        """A delivery in the middle of which the broker fails."""
        self.broker.fails_after = self.chance.randrange(5)
        self.deliver(address, self.chance.randint(1, 3))
        self.broker.fails_after = None

    def apply(self) -> None:
        """A worker applies some of what some partitions hold."""
        chosen = [at for at in self.applied if self.applied[at] < len(self.broker.log[at])]
        chosen = self.chance.sample(chosen, self.chance.randint(0, len(chosen)))
        pieces = [self.piece(at, self.chance.randint(1, 3)) for at in chosen]
        if pieces:
            self.take(pieces)

    def apply_all(self) -> None:
        pieces = [self.piece(at, 10_000) for at in self.applied if self.applied[at] < len(self.broker.log[at])]
        if pieces:
            self.take(pieces)

    def round(self) -> None:
        """The prober asks everywhere, and all is well."""
        for address in PLACES:
            for _ in range(max(1, len(self.at[address]))):
                self.probe(address)
                self.deliver(address, 99)
        self.apply_all()

    def half_a_round(self, address: str) -> None:
        """One process's notifications are held up, and the others go on."""
        for each in PLACES:
            self.probe(each)
        self.deliver(address, 99)
        self.apply_all()

    def restart(self, address: str) -> None:
        self.kill(address)
        self.start(address)

    def deserted(self, address: str) -> None:
        """A process is away for so long that a reconcile retires it."""
        self.kill(address)
        self.probe(address)
        self.reconcile()

    def come_back(self, address: str) -> None:
        """After that another one comes up, of which only requests are known: its notifications are held up."""
        self.deserted(address)
        self.start(address)
        self.request(address)
        for each in ADDRESSES:
            if each != address:
                self.half_a_round(each)

    def come_and_go(self, address: str) -> None:
        """After that another one comes up, is heard once by an event, and is killed."""
        self.deserted(address)
        self.start(address)
        self.request(address)
        self.deliver(address)
        self.apply_all()
        self.request(address)
        self.kill(address)
        self.round()

    def piece(self, at: Partition, count: int) -> Slice:
        first = self.applied[at]
        records = [
            SimpleNamespace(offset=first + n, timestamp=1, key=None, value=value)
            for n, value in enumerate(self.broker.log[at][first : first + count])
        ]
        return self.interpreter.interpret(Chunk(*at, records))

    def take(self, pieces: Iterable[Slice]) -> None:
        BatchApplier(self.connection, NO_MARGIN, self.known).apply(list(pieces))
        for piece in pieces:
            self.applied[piece.topic, piece.partition] = piece.next_offset
        self.check_sources()
        self.check_pod()

    def replay(self) -> None:
        """A log that is read from its beginning."""
        at = self.chance.choice(list(self.applied))
        self.applied[at] = 0
        self.connection.execute("UPDATE partition_progress SET next_offset = 0 WHERE topic = %s AND partition = %s", at)
        # What was applied before is still in the table.
        if self.broker.log[at]:
            self.take([self.piece(at, len(self.broker.log[at]))])

    def add_partition(self) -> None:
        """An operator adds a partition; which no worker has yet."""
        if len(self.broker.numbers(EVENTS)) < 4:
            self.broker.log[EVENTS, len(self.broker.numbers(EVENTS))] = []

    def grow(self) -> None:
        """A partition is added, ingest uses it, and no worker has it yet."""
        self.add_partition()
        self.round()
        for address in ADDRESSES * 3:
            self.request(address)
        self.round()

    def rebalance(self) -> None:
        for at in self.broker.log:
            self.assign(at)

    def reconcile(self) -> None:
        """Storage shows what every request has written that finished before.

        No request takes any time here; but as in any request's longest time, all that run are asked before it.
        """
        since = self.now()
        self.ask_all()
        began = self.now()
        for process in self.processes:
            for request in process.requests:
                request.resolved = True
        processes.delete_unechoed_probes(self.connection, self.pod, began, began - since)
        processes.retire_dead_processes(self.connection, self.pod, began, began - since, "reconciled")
        self.check_pod()

    # What must hold

    def applied_records(self) -> Iterator[tuple[str, str]]:
        for at, count in self.applied.items():
            yield from self.broker.read[at][:count]

    def echoed_by(self) -> set[str]:
        """Processes of which anything is applied."""
        return {source for _, source in self.applied_records()}

    def check_sources(self) -> None:
        """W(source, partition): all that finished before is in Kafka, and if it came to that partition, applied."""
        applied = {name for name, _ in self.applied_records()}
        marks = self.table.rows(
            "SELECT s.instance_id, w.topic, w.partition, w.at FROM watermarks w JOIN processes s ON s.id = w.process_id"
            " WHERE w.at > '-infinity'"
        )
        requests = {process.name: process.requests for process in self.processes}
        for instance, topic, partition, mark in marks:
            for request in requests[instance]:
                name = request.event["id"]
                if request.finished < mark:
                    assert name in self.broker.first, f"W({instance}, {partition}) claims what Kafka does not have"
                    assert (topic, partition) != self.broker.first[name] or name in applied, (
                        f"W({instance}, {topic}, {partition}) claims what is not applied"
                    )

    def check_pod(self) -> datetime | None:
        """W of the pod: all that any of its processes finished before is applied, or was seen by a reconcile."""
        at = self.view().at
        done = {name for name, _ in self.applied_records()}
        for process in self.processes:
            for request in process.requests:
                if at is not None and request.finished < at:
                    known = request.event["id"] in done or request.resolved
                    excused = process.traceless or process.unseen(request)
                    assert known or excused, f"W of the pod claims what is not applied of {process.name}"
        return at

    def view(self) -> PodWatermark:
        with read_connection(self.engine) as connection:
            found = read_watermarks(connection, timedelta(seconds=60))
        return found["pod-a"]

    def resolve(self) -> None:
        """All is well again: W must then be known, and move."""
        self.find_names()
        self.leave(VISITED)
        for address in ADDRESSES:
            if self.chance.random() < 0.5:
                # Whoever is cut off goes; else it is heard at last.
                for process in [each for each in self.at[address] if each.cut_off]:
                    self.at[address].remove(process)
                    process.alive = False
            self.start(address)
            self.repair(address)
        # Also where it led nowhere else until now: what is listed and refuses everybody holds W up, as it should.
        self.name.discard(VISITED)
        self.under_way.clear()
        self.all_echoed()
        self.reconcile()
        began = self.now()
        self.all_echoed()
        alive = {process.name for process in self.processes if process.alive}
        for shown in self.view().processes:
            # Nobody ever reached it, so nothing proves that it is dead: an operator has to say so.
            if shown.instance_id not in alive and shown.state not in {ProcessState.RETIRED, ProcessState.DEAD}:
                self.connection.execute(
                    "UPDATE processes SET retired_at = clock_timestamp(), retired_why = 'x' WHERE instance_id = %s",
                    (shown.instance_id,),
                )
        at = self.check_pod()
        assert at is not None, self.view()
        assert at > began

    def all_echoed(self) -> None:
        """Probe each process, and deliver everything in its queue."""
        self.ask_all()
        for address in ADDRESSES:
            while any(process.queue for process in self.at[address]):
                self.deliver(address, 5)
        self.rebalance()
        self.apply_all()


here = st.sampled_from(ADDRESSES)
anywhere = st.sampled_from(PLACES)


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, tuple[Any, ...]]]:
    return st.tuples(st.just(name), st.tuples(*arguments))


#: Some steps are twice as likely as the others.
busy = [
    *[step("request", here), step("probe", here), step("deliver", here, st.integers(1, 4))] * 2,
    *[step("together", here, st.integers(1, 3)), step("apply"), step("round")] * 2,
    *(step(name, here) for name in ("request_in_vain", "broken", "half_a_round")),
    *(step(name) for name in ("deliver_again", "apply_all")),
]
trouble = [
    *[step("forget"), step("start", anywhere), step("visit", anywhere)] * 2,
    *(step(name, here) for name in ("kill", "restart", "deserted", "come_back", "come_and_go", "share")),
    *(step(name, anywhere) for name in ("start_cut_off", "cut", "repair", "leave")),
    *(step(name) for name in ("late_probe", "lose_names", "find_names", "replay", "reconcile")),
    *(step(name) for name in ("add_partition", "grow", "rebalance")),
]
histories = st.lists(st.one_of(st.one_of(busy), st.one_of(busy), st.one_of(trouble)), min_size=25, max_size=60)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(database: str) -> Iterator[Engine]:
    engine = open_engine(database, pool_size=1, name="test")
    yield engine
    engine.dispose()


@pytest.fixture
def world(table: Table, runner: asyncio.Runner, engine: Engine) -> Callable[[int], World]:
    return lambda seed: World(table, seed, runner, engine)


# Not shrunk: that takes minutes, and a history says what happened as it is.
@pytest.mark.lengthy
@settings(
    max_examples=40,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(histories, st.integers(0, 2**16))
def test_never_more_than_is_true(world: Callable[[int], World], made: list[tuple[str, Any]], seed: int) -> None:
    """A watermark never claims more than is true, whatever is lost, late, repeated or killed, and moves on when all
    is well.
    """
    played = world(seed)
    for name, arguments in made:
        if name == "request_in_vain":
            played.request(*arguments, understood=False)
        else:
            getattr(played, name)(*arguments)
    played.resolve()
