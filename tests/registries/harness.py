"""The whole path on real processes: `baleen up`, registries as pods, and what the bucket says beside the table.

Route: `Baleen.started` -> `add_pod` -> `registry` -> pushes and deletes -> `agree`, which waits until holdings, links
and counts of the table are those that the links in the bucket make, and then has the table recomputed.
Not here: what is pushed and deleted (test_*.py), skopeo (skopeo.py), the webhook's proxy (proxy.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import httpx
import psycopg

from coordinator import settings as configuration
from coordinator.audit import check
from coordinator.compose import database as compose_database
from coordinator.compose import store as compose_store
from coordinator.db.engine import temporary_engine
from coordinator.demo import bucket
from coordinator.errors import UnavailableError
from coordinator.kafka.log import LogInspector
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.pods import prober
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Notifications, Storage
from coordinator.stack.model_registry import ModelRegistry
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.storage.layout import BASE
from coordinator.storage.port import ObjectInfo, ObjectStore
from coordinator.table.progress import Partition
from tests.cli.conftest import program_environment
from tests.support.tables import add_done_job, id_of
from tests.support.wait import eventually

HOST = "127.0.0.1"
UP_S = 180.0
#: Of each request to Baleen, also by registries: one that gives up earlier tells the same again.
REQUEST_S = 30
#: Of each request to a registry that has Baleen make mounts: longer than Baleen waits for one.
CLIENT_S = 180.0
HTTP_SECRET = "shared-by-all-pods"
EVENTS_TYPE = "application/vnd.docker.distribution.events.v1+json"
LAYERS = "/_layers/sha256/"
#: What stands in the command of each process that `baleen up` starts.
SERVICES = {name: name for name in ("api", "postgres", "kafka")}
SERVICES |= {"worker": "workers", "scheduler": "workers.scheduler"}

Pairs = set[tuple[str, str]]
PROBED = {prober.make_probe_image().digest, *(blob.digest for blob in prober.make_probe_image().blobs)}


@dataclass(frozen=True)
class Pod:
    """A pod as it is registered, with the token that its notifications carry."""

    name: str
    token: str = field(repr=False)


class SilentDistribution(DistributionRegistry):
    """A registry whose operator has not asked for references in its events."""

    def configuration(self) -> dict[str, object]:
        known = super().configuration()
        notifications = known["notifications"]
        assert isinstance(notifications, dict)
        return known | {"notifications": notifications | {"events": {"includereferences": False}}}


class Registry:
    """One registry process that can be killed and started again with other notifications."""

    def __init__(self, children: Children, made: DistributionRegistry | ModelRegistry) -> None:
        self._children = children
        self._made = made
        self._process = children.start(made.process())
        self.url = made.url
        self.address = f"{HOST}:{made.port}"

    def log(self) -> str:
        return (self._made.directory / f"{self._made.name}.log").read_text()

    def kill(self) -> None:
        self._children.kill(self._process)

    def end(self) -> None:
        """Kill it if it lives."""
        self._children.end(self._process)

    def terminate(self) -> None:
        """Ask the process to end, and wait until it has."""
        self._process.stop()

    def pause(self) -> None:
        """Stop the process where it is: it keeps its connections and says nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def start(self, **notifications: Any) -> None:
        """Start anew; what is named of its notifications is other than before."""
        if notifications:
            assert self._made.notifications is not None
            self._made = replace(self._made, notifications=replace(self._made.notifications, **notifications))
        self._process = self._children.start(self._made.process())

    def start_as(self, kind: type[DistributionRegistry]) -> None:
        """Start anew at the same address, as the same program with another configuration."""
        self._made = kind(**{each.name: getattr(self._made, each.name) for each in fields(self._made)})
        self.start()


class ReadOnce:
    """A store as it is now, of which no manifest is read again that has not changed: a bucket of many tests has
    hundreds.
    """

    def __init__(self, store: ObjectStore, read: dict[ObjectInfo, bytes]) -> None:
        self._store = store
        self._read = read
        self._found = {entry.key: entry for entry in store.walk(f"{BASE}/blobs/")}

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._store.walk(prefix)

    def get(self, key: str, *, limit: int) -> bytes:
        entry = self._found.get(key)
        if entry is None:
            return self._store.get(key, limit=limit)
        if entry not in self._read:
            self._read[entry] = self._store.get(key, limit=limit)
        return self._read[entry]


class Baleen:
    """A running `baleen up`, its API, its table and its bucket."""

    def __init__(self, directory: Path, children: Children, more: Mapping[str, str] | None = None) -> None:
        """`more` are settings of this one alone, by their names in the environment."""
        self._directory = directory
        self._children = children
        self._registries: list[tuple[Pod, Registry]] = []
        self._ports = Ports(directory / "ports.json", HOST)
        port = self._ports.take("api")
        self.url = f"http://{HOST}:{port}"
        data_dir = directory / "data"
        self._up = children.start(
            ManagedProcess(
                name="baleen up",
                argv=[sys.executable, "-m", "coordinator.cli", "up", "--data-dir", data_dir, "--port", str(port)],
                log_file=directory / "up.log",
                env=_environment() | dict(more or {}),
                cwd=Path(__file__).parents[2],
                stop_signal=signal.SIGTERM,
                stop_timeout=60,
                ready_timeout=UP_S,
                probe=self._ready,
            )
        )
        self.settings = configuration.load({"BALEEN_DATA_DIR": str(data_dir)})
        self.store: ObjectStore = compose_store.make_object_store(self.settings)
        self._manifests: dict[ObjectInfo, bytes] = {}
        assert self.settings.token is not None
        headers = {"Authorization": f"Bearer {self.settings.token.reveal()}"}
        self.api = httpx.Client(base_url=self.url, headers=headers, timeout=REQUEST_S, trust_env=False)

    @classmethod
    @contextmanager
    def started(cls, directory: Path, more: Mapping[str, str] | None = None) -> Iterator[Baleen]:
        with Children() as children:
            baleen = cls(directory, children, more)
            with baleen.api:
                yield baleen

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API, which must succeed; return its answer."""
        answer = self.api.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    # Pods and registries

    def add_pod(self, name: str, *, reconciled: bool = True, **others: str) -> Pod:
        """Register a pod; `reconciled` as if its first reconcile were done, so that none repairs what a test breaks."""
        added = self.ask("POST", "/v1/pods", {"name": name, "prefixes": [name]} | others)
        if reconciled:
            with self._open_database() as connection:
                add_done_job(connection, id_of(name))
            # One may have been asked for in between.
            eventually(lambda: not self._reconciling(name), why=lambda: self._reconciling(name))
        return Pod(name, added["event_token"])

    def _reconciling(self, name: str) -> list[tuple[Any, ...]]:
        return self.rows(
            "SELECT j.id, j.state FROM jobs j JOIN pods p ON p.id = j.pod_id"
            " WHERE p.name = %s AND j.kind = 'reconcile' AND j.state IN ('waiting', 'running')",
            name,
        )

    def reconcile(self, pod: Pod) -> dict[str, Any]:
        """Request a reconcile and wait until the scheduler has done it; return the job."""
        return self.reconciled(self.ask("POST", f"/v1/pods/{pod.name}/reconcile", {"why": "a test"})["id"])

    def reconciled(self, number: int) -> dict[str, Any]:
        job: dict[str, Any] = {}

        def ended() -> bool:
            nonlocal job
            job = self.api.get(f"/v1/jobs/{number}").json()
            return job["state"] in {"done", "failed"}

        eventually(ended, why=lambda: job)
        assert job["state"] == "done", job
        return job

    def list_registries(self, pod: Pod, *registries: Registry) -> None:
        """List the pod's registries, which are probed from now on."""
        urls = [registry.url for registry in registries]
        self.ask("PUT", f"/v1/pods/{pod.name}/registries", {"registries": urls})

    def pod(self, pod: Pod) -> dict[str, Any]:
        shown: dict[str, Any] = self.ask("GET", f"/v1/pods/{pod.name}")
        return shown

    def webhook(self, pod: Pod) -> str:
        return f"{self.url}/v1/events/{pod.name}"

    def notifications(self, pod: Pod) -> Notifications:
        return Notifications(
            url=self.webhook(pod), token=pod.token, timeout=f"{REQUEST_S}s", backoff="100ms", threshold=1
        )

    def registry(
        self,
        kind: Callable[..., DistributionRegistry | ModelRegistry],
        pod: Pod,
        process: str = "1",
        *,
        s3_url: str | None = None,
        root: str | None = None,
        **notifications: Any,
    ) -> Registry:
        """Start a registry of the pod; `kind` makes it. `s3_url` and `root` of its store, and `notifications` are other
        than usual.
        """
        name = f"{pod.name}-{process}"
        storage = self._storage(pod)
        if root is not None:
            storage = replace(storage, root=root)
        known: dict[str, Any] = {
            "name": name,
            "directory": self._directory / name,
            "port": self._ports.take(name),
            "storage": storage if s3_url is None else replace(storage, endpoint_url=s3_url),
            "notifications": replace(self.notifications(pod), **notifications),
        }
        if kind is not ModelRegistry:
            known["http_secret"] = HTTP_SECRET
        registry = Registry(self._children, kind(**known))
        self._registries.append((pod, registry))
        return registry

    @contextmanager
    def at_rest_after(self) -> Iterator[None]:
        """Let those registries end that the block starts, and ask nobody about them any more."""
        before = len(self._registries)
        try:
            yield
        finally:
            for pod, registry in self._registries[before:]:
                self.list_registries(pod)
                registry.end()
            del self._registries[before:]

    def post(self, pod: Pod, *events: Mapping[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {pod.token}", "Content-Type": EVENTS_TYPE}
        answer = httpx.post(
            self.webhook(pod), json={"events": events}, headers=headers, timeout=REQUEST_S, trust_env=False
        )
        assert answer.status_code == 202, answer.text

    def kill(self, service: str) -> None:
        """Kill what `baleen up` has started; a worker, a scheduler and an API it starts again."""
        os.kill(self._child(service), signal.SIGKILL)

    @contextmanager
    def frozen(self, service: str) -> Iterator[None]:
        """Stop a service, and all that it has started, where they are: they keep their connections and say nothing."""
        processes = [self._child(service)]
        for process in processes:
            # Before its own are looked for, and moved again after them: while it stands still, none of them is gone.
            os.kill(process, signal.SIGSTOP)
            eventually(lambda process=process: _stands_still(process))  # type: ignore[misc]
            processes += _children(process)
        try:
            yield
        finally:
            for process in reversed(processes):
                os.kill(process, signal.SIGCONT)

    def is_up(self) -> bool:
        return self._up.exit_status is None

    def _child(self, service: str) -> int:
        """The process of a service, which may be about to be started again."""
        found: list[int] = []

        def runs() -> bool:
            found[:] = [each for each in _children(self._up.pid) if SERVICES[service] in _words(each)]
            return bool(found)

        eventually(runs)
        return found[0]

    # What is true, and what is told

    def await_applied(self) -> None:
        """Wait until all is applied that Kafka has now. Probes go on: there is always something that is not."""
        ends: dict[Partition, int] = {}

        def has_ends() -> bool:
            with contextlib.suppress(UnavailableError), LogInspector(self.settings) as log:
                for topic in (EVENTS, DEAD_LETTERS):
                    found = log.read_state(topic).partitions.items()
                    ends.update({(topic, number): offsets.latest for number, offsets in found})
                return True
            return False

        def behind() -> list[Partition]:
            rows = self.rows("SELECT topic, partition, next_offset FROM partition_progress")
            stands = {(topic, number): offset for topic, number, offset in rows}
            return [each for each, end in ends.items() if stands.get(each, 0) < end]

        eventually(has_ends, why=self.status)
        eventually(lambda: not behind(), why=lambda: (behind(), self.status()))

    def agree(self) -> None:
        """Wait until the table says what the bucket says, and nothing was left aside; then have it recomputed."""
        eventually(lambda: not self.differences(), why=self.differences)
        self.await_applied()
        # What was still on its way when they agreed must not have parted them again.
        eventually(lambda: not self.differences(), why=self.differences)
        assert not (dead_letters := self.dead_letters()), dead_letters
        # Of pods whose registries ended with their tests gaps open and close in their own time.
        gaps = {pod.name: self.pod(pod)["gaps"]["open"] for pod, _ in self._registries}
        assert not any(gaps.values()), gaps
        with temporary_engine(self._database(), name="test") as engine:
            report = check.check_counts(engine)
        assert report.is_healthy, report

    def differences(self) -> list[str]:
        """Where the table and the links in the bucket part, both ways.

        Not of the images that probes push by themselves: a registry that ends with its test may owe those events.
        """
        # The table first: a registry writes its links before it tells of them.
        holdings, links, counts, sizes = self.holdings(), self.links(), self.counts(), self.sizes()
        wanted = bucket.read_expected_counts(cast("ObjectStore", ReadOnce(self.store, self._manifests)))
        in_bucket = layer_links(self.store)
        found = [f"holding {pair}" for pair in sorted(holdings ^ wanted.holdings) if not of_a_probe(pair)]
        found += [f"link {pair}" for pair in sorted(links ^ in_bucket) if not of_a_probe(pair)]
        found += [
            f"{digest}: counted {counts.get(digest)}, wanted {wanted.reference_counts.get(digest)}"
            for digest in sorted(counts.keys() | wanted.reference_counts.keys())
            if digest not in PROBED and counts.get(digest) != wanted.reference_counts.get(digest)
        ]
        found += [
            f"{digest}: {size} bytes, stored are {wanted.sizes[digest]}"
            for digest, size in sorted(sizes.items())
            if digest in wanted.sizes and size not in {wanted.sizes[digest], -1}
        ]
        return found

    def holdings(self) -> Pairs:
        return self._pairs("repository_manifests", "manifest_id")

    def links(self) -> Pairs:
        return self._pairs("repository_blobs", "blob_id")

    def counts(self) -> dict[str, int]:
        found = self.rows("SELECT encode(digest, 'hex'), reference_count FROM blobs WHERE reference_count > 0")
        return {f"sha256:{row[0]}": row[1] for row in found}

    def sizes(self) -> dict[str, int]:
        return {f"sha256:{row[0]}": row[1] for row in self.rows("SELECT encode(digest, 'hex'), size FROM blobs")}

    def holds(self, repository: str, digest: str) -> bool:
        return (repository, digest) in self.holdings()

    def blob(self, digest: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.ask("GET", f"/v1/blobs/{digest}")
        return shown

    def status(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.api.get("/v1/status").json()
        return shown

    def dead_letters(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.api.get("/v1/dead-letters").json()["items"]
        return items

    def refused(self, reason: str) -> float:
        return self.counted("baleen_ingest_refused_total{", f'reason="{reason}"')

    def not_mounted(self, reason: str) -> float:
        return self.counted(f'baleen_mounts_total{{outcome="forwarded",reason="{reason}"}} ')

    def counted(self, metric: str, label: str = "") -> float:
        """The sum of the metrics that begin so and have this label."""
        lines = self.api.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric) and label in line)

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self._open_database() as connection:
            return connection.execute(statement, parameters).fetchall()

    def _open_database(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._database(), autocommit=True, connect_timeout=5)

    def _pairs(self, table: str, column: str) -> Pairs:
        found = self.rows(
            f"SELECT r.name, encode(b.digest, 'hex') FROM {table} f "
            f"JOIN blobs b ON b.id = f.{column} JOIN repositories r ON r.id = f.repository_id"
        )
        return {(row[0], f"sha256:{row[1]}") for row in found}

    def _database(self) -> str:
        return compose_database.database_url(self.settings)

    def _storage(self, _pod: Pod | None = None) -> Storage:
        names = ("endpoint_url", "bucket", "root", "access_key")
        known = {name: getattr(self.settings, f"s3_{name}") for name in names}
        assert self.settings.s3_secret_key is not None
        return Storage(**known, secret_key=self.settings.s3_secret_key.reveal())

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False


def _children(parent: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _stands_still(process: int) -> bool:
    """Whether a process that was told to stop has, or has ended."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in {"T", "Z"}


def _words(process: int) -> set[str]:
    """The words of the command that a process was started with; of a program without its directory."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended
        return set()
    return {*words, Path(words[0]).name}


def of_a_probe(pair: tuple[str, str]) -> bool:
    """Whether a (repository, digest) is of the image that the prober pushes."""
    return pair[0].endswith(f"/{prober.REPOSITORY}")


def layer_links(store: ObjectStore) -> Pairs:
    """(repository, blob) of every `_layers` link in the bucket."""
    found: Pairs = set()
    for entry in store.walk(f"{BASE}/repositories/"):
        path = entry.key.removeprefix(f"{BASE}/repositories/")
        if LAYERS in path and path.endswith("/link"):
            repository, _, rest = path.partition(LAYERS)
            found.add((repository, f"sha256:{rest.removesuffix('/link')}"))
    return found


def _environment() -> dict[str, str]:
    """All have one clock here: deletes soon after a push are doubtful, later ones believed, and both ways are tried.

    Registries that are listed are probed often; silence is told soon.
    """
    return program_environment({"safety_clock_skew": "1s", "probe_every": "500ms", "probe_silence": "3s"})
