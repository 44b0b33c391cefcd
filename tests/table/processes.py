"""One pod whose registry processes send events and echoes of probes."""

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from coordinator.db.engine import temporary_engine
from coordinator.db.session import read_connection
from coordinator.doctor import table as findings
from coordinator.domain.names import PodName
from coordinator.domain.watermarks import PodWatermark, ProcessReport
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.pods.watermarks import read_watermarks
from coordinator.reconcile import table as reconcile
from coordinator.table import processes as registry_processes
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Echo, Item, Slice
from coordinator.table.echoes import KnownProcesses
from tests.support.tables import add_job, set_kind
from tests.table.harness import NO_MARGIN, Table, begin

URL = "http://r1:5000"
HERE, THERE = "10.0.0.1", "10.0.0.2"
SILENCE = timedelta(seconds=60)


class World:
    """One pod with an address of its registry, two partitions of events and one of dead letters."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.connection = table.connection
        self.pod = table.pods["pod-a"]
        self.known = KnownProcesses()
        self.offsets = {(EVENTS, 0): 0, (EVENTS, 1): 0, (DEAD_LETTERS, 0): 0}
        for topic, partition in self.offsets:
            begin(self.connection, topic, partition)
        self.connection.execute("UPDATE pods SET registries = %s WHERE id = %s", ([URL], self.pod))
        self.record_names({URL: [HERE]})

    def record_names(self, found: Mapping[str, Collection[str]]) -> None:
        """Names were looked up just now."""
        registry_processes.record_endpoints(self.connection, self.pod, found, findings.read_clock(self.connection))

    def probe(self, address: str = HERE, pod: str = "pod-a", url: str = URL) -> str:
        return registry_processes.insert_probe(self.connection, self.table.pods[pod], url, address)

    def echo(self, nonce: str, instance: str = "s", pod: str = "pod-a") -> tuple[int, Echo]:
        return self.table.pods[pod], Echo(instance, nonce, partitions=2, dead_letters_partition=0)

    def piece(self, echoed: Iterable[tuple[int, Echo]], partition: int = 0, topic: str = EVENTS) -> Slice:
        first = self.offsets[topic, partition]
        items = [Item(first + n, 1000, pod, None, None, echo) for n, (pod, echo) in enumerate(echoed)]
        processes = frozenset((pod, echo.instance_id) for pod, echo in echoed)
        return Slice(topic, partition, first, first + len(items), first, items, processes)

    def apply(self, *pieces: Slice) -> Any:
        applied = BatchApplier(self.connection, NO_MARGIN, self.known).apply(pieces)
        for piece in pieces:
            self.offsets[piece.topic, piece.partition] = piece.next_offset
        return applied

    def return_probe(self, nonce: str, instance: str = "s") -> None:
        """Apply an echo everywhere."""
        for topic, partition in self.offsets:
            self.apply(self.piece([self.echo(nonce, instance)], partition, topic))

    def sent_at(self, nonce: str) -> datetime:
        (row,) = self.table.rows("SELECT sent_at FROM probes WHERE nonce = %s::uuid", (nonce,))
        return row[0]

    def marks(self, instance: str = "s") -> dict[tuple[str, int], datetime | None]:
        """W by topic and partition; None for what is only known to be there."""
        found = self.table.rows(
            "SELECT topic, partition, nullif(at, '-infinity') FROM watermarks w JOIN processes s ON s.id = w.process_id"
            " WHERE s.instance_id = %s",
            (instance,),
        )
        return {(row[0], row[1]): row[2] for row in found}

    def looked_up(self) -> None:
        """Names lead where they led, as the prober finds them to before each probe."""
        self.connection.execute(
            """
            UPDATE endpoints e SET resolved_at = now()
            WHERE resolved_at = (SELECT max(resolved_at) FROM endpoints o WHERE o.pod_id = e.pod_id AND o.url = e.url)
            """
        )

    def view(self, pod: str = "pod-a", *, looked_up: bool = True) -> PodWatermark:
        if looked_up:
            self.looked_up()
        return self.by_engine(lambda engine: _read_watermarks(engine)[pod])

    def process(self, instance: str = "s") -> ProcessReport:
        return {process.instance_id: process for process in self.view().processes}[instance]

    def endpoint(self, address: str = HERE) -> tuple[str | None, datetime | None, bool]:
        found = {endpoint.address: endpoint for endpoint in self.view().endpoints}[address]
        return found.process, found.echoed_at, found.shared

    def by_engine(self, work: Callable[[Any], Any]) -> Any:
        with temporary_engine(self.table.url, name="test") as engine:
            return work(engine)

    def retire(self, *instances: str, why: str = "it is gone", bound: timedelta = timedelta(hours=1)) -> None:
        with self.connection.transaction():
            for instance in instances:
                registry_processes.retire_process(self.connection, PodName("pod-a"), instance, why, bound)

    def linked(self, kind: str) -> None:
        set_kind(self.connection, kind, "pod-a")

    def refused(self, nonce: str) -> str | None:
        """Record that a probe's connection was refused; return the process that counts as dead by it."""
        return registry_processes.record_probe_failure(self.connection, nonce, "refused", refused=True)

    def age_probes(self) -> None:
        """Let the probes that were not echoed be too old to be kept one by one."""
        self.connection.execute("UPDATE probes SET sent_at = sent_at - interval '25 hours' WHERE NOT echoed")

    def answered(self, address: str = HERE) -> str:
        """A probe that the registry answers."""
        nonce = self.probe(address)
        registry_processes.record_probe_answer(self.connection, nonce)
        return nonce

    def unechoed(self) -> list[str]:
        """Probes that were answered and not echoed."""
        found = self.table.rows(
            "SELECT nonce FROM probes WHERE answered_at IS NOT NULL AND NOT echoed ORDER BY sent_at"
        )
        return [row[0].hex for row in found]

    def take_reconcile(self) -> Job:
        add_job(self.connection, self.pod)
        job = jobs.take_job(self.connection, ["reconcile"])
        assert job is not None
        return job

    def run_reconcile(self) -> None:
        """A reconcile that begins now ends; no request takes any time."""
        job = self.take_reconcile()
        reconcile.write_result(self.connection, job, timedelta())
        jobs.finish_job(self.connection, job, {})


def _read_watermarks(engine: Any) -> dict[str, PodWatermark]:
    with read_connection(engine) as connection:
        return read_watermarks(connection, SILENCE)
