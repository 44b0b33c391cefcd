"""The services that measurements run against: started here, in one temporary directory, ended by process id.

Route: `Services` (PostgreSQL and S3 for the whole run) -> `database` for each measurement, migrated, with the
workload's pods, dropped afterwards -> `broker` (embedded or Apache Kafka), `worker`, `api`, each a child process.
A guard ends the children when this process is killed.
Not here: load (events.py, database.py), clocks.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
import psutil
import psycopg

from bench.workload import make_pod_names
from coordinator.db import migrate
from coordinator.db.engine import open_engine
from coordinator.domain.names import PodName, RepositoryName
from coordinator.kafka.topics import ensure_topics
from coordinator.pods import table as pods
from coordinator.settings import Settings, make_settings
from coordinator.stack.distribution import DistributionRegistry, Notifications, Storage
from coordinator.stack.guard import Guard
from coordinator.stack.noida import EmbeddedKafka
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.stack.supervisor import LOOPBACK, Stack
from coordinator.tokens import table as tokens
from tests.services.apache_kafka import CACHE, ApacheKafka

ROOT = Path(__file__).parents[1]
PODS = 4

BrokerKind = Literal["embedded", "apache"]


class Database(NamedTuple):
    """One migrated database, with the workload's pods."""

    url: str
    #: Settings that name this database and the store.
    values: dict[str, Any]
    #: Event token of each pod.
    pod_tokens: dict[str, str]
    read_token: str


class Broker(NamedTuple):
    kind: BrokerKind
    bootstrap: str
    pid: int


def describe_no_apache() -> str | None:
    """Return why Apache Kafka cannot be measured here; None if it can."""
    if shutil.which("java") is None:
        return "Apache Kafka needs java"
    if shutil.which("mvn") is None and not CACHE.exists():
        return "Apache Kafka needs mvn to be fetched"
    return None


class Services:
    """A context manager around all that a run starts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = Stack(directory / "stack", services=("postgres", "s3"))
        self._started = 0

    def __enter__(self) -> Self:
        self._stack.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.stop()

    @property
    def server_url(self) -> str:
        """The URL of a database that a measurement may change freely."""
        url = self._stack.endpoints.database_url
        assert url is not None
        return url

    @property
    def postgres_pid(self) -> int:
        file = self.directory / "stack" / "postgres" / "data" / "postmaster.pid"
        return int(file.read_text().split()[0])

    @property
    def store_pid(self) -> int:
        (found,) = (child for child in psutil.Process().children(recursive=True) if child.name() == "weed")
        return int(found.pid)

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        name = self._name("bench")
        with psycopg.connect(self.server_url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            try:
                yield self._make_database(urlunsplit(urlsplit(self.server_url)._replace(path=f"/{name}")))
            finally:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
                # Otherwise the next measurement would pay for it.
                connection.execute("CHECKPOINT")

    @contextlib.contextmanager
    def broker(self, kind: BrokerKind, partitions: int, database: Database) -> Iterator[Broker]:
        """A new broker with Baleen's topics."""
        with self._start_embedded() if kind == "embedded" else self._start_apache() as broker:
            ensure_topics(settings_of(database, broker, kafka_partitions=partitions))
            yield broker

    @contextlib.contextmanager
    def worker(self, database: Database, broker: Broker, partitions: int) -> Iterator[ManagedProcess]:
        """One worker process; ready or not when the block begins."""
        environment = _make_environment(
            _make_values(database, broker, {"kafka_partitions": partitions, "worker_group": self._name("group")})
        )
        with self._start_child("worker", [sys.executable, "-m", "workers"], environment) as process:
            yield process

    @contextlib.contextmanager
    def api(self, database: Database, broker: Broker) -> Iterator[str]:
        """The base URL of one API process that is ready."""
        port = self._port("api")
        process = ManagedProcess(
            name="api",
            argv=[sys.executable, "-m", "bench.api_process", str(port)],
            env=_make_environment(_make_values(database, broker, {})),
            cwd=self._folder("api"),
            log_file=self.directory / "logs" / "api.log",
            probe=lambda: _is_answering(f"http://{LOOPBACK}:{port}/readyz"),
        )
        self._stack.add(process)
        try:
            yield f"http://{LOOPBACK}:{port}"
        finally:
            self._stack.remove(process)

    @contextlib.contextmanager
    def registry(
        self,
        database: Database,
        pod: str,
        webhook: str,
        *,
        redirect: bool = False,
        pulls: bool = False,
        kind: type[DistributionRegistry] = DistributionRegistry,
    ) -> Iterator[tuple[str, ManagedProcess]]:
        """The base URL of a CNCF distribution of the pod, and its process."""
        known = database.values
        made = kind(
            name=pod,
            directory=self._folder(pod),
            port=self._port(pod),
            storage=Storage(
                endpoint_url=known["s3_endpoint_url"],
                bucket=known["s3_bucket"],
                root=known["s3_root"],
                access_key=known["s3_access_key"],
                secret_key=known["s3_secret_key"],
            ),
            http_secret="bench",
            notifications=Notifications(url=webhook, token=database.pod_tokens[pod], pulls=pulls),
            redirect=redirect,
        )
        process = self._stack.add(made.process())
        try:
            yield made.url, process
        finally:
            self._stack.remove(process)

    @contextlib.contextmanager
    def program(
        self, name: str, module: str, arguments: list[str], values: Mapping[str, Any] | None = None
    ) -> Iterator[ManagedProcess]:
        """Another program of this folder, with these settings."""
        with self._start_child(
            name, [sys.executable, "-m", module, *arguments], _make_environment(values or {})
        ) as process:
            yield process

    @contextlib.contextmanager
    def _start_child(self, name: str, argv: list[str], environment: Mapping[str, str]) -> Iterator[ManagedProcess]:
        process = ManagedProcess(
            name=name,
            argv=argv,
            env=environment,
            cwd=self._folder(name),
            log_file=self.directory / "logs" / f"{name}.log",
        )
        self._stack.add(process)
        try:
            yield process
        finally:
            self._stack.remove(process)

    def _make_database(self, url: str) -> Database:
        migrate.upgrade(url)
        ends = self._stack.endpoints
        values: dict[str, Any] = {
            "database_url": url,
            "s3_endpoint_url": ends.s3_endpoint_url,
            "s3_access_key": ends.s3_access_key,
            "s3_secret_key": ends.s3_secret_key,
            "s3_bucket": ends.s3_bucket,
            "s3_root": ends.s3_root,
        }
        return _register_pods(url, values)

    @contextlib.contextmanager
    def _start_embedded(self) -> Iterator[Broker]:
        directory = self._folder("noida")
        broker = EmbeddedKafka(
            directory, self.directory / "logs" / "noida.log", host=LOOPBACK, port=self._port("noida")
        )
        broker.prepare()
        process = broker.process()
        self._stack.add(process)
        try:
            yield Broker("embedded", broker.bootstrap, process.pid)
        finally:
            # An orderly end would write the whole log, which is not needed.
            process.kill()
            self._stack.remove(process)
            shutil.rmtree(directory, ignore_errors=True)

    @contextlib.contextmanager
    def _start_apache(self) -> Iterator[Broker]:
        guard, directory = Guard(), self._folder("apache")
        try:
            with ApacheKafka(directory, guard=guard) as kafka:
                yield Broker("apache", kafka.bootstrap, kafka.pid)
        finally:
            guard.close()
            shutil.rmtree(directory, ignore_errors=True)

    def _name(self, kind: str) -> str:
        self._started += 1
        return f"{kind}_{self._started}"

    def _folder(self, kind: str) -> Path:
        folder = self.directory / self._name(kind)
        folder.mkdir()
        return folder

    def _port(self, kind: str) -> int:
        return Ports(self.directory / f"{self._name(kind)}.json", LOOPBACK).take(kind)


def settings_of(database: Database, broker: Broker, **more: Any) -> Settings:
    return make_settings(_make_values(database, broker, more))


def _make_values(database: Database, broker: Broker, more: dict[str, Any]) -> dict[str, Any]:
    values = database.values | {"kafka_bootstrap": broker.bootstrap} | more
    return {name: value for name, value in values.items() if value is not None}


def _make_environment(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment with these settings of Baleen and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BALEEN_")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path} | {f"BALEEN_{name.upper()}": str(value) for name, value in values.items()}


def _register_pods(url: str, values: dict[str, Any]) -> Database:
    engine = open_engine(url, name="test")
    try:
        found = {}
        for name in make_pod_names(PODS):
            pod = pods.NewPod(name=PodName(name), prefixes=[RepositoryName(name)])
            found[name] = (pods.add_pod(engine, pod)).reveal()
        read = tokens.create_token(engine, "bench", "read")
        return Database(url, values, found, read.reveal())
    finally:
        engine.dispose()


def _is_answering(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False
