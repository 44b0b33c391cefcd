"""Two registries on one bucket, and everything of Baleen beside them as processes that are killed and started again.

Route: `World.started` -> clients push to `World.registries` -> `World.kill`, which starts anew what it killed ->
`World.facts`, `World.count`: what collection goes by, and what it did.
Garbage is collected with times of seconds. `Operator` does what a person or a time of hours would: admits the processes
that came since as a doctor would, asks for reconciles and collections without a pause, has links expire.
Not here: what is pushed (clients.py), when what is killed, what must hold (test_soak.py).
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from coordinator.compose import scheduler as compose_scheduler
from coordinator.compose import store as compose_store
from coordinator.db import migrate
from coordinator.domain.findings import Check
from coordinator.domain.gc import Facts
from coordinator.gc import controls
from coordinator.kafka.topics import ensure_topics
from coordinator.stack.application import is_answering
from coordinator.stack.distribution import DistributionRegistry, Notifications, Storage
from coordinator.stack.guard import Guard
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.stack.seaweedfs import BUCKET, ROOT, EmbeddedS3
from coordinator.storage.s3 import S3ObjectStore
from coordinator.table import expiry, statements
from coordinator.tokens.table import hash_token
from tests.conftest import temporary_directory
from tests.doctor.examined import examine_whatever_comes
from tests.services.apache_kafka import ApacheKafka
from tests.workers.harness import ROOT as CHECKOUT
from tests.workers.harness import Place, Table
from tests.workers.services import Database, GuardedProcess

HOST = "127.0.0.1"
PODS = ("pod-a", "pod-b")
WORKERS, SCHEDULERS = 2, 2
#: R has to be longer than any request on a machine that is busy with all this.
TIMES = {
    "safety_grace": "3s",
    "safety_quarantine": "4s",
    "safety_request_bound": "12s",
    "safety_delete_bound": "15s",
    "safety_clock_skew": "1s",
    "safety_link_grace": "12s",
}
OPERATOR_EVERY_S = 1.0


class Service(GuardedProcess):
    """One that may end by itself, and is started again then."""

    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()


class World:
    def __init__(self, directory: Path, guard: Guard, kafka: ApacheKafka, *, versioned: bool) -> None:
        self._directory = directory
        self._guard = guard
        self._ports = Ports(directory / "ports.json", HOST)
        self.kafka = kafka
        self.database = Database(guard, directory)
        self.database.start()
        s3 = EmbeddedS3(directory / "s3", directory / "s3.log", host=HOST, ports=self._ports)
        s3.prepare()
        GuardedProcess(guard, s3.process).start()
        key = s3.key
        self._storage = Storage(
            endpoint_url=s3.url, bucket=BUCKET, root=ROOT, access_key=key.access, secret_key=key.secret
        )
        self.place = Place(
            {
                "database_url": self.database.url,
                "kafka_bootstrap": kafka.bootstrap,
                "kafka_partitions": "3",
                "s3_endpoint_url": s3.url,
                "s3_bucket": BUCKET,
                "s3_root": ROOT,
                "s3_access_key": key.access,
                "s3_secret_key": key.secret,
                "unsafe_times": "true",
                **TIMES,
                "probe_every": "500ms",
                "probe_silence": "5s",
                "log_format": "json",
            }
        )
        self.settings = self.place.settings()
        self.store: S3ObjectStore = compose_store.make_object_store(self.settings)
        if versioned:
            self.store.enable_versioning()
        migrate.upgrade(self.database.url)
        ensure_topics(self.settings)
        self.table = Table(self.database.url)
        self._facts = compose_scheduler.make_collection_facts_reader(self.settings)
        self._tokens = {pod: secrets.token_urlsafe(16) for pod in PODS}
        self._api_port = self._ports.take("api")
        made = {pod: self._registry(pod) for pod in PODS}
        self.addresses = {pod: f"{HOST}:{each.port}" for pod, each in made.items()}
        for pod, each in made.items():
            self.table.do(
                "INSERT INTO pods (name, event_token_sha256, registries) VALUES (%s, %s, %s)",
                pod,
                hash_token(self._tokens[pod]),
                [each.url],
            )
            self.table.do("INSERT INTO pod_prefixes SELECT %s, id FROM pods WHERE name = %s", pod, pod)
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            controls.set_switch(connection, "a test", on=True)
        self.processes = {
            "api": Service(guard, self._api),
            **{f"worker-{n}": self._python(f"worker-{n}", "workers") for n in range(WORKERS)},
            **{f"scheduler-{n}": self._python(f"scheduler-{n}", "workers.scheduler") for n in range(SCHEDULERS)},
            **{f"registry-{pod}": Service(guard, each.process) for pod, each in made.items()},
        }
        for process in self.processes.values():
            process.start()

    @classmethod
    @contextmanager
    def started(cls, *, versioned: bool) -> Iterator[World]:
        guard = Guard()
        try:
            with temporary_directory() as directory, ApacheKafka(directory / "kafka", guard=guard) as kafka:
                world = cls(directory, guard, kafka, versioned=versioned)
                try:
                    yield world
                finally:
                    for process in world.processes.values():
                        process.kill()
                    world.database.kill()
        finally:
            guard.close()

    def kill(self, name: str) -> None:
        """Kill a process and start another in its place."""
        self.processes[name].kill()
        if name.startswith("scheduler"):
            # As if the time had passed after which its job is another's; it may be one of the other, which lives.
            self.table.do("UPDATE jobs SET alive_at = NULL WHERE state = 'running'")
        self.processes[name].start()

    def kill_database(self) -> None:
        self.database.kill()
        self.database.start()

    def kill_broker(self) -> None:
        self.kafka.kill()
        self.kafka.start()

    def revive(self) -> None:
        """Start what has ended by itself."""
        for process in self.processes.values():
            if not process.alive():
                process.kill()
                process.start()

    def facts(self) -> Facts:
        return self._facts()

    def count(self, decision: str) -> int:
        return int(self.table.rows("SELECT count(*) FROM gc_ledger WHERE decision = %s", decision)[0][0])

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text(errors="replace")

    def _registry(self, pod: str) -> DistributionRegistry:
        return DistributionRegistry(
            name=pod,
            directory=self._directory / pod,
            port=self._ports.take(pod),
            storage=self._storage,
            http_secret="shared-by-all-pods",
            notifications=Notifications(
                url=f"http://{HOST}:{self._api_port}/v1/events/{pod}",
                token=self._tokens[pod],
                backoff="200ms",
                threshold=1,
            ),
            log_level="warn",
        )

    def _api(self) -> ManagedProcess:
        url = f"http://{HOST}:{self._api_port}/healthz"
        arguments = ["coordinator.cli", "api", "--host", HOST, "--port", str(self._api_port)]
        return self._process("api", arguments, lambda: is_answering(url))

    def _python(self, name: str, module: str) -> Service:
        return Service(self._guard, lambda: self._process(name, [module]))

    def _process(self, name: str, arguments: Sequence[str], probe: Callable[[], bool] | None = None) -> ManagedProcess:
        return ManagedProcess(
            name=name,
            argv=[sys.executable, "-m", *arguments],
            env=self.place.environ(),
            cwd=CHECKOUT,
            log_file=self._directory / f"{name}.log",
            ready_timeout=90.0,
            probe=probe,
        )


class Operator(threading.Thread):
    """Does again and again what would otherwise take hours, or a person."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world = world
        self._ending = threading.Event()
        #: Processes that come are examined as soon as they are heard.
        self._admits = False

    def run(self) -> None:
        while not self._ending.wait(OPERATOR_EVERY_S):
            try:
                with psycopg.connect(self._world.database.url, autocommit=True, connect_timeout=5) as connection:
                    statements.prepare_connection(connection)
                    self._round(connection)
            except psycopg.OperationalError:
                continue  # it was killed: the next round comes soon

    def stop(self) -> None:
        self._ending.set()
        self.join()

    def _round(self, connection: psycopg.Connection[Any]) -> None:
        # A doctor has visited each process that came since: all are configured alike.
        connection.execute(
            """
            INSERT INTO findings (pod_id, "check", result, meaning, proof, fix, found_at)
            SELECT p.id, c, 'proved', 'a test', 'a test', '', clock_timestamp() FROM pods p, unnest(%s::text[]) c
            ON CONFLICT (pod_id, "check") DO UPDATE SET found_at = excluded.found_at
            """,
            ([check.value for check in Check],),
        )
        if not self._admits:
            examine_whatever_comes(connection)
            self._admits = True
        connection.execute(
            """
            INSERT INTO jobs (kind, pod_id, why) SELECT 'reconcile', p.id, 'a test' FROM pods p
            WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.pod_id = p.id AND j.kind = 'reconcile'
                              AND (j.state IN ('waiting', 'running') OR j.finished_at > now() - interval '2 seconds'))
            ON CONFLICT DO NOTHING
            """
        )
        connection.execute("INSERT INTO jobs (kind, why) VALUES ('gc', 'a test') ON CONFLICT DO NOTHING")
        expiry.delete_expired_links(connection, timedelta(seconds=self._world.settings.safety_link_grace))
