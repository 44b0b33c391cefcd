"""Two pods of real registries on a store with users, and garbage collection in the hands of the test.

Route: `Stage.opened` -> pushes and deletes by `Member.client` -> `abandon`, after which nothing needs an image ->
`report`, after which all pods have reported and every link was checked -> `collect` -> `served`, `state`, pulls.
`baleen up` probes the registries, applies their events and restores what is needed again; collections and reconciles
are run here, so that a test can do things between any two of their calls (`FaultyStore`), or while a registry's own
call to storage waits (`held`). Times have no length but where a test gives them one: an hour is passed by dating back.
Not here: what must hold (test_*.py), collections without registries (tests/gc/harness.py).
"""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import httpx
import psycopg
from msgspec.structs import replace as changed
from psycopg.types.json import Jsonb

from coordinator.audit.audit import Ages, Audit, Report
from coordinator.compose import scheduler as compose_scheduler
from coordinator.compose import store as compose_store
from coordinator.db.connection import Connections
from coordinator.domain.findings import Check
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import PodName, parse_digest
from coordinator.errors import BaleenError
from coordinator.gc import collect, controls, mark
from coordinator.gc.claims import Claims
from coordinator.gc.collect import Collector
from coordinator.gc.restore import Restorer
from coordinator.jobs import work as jobs
from coordinator.jobs.table import Job
from coordinator.jobs.work import Runner, Work
from coordinator.leftovers.links import write_needed_links_back
from coordinator.reconcile import reconcile
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.reconcile.presence import Presence
from coordinator.reconcile.reconcile import Reconciler
from coordinator.reconcile.sizes import PRODUCTION, Sizes
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Image, Index, Layer, make_image, make_layer
from coordinator.settings import Duration, Settings
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Storage
from coordinator.stack.seaweedfs import BUCKET
from coordinator.storage.layout import blob_key
from coordinator.storage.port import ObjectStore
from coordinator.table import expiry, statements
from tests.doctor.examined import examine_whatever_comes
from tests.doctor.store import BALEEN, CACHE, OTHER_POD, POD, ROOT, THIEF, Key, Store
from tests.gc.harness import NO_LIMITS, SIZES, Run
from tests.registries.harness import HTTP_SECRET, Baleen, Pod, Registry
from tests.registries.proxy import WebhookProxy
from tests.registries.s3_proxy import S3Proxy
from tests.registries.watermarks import is_past, moves_on, now
from tests.router.harness import Router
from tests.router.proxies import NGINX
from tests.router.running import router_address, start_router
from tests.support.claims import NO_CLAIMS
from tests.support.store import FaultyStore, Observer
from tests.support.wait import eventually

#: By the prefix that each owns: of the pods, and of a pull-through cache that is none.
KEYS = {"pod-a": POD, "pod-b": OTHER_POD, "cache": CACHE}
NOTHING, HOUR = timedelta(0), timedelta(hours=1)
#: A registry's answer may wait for a collection.
CLIENT_S = 300.0

#: What earlier scenarios have left under way may hold a collection for so many rounds.
ATTEMPTS = 5


class Once:
    """Does something at the first call of a kind whose keys name a digest, whatever else the run deals with."""

    def __init__(self, moment: str, digest: str, deed: Callable[[], object]) -> None:
        self._moment = moment
        self._hex = digest.removeprefix("sha256:")
        self._deed = deed
        self.done = False

    def __call__(self, call: str, keys: str) -> None:
        if call == self._moment and self._hex in keys and not self.done:
            self.done = True
            self._deed()


class CrashError(BaleenError):
    """The process that runs a job is gone."""


class Skewed(WebhookProxy):
    """The proxy of a registry whose clock is ahead by `ahead`."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.ahead = NOTHING

    def _take(self, body: bytes, headers: dict[str, str]) -> int | None:
        if self.ahead:
            document = json.loads(body)
            for event in document["events"]:
                event["timestamp"] = (dt.datetime.fromisoformat(event["timestamp"]) + self.ahead).isoformat()
            body = json.dumps(document).encode()
        return super()._take(body, headers)


class Member(NamedTuple):
    """A pod with its registry, which reaches storage and ingest by proxies."""

    pod: Pod
    registry: Registry
    storage: S3Proxy
    webhook: Skewed
    client: RegistryClient

    @property
    def name(self) -> str:
        return self.pod.name


class Stage(Baleen):
    """A running Baleen with two pods, whose keys are restrained by the policy that it prints for them."""

    a: Member
    b: Member
    #: Objects of the root that a key may read and write besides its pod's.
    more_objects: ClassVar[Mapping[Key, list[str]]] = MappingProxyType({CACHE: ["scheduler-state.json"]})

    def __init__(
        self, directory: Path, children: Children, store: Store, more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        settings = {
            "S3_ENDPOINT_URL": store.url,
            "S3_BUCKET": BUCKET,
            "S3_ROOT": ROOT,
            "S3_ACCESS_KEY": BALEEN.access,
            "S3_SECRET_KEY": BALEEN.secret,
            # Nothing happens by itself that depends on when.
            "SAFETY_LINK_GRACE": "1h",
            "SAFETY_REQUEST_BOUND": "1h",
            "SAFETY_DELETE_BOUND": "1h",
            "GC_EVERY": "365d",
            "MOUNTS": "open",
        } | dict(more)
        super().__init__(directory, children, {f"BALEEN_{name}": value for name, value in settings.items()})
        self.objects = store
        self._connection = psycopg.connect(self._database(), autocommit=True, connect_timeout=5)
        statements.prepare_connection(self._connection)
        self._stores: dict[str | None, ObjectStore] = {}

    @classmethod
    @contextmanager
    def opened(cls, directory: Path) -> Iterator[Self]:
        with ExitStack() as stack:
            children = stack.enter_context(Children())
            store = Store(directory)
            store.prepare()
            children.start(store.process())
            stage = cls(directory, children, store)
            stack.enter_context(stage.api)
            stack.enter_context(stage._connection)
            store.restrain({key: [name] for name, key in KEYS.items()}, more=cls.more_objects)
            # One that is done, so that `baleen up` begins none.
            stage.rows(
                "INSERT INTO jobs (kind, why, state, began_at, finished_at)"
                " VALUES ('gc', 'a test', 'done', now(), now()) RETURNING id"
            )
            controls.set_switch(stage._connection, "a test", on=True)
            stage.a, stage.b = (stage._member(name, stack) for name in ("pod-a", "pod-b"))
            for member in (stage.a, stage.b):
                stage.list_registries(member.pod, member.registry)
                stage.admit(member)
                moves_on(stage, member.pod)
            stage.report()
            # What came before the first event has been looked for, whatever bound a collection has.
            stage.rows("UPDATE processes SET first_seen = first_seen - interval '1 day' RETURNING id")
            yield stage

    def _member(self, name: str, stack: ExitStack) -> Member:
        pod = self.add_pod(name)
        storage = stack.enter_context(S3Proxy(self.objects.url))
        webhook = stack.enter_context(Skewed(self.webhook(pod)))
        registry = self.registry(DistributionRegistry, pod, url=webhook.url, s3_url=storage.url)
        client = stack.enter_context(RegistryClient(registry.url, timeout=CLIENT_S))
        return Member(pod, registry, storage, webhook, client)

    def _storage(self, pod: Pod | None = None) -> Storage:
        """With the pod's key; without a pod, the cache's."""
        key = KEYS["cache" if pod is None else pod.name]
        return replace(super()._storage(pod), access_key=key.access, secret_key=key.secret)

    def unregistered(self, name: str) -> Registry:
        """Start a registry of no pod on the same bucket and root, without events, with an unrestricted key."""
        made = DistributionRegistry(
            name=name,
            directory=self._directory / name,
            port=self._ports.take(name),
            storage=replace(self._storage(), access_key=THIEF.access, secret_key=THIEF.secret),
            notifications=None,
            http_secret=HTTP_SECRET,
        )
        return Registry(self._children, made)

    @property
    def members(self) -> tuple[Member, Member]:
        return self.a, self.b

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()  # type: ignore[call-overload]

    def _store_at(self, s3_url: str | None) -> ObjectStore:
        """The store by this way; to connect costs more than most calls."""
        if s3_url not in self._stores:
            settings = self.settings if s3_url is None else changed(self.settings, s3_endpoint_url=s3_url)
            self._stores[s3_url] = compose_store.make_object_store(settings)
        return self._stores[s3_url]

    def admit(self, member: Member) -> None:
        """Record every check of the doctor as proved for the pod, also for later processes."""
        self.rows(
            "DELETE FROM findings f USING pods p WHERE p.id = f.pod_id AND p.name = %s RETURNING p.id", member.name
        )
        self.rows(
            """
            INSERT INTO findings (pod_id, "check", result, meaning, proof, fix, found_at)
            SELECT p.id, c, 'proved', 'a test', 'a test', '', now()
            FROM pods p, unnest(%s::text[]) c WHERE p.name = %s RETURNING pod_id
            """,
            [str(check) for check in Check],
            member.name,
        )
        examine_whatever_comes(self._connection)

    @cached_property
    def router(self) -> Router:
        """What clients push through, to both pods and to mounts."""
        # No push here tests a Baleen that is slow.
        patience = ("--baleen-timeout", f"{CLIENT_S:.0f}")
        return start_router(NGINX, self._directory, self._children, router_address(self._directory), *patience)

    # What registries do

    def restart(self, member: Member, kind: type[DistributionRegistry] = DistributionRegistry) -> None:
        """Kill the registry and start it anew, as the same program with another configuration."""
        member.registry.kill()
        self.start(member, kind)

    def start(self, member: Member, kind: type[DistributionRegistry] = DistributionRegistry) -> None:
        member.registry.start_as(kind)

    def await_death(self, member: Member) -> None:
        """Wait until a process of the pod counts as dead."""
        eventually(
            lambda: any(source["state"] == "dead" for source in self.pod(member.pod)["processes"]),
            why=lambda: self.pod(member.pod),
        )

    def push(self, member: Member, repository: str, image: Image | Index, tag: str = "v1") -> None:
        """Push an image, and wait until it is known."""
        member.client.push_image(f"{member.name}/{repository}", image, tag)
        self.await_held(member, repository, image)

    def abandoned_layer(self, member: Member, here: str, size: int = 2_000) -> tuple[Layer, Image, Image]:
        """A layer, the image of it that was pushed and deleted again, and another image of it that was never pushed."""
        layer = make_layer(here, size)
        old, new = (make_image(f"{here}/{name}", [layer]) for name in ("old", "new"))
        self.push(member, here, old)
        self.abandon(member, here, old)
        return layer, old, new

    def mount(self, target: str, digest: str, source: str) -> httpx.Response:
        """Ask Baleen for a mount as a router does."""
        url = f"{self.url}/v2/{target}/blobs/uploads/?mount={digest}&from={source}"
        return httpx.post(url, timeout=CLIENT_S, trust_env=False)

    def is_implied(self, repository: str, digest: str) -> bool:
        """Whether only an index that the repository holds keeps this manifest there: it was deleted alone."""
        found = self.rows(
            """
            SELECT h.implied FROM repository_manifests h
            JOIN blobs b ON b.id = h.manifest_id JOIN repositories r ON r.id = h.repository_id
            WHERE b.digest = %s AND r.name = %s
            """,
            parse_digest(digest),
            repository,
        )
        return found == [(True,)]

    def await_held(self, member: Member, repository: str, image: Image | Index) -> None:
        name = f"{member.name}/{repository}"
        eventually(lambda: self.holds(name, image.digest), why=lambda: (name, self.status()))

    def abandon(self, member: Member, repository: str, image: Image | Index) -> None:
        """Delete a manifest, and wait until nothing needs what it alone needed; links of uploads expire."""
        name = f"{member.name}/{repository}"
        member.client.delete_manifest(name, image.digest)
        eventually(lambda: not self.holds(name, image.digest), why=self.status)
        self.expire_links()
        assert self.state(image.digest) is BlobState.UNREFERENCED

    def expire_links(self) -> None:
        """Let the grace of all links be over that are known now."""
        self.await_applied()
        expiry.delete_expired_links(self._connection, NOTHING)

    # What is seen

    def served(self, digest: str) -> bool:
        """Whether registries are served the bytes."""
        return self.store.head(blob_key(parse_digest(digest))) is not None

    def state(self, digest: str) -> BlobState:
        (state,) = self._known_states(digest)
        return state

    def _known_states(self, digest: str) -> list[BlobState]:
        """One, or none where no event has named the blob."""
        found = self.rows("SELECT state FROM blobs WHERE digest = %s", parse_digest(digest))
        return [BlobState(state) for (state,) in found]

    def states(self, image: Image) -> set[BlobState]:
        """Those of the manifest and of all that it lists."""
        return {self.state(digest) for digest in (image.digest, *(blob.digest for blob in image.blobs))}

    def ledger(self, digest: str) -> list[str]:
        found = self.rows("SELECT decision FROM gc_ledger WHERE digest = %s ORDER BY id", parse_digest(digest))
        return [row[0] for row in found]

    def land(self) -> None:
        """Let all deletes that were sent, and not answered, have landed by now."""
        self.rows("UPDATE hides SET permitted_at = permitted_at - interval '2 hours' RETURNING id")

    def await_live(self, *digests: str) -> None:
        """Wait until these are live and served; they may be unknown yet."""
        for digest in digests:
            eventually(
                lambda digest=digest: self._known_states(digest) == [BlobState.LIVE] and self.served(digest),
                why=lambda digest=digest: (self._known_states(digest), self.served(digest), self.ledger(digest)),
            )

    # The jobs

    def report(self) -> None:
        """Wait until all pods have reported what happened until now, and compare every pod's links."""
        began = now(self)
        for member in self.members:
            done = self.compare(member)
            assert done.state == "done", done.error
        self.return_probe(began)

    def return_probe(self, moment: dt.datetime) -> None:
        """Wait until all pods have reported what happened before a moment."""
        for member in self.members:
            eventually(lambda member=member: is_past(self, member.pod, moment), why=lambda m=member: self.pod(m.pod))

    def compare(self, member: Member, *, s3_url: str | None = None) -> Run:
        """Reconcile a pod; `s3_url` is where storage is for this job."""
        store = self._store_at(s3_url)
        # Links of uploads are all too old to be added: those that count are reported.
        times = {"margin": timedelta(seconds=1), "link_grace": NOTHING, "request_bound": NOTHING}
        # A job does not wait long for a store that a test takes away.
        sizes = PRODUCTION if s3_url is None else Sizes(first_pause_s=0.01)
        with (
            self._connections() as connections,
            closing(self._links(store)) as links,
            closing(Reconciler(connections, store, links, **times, sizes=sizes)) as runner,
        ):
            marked = mark.with_mark_moved(runner, connections, store)
            return self._run(reconcile.JOB_KIND, marked, connections, member.pod)

    def audit(self, *, s3_url: str | None = None) -> Report:
        """Compare the table with what is stored, of any age, as an operator does."""
        settings = self.settings if s3_url is None else changed(self.settings, s3_endpoint_url=s3_url)
        with compose_scheduler.open_audit(settings) as parts:
            return Audit(parts.connections, parts.store, parts.presence, Ages(NOTHING, NOTHING)).run()

    def collect(
        self,
        interrupt: Observer = lambda call, key: None,
        *,
        grace: timedelta = NOTHING,
        quarantine: timedelta = NOTHING,
        request_bound: timedelta = NOTHING,
        s3_url: str | None = None,
        **options: Any,
    ) -> Run:
        """Collect once; `s3_url` is where storage is for this job."""
        settings = changed(
            self.settings,
            unsafe_times=True,
            safety_grace=Duration(grace.total_seconds()),
            safety_quarantine=Duration(quarantine.total_seconds()),
            safety_request_bound=Duration(request_bound.total_seconds()),
        )
        store = FaultyStore(self._store_at(s3_url), interrupt)
        with self._connections() as connections, self._collector(settings, connections, store) as collector:
            return self._run(collect.JOB_KIND, collector, connections, None, options)

    def collect_at(self, deed: Once) -> Run:
        """Collect, and again while something still holds it, until the moment of a deed has come."""
        for _ in range(ATTEMPTS):
            run = self.collect(deed)
            if deed.done:
                return run
            self.expire_links()
            self.report()
        raise AssertionError(run)

    @contextmanager
    def _collector(self, settings: Settings, connections: Connections, store: ObjectStore) -> Iterator[Collector]:
        facts = compose_scheduler.make_collection_facts_reader(settings)
        with (
            closing(Presence(connections, store)) as presence,
            closing(
                Restorer(connections, store, presence, delete_bound=HOUR, give_links_back=write_needed_links_back)
            ) as restorer,
            closing(
                Collector(connections, store, facts, restorer, claims=self._claims(), limits=NO_LIMITS, sizes=SIZES)
            ) as collector,
        ):
            yield collector

    def _links(self, store: ObjectStore) -> Links:
        return Links(BucketLinks(store))

    def _claims(self) -> Claims:
        return NO_CLAIMS

    def _connections(self) -> closing[Connections]:
        return closing(Connections(self._database(), name="scenarios", prepare=statements.prepare_connection))

    def _run(
        self,
        kind: str,
        runner: Runner,
        connections: Connections,
        pod: Pod | None,
        options: dict[str, Any] | None = None,
    ) -> Run:
        job = self._take(kind, pod, options or {})
        jobs.run_job(Work(job, connections, threading.Event()), runner)
        (row,) = self.rows("SELECT id, state, progress, error FROM jobs WHERE id = %s", job.id)
        return Run(*row)

    def _take(self, kind: str, pod: Pod | None, options: dict[str, Any]) -> Job:
        """Take a job that is asked for at this moment, so that the scheduler never sees it waiting."""
        found: list[tuple[Any, ...]] = []

        def taken() -> bool:
            # One that the scheduler runs already has to end first.
            found[:] = self.rows(
                """
                INSERT INTO jobs (kind, pod_id, why, state, taken, began_at, alive_at, options)
                VALUES (%s, (SELECT id FROM pods WHERE name = %s), 'a test', 'running', 1, clock_timestamp(),
                        clock_timestamp(), %s)
                ON CONFLICT DO NOTHING RETURNING id, kind, pod_id, began_at, taken
                """,
                kind,
                None if pod is None else pod.name,
                Jsonb(options),
            )
            return bool(found)

        eventually(taken)
        ((number, kind, pod_id, began_at, times),) = found
        name = None if pod is None else PodName(pod.name)
        return Job(number, kind, pod_id, name, "a test", began_at, times, {}, options)

    def hide(self, *digests: str, links_count: bool = False) -> None:
        """Report and collect until these are hidden."""

        def hidden() -> bool:
            if not links_count:
                # A registry that was answered late sends its events again.
                self.expire_links()
            self.report()
            run = self.collect(quarantine=HOUR)
            assert run.state == "done", run.error
            return all(self.state(digest) is BlobState.HIDDEN for digest in digests)

        eventually(hidden, why=lambda: [(digest, self.state(digest), self.ledger(digest)) for digest in digests])
        assert not any(self.served(digest) for digest in digests)

    def purge(self, *digests: str) -> None:
        """Report and collect until these are purged."""

        def purged() -> bool:
            self.report()
            run = self.collect()
            assert run.state == "done", run.error
            return all(self.state(digest) is BlobState.PURGED for digest in digests)

        eventually(purged, why=lambda: [(digest, self.state(digest), self.ledger(digest)) for digest in digests])
