"""Patients: registries without a fault, and with one fault each.

Route: `Clinic` (a `baleen up` on a store with users) -> `admit` (a pod and its registry processes) -> `examine`, by the
doctor in this process -> what was found, and what is left in the bucket and the table.
Not here: what must hold (test_*.py).
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec.structs import replace as changed

from coordinator.compose import command as compose_command
from coordinator.doctor.examine import VisitReport, examine
from coordinator.domain.findings import Finding, Result
from coordinator.domain.names import parse_pod
from coordinator.ingest import delays
from coordinator.pods.prober import make_probe_image
from coordinator.registry.images import DOCKER, OCI
from coordinator.settings import Secret, Settings
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Notifications, Storage
from coordinator.stack.model_notifications import Webhook
from coordinator.stack.model_server import ModelServer
from coordinator.stack.model_storage import ModelStorage
from coordinator.stack.seaweedfs import BUCKET
from coordinator.storage.s3 import S3ObjectStore
from tests.doctor.store import BALEEN, POD, ROOT, Key, Store
from tests.registries.harness import HTTP_SECRET, Baleen, Pod, Registry
from tests.support.wait import eventually

#: For what comes, also on a slow machine; and for visits to pods that do not tell all, which take so long.
PATIENCE_S, IMPATIENCE_S = 60.0, 8.0
PROBES = "/baleen-probe/"
#: The directory with the files of pods of kind `gitlab`.
GITLAB = "gitlab"


class Clinic:
    def __init__(self, baleen: Baleen, store: Store, directory: Path, children: Children) -> None:
        self.baleen = baleen
        self.store = store
        self._directory = directory
        self._children = children

    @classmethod
    @contextmanager
    def opened(cls, directory: Path, more: Mapping[str, str] | None = None) -> Iterator[Clinic]:
        """`more` are other settings of Baleen, without their prefix."""
        with Children() as children:
            store = Store(directory)
            store.prepare()
            children.start(store.process())
            settings = {
                "S3_ENDPOINT_URL": store.url,
                "S3_BUCKET": BUCKET,
                "S3_ROOT": ROOT,
                "S3_ACCESS_KEY": BALEEN.access,
                "S3_SECRET_KEY": BALEEN.secret,
                # The pods are not here for the prober, and most of them are away.
                "PROBE_EVERY": "10s",
                "GITLAB_DATABASES": str(directory / GITLAB),
            }
            (directory / GITLAB).mkdir()
            settings |= more or {}
            baleen = Baleen(directory, children, {f"BALEEN_{name}": value for name, value in settings.items()})
            with baleen.api:
                yield cls(baleen, store, directory, children)

    # Patients

    def admit(self, name: str, roots: Sequence[str] = (ROOT,), probe: str = "push", kind: str = "link") -> Pod:
        """Register a pod; `POD` is its key from now on, by the policy that `baleen pods policy` prints for it."""
        pod = self.baleen.add_pod(name, probe=probe, kind=kind)
        self.store.restrain({POD: [name]}, roots)
        return pod

    def storage(self, *, root: str = ROOT, key: Key = POD) -> Storage:
        return Storage(
            endpoint_url=self.store.url, bucket=BUCKET, root=root, access_key=key.access, secret_key=key.secret
        )

    @contextmanager
    def models(self, pod: Pod, *processes: Callable[[Clinic, Pod], ModelServer]) -> Iterator[list[str]]:
        """Run processes of the model registry in threads, list them as the pod's, and give their URLs."""
        servers = [process(self, pod) for process in processes]
        threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
        for thread in threads:
            thread.start()
        try:
            yield self.listed(pod, *(server.url for server in servers))
        finally:
            self.listed(pod)
            for server in servers:
                server.shutdown()
                server.close()
            for thread in threads:
                thread.join(10)

    @contextmanager
    def distributions(self, pod: Pod, *kinds: type[DistributionRegistry], **storage: Any) -> Iterator[list[str]]:
        """The same with processes of the real program."""
        made = [self._distribution(pod, kind, number, **storage) for number, kind in enumerate(kinds)]
        running = [self._children.start(each.process()) for each in made]
        try:
            yield self.listed(pod, *(each.url for each in made))
        finally:
            self.listed(pod)
            for process in running:
                self._children.kill(process)

    def registry(self, pod: Pod) -> Registry:
        """Start a process of the real program that can be killed and started again."""
        return Registry(self._children, self._distribution(pod, DistributionRegistry, 0))

    def _distribution(
        self, pod: Pod, kind: type[DistributionRegistry], number: int, **storage: Any
    ) -> DistributionRegistry:
        name = f"{pod.name}-{number}"
        return kind(
            name=name,
            directory=self._directory / name,
            port=self.baleen._ports.take(name),
            storage=self.storage(**storage),
            notifications=self.notifications(pod),
            http_secret=HTTP_SECRET,
        )

    def notifications(self, pod: Pod) -> Notifications:
        return self.baleen.notifications(pod)

    def listed(self, pod: Pod, *urls: str) -> list[str]:
        self.baleen.ask("PUT", f"/v1/pods/{pod.name}/registries", {"registries": urls})
        return list(urls)

    def report(self, pod: Pod, instance: str) -> None:
        """Post an event that changes nothing, as another process of the pod's registry."""
        event = {"id": instance, "timestamp": dt.datetime.now(dt.UTC).isoformat(), "action": "delete"}
        target = {"repository": f"{pod.name}/app", "tag": "v1"}

        def posted() -> bool:
            try:
                self.baleen.post(pod, event | {"target": target, "source": {"instanceID": instance}})
            except AssertionError:  # ingest may not know a new pod for a second
                return False
            return True

        eventually(posted)

    @property
    def data_dir(self) -> Path:
        """That of `baleen up`, where commands find its services."""
        return Path(self.baleen.settings.data_dir)

    def await_applied(self) -> None:
        self.baleen.await_applied()

    def write_gitlab(self, pod: Pod, database_url: str | None, *debug_urls: str) -> None:
        """Write where the registry's database of a pod is, and its processes' debug addresses; None is nowhere."""
        directory = self._directory / GITLAB
        (directory / pod.name).unlink(missing_ok=True)
        if database_url is not None:
            (directory / pod.name).write_text(f"{database_url}\n")
        (directory / f"{pod.name}.debug").write_text("\n".join(["# Processes that serve clients", *debug_urls, ""]))

    # Visits

    def settings(self, key: Key | None = POD, **others: Any) -> Settings:
        """Baleen's settings as the doctor's command has them, with the pod's key."""
        given: dict[str, Any] = {"safety_clock_skew": 1.0, "unsafe_times": True}
        given["gitlab_databases"] = str(self._directory / GITLAB)
        if key is not None:
            given |= {"pod_access_key": key.access, "pod_secret_key": Secret(key.secret)}
        return changed(self.baleen.settings, **(given | others))

    def examine(
        self,
        pod: Pod,
        key: Key | None = POD,
        on_step: Callable[[str], None] = lambda what: None,
        patience: float = PATIENCE_S,
        **others: Any,
    ) -> VisitReport:
        settings = self.settings(key, **others)
        with compose_command.open_instruments(settings, parse_pod(pod.name), patience=patience) as instruments:
            return examine(instruments, parse_pod(pod.name), on_step)

    # What is left

    def everything(self) -> tuple[set[tuple[str, str]], dict[str, list[tuple[Any, ...]]]]:
        """All that bucket and table have, except the prober's image."""
        image = make_probe_image()
        digests = [image.digest, *(blob.digest for blob in image.blobs)]
        probed = [digest.partition(":")[2] for digest in digests]
        stored = {
            (key, version)
            for key, version in self.store.everything()
            if PROBES not in key and not any(digest in key for digest in probed)
        }
        return stored, {what: self.baleen.rows(statement, probed) for what, statement in _TABLE.items()}


_TABLE = {
    "repositories": """
        SELECT name FROM repositories WHERE name NOT LIKE '%%/baleen-probe' AND %s::text[] IS NOT NULL ORDER BY 1
    """,
    "blobs": """
        SELECT encode(digest, 'hex'), reference_count, link_count, state FROM blobs
        WHERE encode(digest, 'hex') <> ALL (%s) ORDER BY 1
    """,
    "manifests": """
        SELECT encode(b.digest, 'hex') FROM manifests m JOIN blobs b USING (id)
        WHERE encode(b.digest, 'hex') <> ALL (%s) ORDER BY 1
    """,
    "holdings": """
        SELECT r.name, encode(b.digest, 'hex') FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
        JOIN blobs b ON b.id = h.manifest_id WHERE encode(b.digest, 'hex') <> ALL (%s) ORDER BY 1, 2
    """,
    "links": """
        SELECT r.name, encode(b.digest, 'hex') FROM repository_blobs l JOIN repositories r ON r.id = l.repository_id
        JOIN blobs b ON b.id = l.blob_id WHERE encode(b.digest, 'hex') <> ALL (%s) ORDER BY 1, 2
    """,
    "removals": """
        SELECT r.name, encode(x.digest, 'hex') FROM removals x JOIN repositories r ON r.id = x.repository_id
        WHERE encode(x.digest, 'hex') <> ALL (%s) ORDER BY 1, 2
    """,
    "dead letters": "SELECT pod, reason, detail FROM dead_letters WHERE %s::text[] IS NOT NULL ORDER BY id",
}


def not_proved(report: VisitReport) -> dict[str, Result]:
    return {found.check: found.result for found in report.findings if found.result is not Result.PROVED}


def of(report: VisitReport, check: str) -> Finding:
    (found,) = [found for found in report.findings if found.check == check]
    return found


# The model registry, as it should be and otherwise

Emit = Callable[[str, dict[str, Any], dict[str, str]], None]
#: A registry's notifier, with something in its way.
Wrap = Callable[[Emit], Emit]


def model(
    *,
    root: str = ROOT,
    key: Key = POD,
    storage: Callable[[S3ObjectStore], ModelStorage] = ModelStorage,
    wrap: Wrap = lambda emit: emit,
    handler: Callable[[type[Any]], type[Any]] = lambda known: known,
    token: str | None = None,
    ahead_s: int = 0,
) -> Callable[[Clinic, Pod], ModelServer]:
    """Make a process of a pod, whose clock is ahead by `ahead_s`."""

    def made(clinic: Clinic, pod: Pod) -> ModelServer:
        store = StoreOfPod(**asdict(clinic.storage(root=root, key=key)))
        notifications = clinic.notifications(pod)
        webhook = Webhook(
            notifications.url, token or notifications.token, timeout_seconds=5, backoff_seconds=0.05, pulls=True
        )
        server = ModelServer(
            "127.0.0.1", 0, storage(store), webhook, clock=lambda: time.time_ns() + ahead_s * 1_000_000_000
        )
        server.RequestHandlerClass = handler(server.RequestHandlerClass)  # type: ignore[arg-type]
        server.notifier.emit = wrap(server.notifier.emit)  # type: ignore[method-assign]
        return server

    return made


class StoreOfPod(S3ObjectStore):
    """The store as a registry uses it, which may not read the bucket as a whole."""

    def check(self) -> None:
        pass


class CachingStorage(ModelStorage):
    """Looks for a blob once, and never again."""

    def __init__(self, store: S3ObjectStore) -> None:
        super().__init__(store)
        self._known: dict[tuple[str, str], int] = {}

    def layer_size(self, repository: str, digest: str) -> int | None:
        if (repository, digest) not in self._known and (size := super().layer_size(repository, digest)) is not None:
            self._known[repository, digest] = size
        return self._known.get((repository, digest))


def without(action: str, media_type: str | None = None) -> Wrap:
    """Do not send events of an action, or those of one media type."""

    def wrap(emit: Emit) -> Emit:
        def emit_some(done: str, target: dict[str, Any], request: dict[str, str]) -> None:
            if done != action or media_type not in {None, target.get("mediaType")}:
                emit(done, target, request)

        return emit_some

    return wrap


def without_references(media_type: str | None = None) -> Wrap:
    """Send events, or those of one media type, without the references of manifests."""

    def wrap(emit: Emit) -> Emit:
        def emit_less(action: str, target: dict[str, Any], request: dict[str, str]) -> None:
            if media_type in {None, target.get("mediaType")}:
                target = {name: value for name, value in target.items() if name != "references"}
            emit(action, target, request)

        return emit_less

    return wrap


def asking_no_delay(emit: Emit) -> Emit:
    """Events do not ask ingest to delay them, though the doctor did."""

    def emit_plainly(action: str, target: dict[str, Any], request: dict[str, str]) -> None:
        asks = delays.AGENT_PREFIX in request["useragent"]
        emit(action, target, request | {"useragent": "baleen"} if asks else request)

    return emit_plainly


def swapping(emit: Emit) -> Emit:
    """Report the first push to a scratch repository after the next one."""
    waiting: list[tuple[str, dict[str, Any], dict[str, str]]] = []
    swapped = False

    def emit_later(action: str, target: dict[str, Any], request: dict[str, str]) -> None:
        nonlocal swapped
        if not swapped and "/baleen-doctor-" in target["repository"]:
            swapped = True
            waiting.append((action, target, request))
            return
        emit(action, target, request)
        # A probe's event may come between, and changes nobody's place.
        while waiting and "/baleen-doctor-" in target["repository"]:
            emit(*waiting.pop())

    return emit_later


def refusing_deletes(handler: type[Any]) -> type[Any]:
    class Refusing(handler):  # type: ignore[misc]
        def _refuse_delete(self, **_: str) -> None:
            self._answer(405)

        _delete_manifest = _delete_blob = _refuse_delete

    return Refusing


# The real program, otherwise than it should be


class Caching(DistributionRegistry):
    def configuration(self) -> dict[str, object]:
        return _with(super().configuration(), "storage", cache={"blobdescriptor": "inmemory"})


class Silent(DistributionRegistry):
    """References are not in its events."""

    def configuration(self) -> dict[str, object]:
        return _with(super().configuration(), "notifications", events={"includereferences": False})


class Talkative(DistributionRegistry):
    """Pulls are not ignored: in 2.8 they are only beside some media type."""

    def configuration(self) -> dict[str, object]:
        return _ignoring(super().configuration(), {"actions": ["pull"]})


class HalfDeaf(DistributionRegistry):
    """Docker's manifests and mounts are ignored."""

    def configuration(self) -> dict[str, object]:
        ignore = {"actions": ["mount"], "mediatypes": [DOCKER.manifest, DOCKER.index]}
        return _ignoring(super().configuration(), ignore)


NOTHING = "application/x-nothing"
OCTETS = "application/octet-stream"


class TwoQueues(DistributionRegistry):
    """Pulls go by one queue of the process, and all else by another."""

    def configuration(self) -> dict[str, object]:
        pushes = {"actions": ["pull"], "mediatypes": [NOTHING]}
        pulls = {"actions": ["push", "mount", "delete"], "mediatypes": [NOTHING]}
        return _ignoring(super().configuration(), pushes, pulls)


class QueueForLists(DistributionRegistry):
    """Docker's manifest lists have a queue, and pulls go by that of all else."""

    def configuration(self) -> dict[str, object]:
        lists = {"mediatypes": [OCTETS, OCI.manifest, OCI.index, DOCKER.manifest]}
        return _ignoring(super().configuration(), {"mediatypes": [DOCKER.index]}, lists)


class OtherSecret(DistributionRegistry):
    def configuration(self) -> dict[str, object]:
        return _with(super().configuration(), "http", secret=self.name)


class NoDeletes(DistributionRegistry):
    def configuration(self) -> dict[str, object]:
        return _with(super().configuration(), "storage", delete={"enabled": False})


def _ignoring(known: dict[str, object], *ignored: dict[str, list[str]]) -> dict[str, object]:
    """An endpoint, and so a queue, for each of what is ignored."""
    notifications = known["notifications"]
    assert isinstance(notifications, dict)
    (endpoint,) = notifications["endpoints"]
    endpoints = [endpoint | {"name": f"{number}", "ignore": each} for number, each in enumerate(ignored)]
    return _with(known, "notifications", endpoints=endpoints)


def _with(known: dict[str, object], section: str, **values: object) -> dict[str, object]:
    there = known[section]
    assert isinstance(there, Mapping)
    return known | {section: {**there, **values}}
