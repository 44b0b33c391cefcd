"""One history's world: a bucket, two or three pods, a log, workers, restorers, jobs, and what must hold of all of it.

Real are the domain, the batch apply, the looks that resolve doubts, reconciles, watermarks, garbage collection and the
SQL of all of these. Played are registries (registry.py, gitlab.py), the log, the store (store.py), the sending of
probes, and the clock.

Invariants, after every step:
- the bytes of what a repository links, and of what that lists, are served or can be brought back: a version that no
  permitted purge is about to delete, or the copy of a hide that is not over;
- so are the bytes of what a link led to that somebody removed beside its registry, until an operator accepts that;
- what the registry of kind `gitlab` confirms without a look at the bucket is not hidden, unless its row is newer than
  the run that hid it: a client that was told 201 can pull (rule 18);
- a delete names only what an open hide has recorded, or, to hide, the live key of one that is about to.
At rest: they are served, the table has what storage has, the counts are the sizes of its sets, and `check` agrees.
*Linked* is more than accepted: also what its client got 500 for, and what lands after its process died.
Not here: what happens in which order (history.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

from coordinator.audit.check import check_counts
from coordinator.doctor import table as findings
from coordinator.domain.facts import Removed
from coordinator.domain.findings import Check
from coordinator.domain.gc import Amount, Facts, Limits, Times
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.mounts import MountRequest, NotMountedError
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.domain.progress import Position, Progress
from coordinator.errors import NotFoundError, UnavailableError
from coordinator.gc import collect, controls, mark
from coordinator.gc import table as gc
from coordinator.gc.claims import Claims
from coordinator.gc.conditions import read_facts
from coordinator.gc.restore import Restorer
from coordinator.gitlab.links import GitlabLinks
from coordinator.jobs import table as jobs
from coordinator.jobs.work import Runner, Work, run_job
from coordinator.kafka.topics import EVENTS
from coordinator.leftovers.links import write_needed_links_back
from coordinator.mounts.directory import MountPod, MountPods
from coordinator.mounts.linker import BlobLinker, LinkWriter
from coordinator.mounts.mounter import Mounter
from coordinator.mounts.sources import Sources
from coordinator.reconcile import reconcile
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.reconcile.presence import Presence
from coordinator.reconcile.resolve import Resolver
from coordinator.reconcile.sizes import Sizes
from coordinator.storage.layout import (
    QUARANTINE,
    blob_key,
    layer_link_key,
    parse_blob_key,
    parse_quarantine_key,
    quarantine_key,
    quarantine_prefix,
    revision_link_key,
)
from coordinator.storage.port import Target
from coordinator.table import expiry, progress, vanished_links
from coordinator.table import processes as registry_processes
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item, OutOfStepError, Slice
from coordinator.table.echoes import KnownProcesses
from coordinator.table.epochs import advancing
from tests.simulation.database import Asking, Connections, Engine, Session
from tests.simulation.gitlab import GitlabRegistry, RowClaims, Rows, SimulatedSources, Uploads
from tests.simulation.registry import (
    ALL_REPOSITORIES,
    GITLAB_REPOSITORIES,
    IMAGES,
    NAMES,
    NEEDS,
    PARTITIONS,
    PULLED,
    REPOSITORIES,
    REQUEST_BOUND,
    UNREGISTERED,
    Process,
    Registry,
    Repository,
    Sent,
    digest_of,
)
from tests.simulation.scheduler import SECOND, Scheduler, Violation
from tests.simulation.store import Bucket, Flight, Store
from tests.support.claims import NO_CLAIMS

BOUND = timedelta(microseconds=REQUEST_BOUND)
#: What a restore waits for: longer than the store takes a signature.
DELETE_BOUND = timedelta(seconds=600)
#: By how much clocks of registries may be wrong.
MARGIN = timedelta(seconds=10)
LINK_GRACE = timedelta(seconds=60)
#: No waiting beyond what is proved.
TIMES = Times(timedelta(0), timedelta(0), BOUND)
NO_LIMITS = Limits(100, 1_000_000, Amount(10**9, 10**15))
#: Silence alone must not be what saves anything.
SILENCE = timedelta(days=30)

PROCESSES = (
    Process("a1", 1, "http://a", "10.0.0.1"),
    Process("a2", 1, "http://a", "10.0.0.2"),
    Process("b1", 2, "http://b", "10.0.1.1"),
)
PODS = {"a": 1, "b": 2}
G1 = Process("g1", 3, "http://g", "10.0.3.1")


class Cast(NamedTuple):
    """Which pods a history has, besides what nobody has registered."""

    pods: Mapping[str, int]
    processes: Sequence[Process]
    repositories: Mapping[str, Repository]


DISTRIBUTION = Cast(PODS, PROCESSES, REPOSITORIES)
#: With a pod of kind `gitlab` beside them.
MIXED = Cast(PODS | {"g": 3}, (*PROCESSES, G1), REPOSITORIES | GITLAB_REPOSITORIES)
#: Links that are younger than this may vanish unnoticed: a delete event may be of them, as far as clocks tell.
UNSURE = 30 * SECOND
#: Whose registry sends no events, and that no operator has registered.
STRANGER = Process("c1", 3, "http://c", "10.0.2.1")

_REVISIONS = {
    f"docker/registry/v2/repositories/{repository.name}/_manifests/revisions/sha256/{image.digest.hex()}/link": (
        where,
        image,
    )
    for where, repository in ALL_REPOSITORIES.items()
    for image in IMAGES.values()
}


class LateWrite(NamedTuple):
    """What a killed process was about to write: a link's key, or rows."""

    what: str
    write: Callable[[], object]
    until: int


class Worker:
    """A worker process: its place in each partition, and what it believes to know."""

    def __init__(self, name: str, resolver: Resolver, restorer: Restorer, positions: Sequence[int]) -> None:
        self.name = name
        self.resolver = resolver
        self.restorer = restorer
        self.positions = list(positions)
        self.processes = KnownProcesses()


class Saved(NamedTuple):
    """A place where histories begin."""

    now: int
    bucket: tuple[Any, ...]
    processes: list[Process]
    log: list[list[Sent]]
    #: Of the registry of kind `gitlab`; None if there is none.
    rows: tuple[Any, ...] | None = None


class Stop:
    """Nobody asks a job to stop; it waits in the history's time."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        self._scheduler.pause("store", f"waits {seconds:g} s")
        return False


class World:
    def __init__(
        self, session: Session, bucket: Bucket, scheduler: Scheduler, saved: Saved | None, *, mixed: bool = False
    ) -> None:
        self.session, self.bucket, self.scheduler = session, bucket, scheduler
        self.cast = cast = MIXED if mixed else DISTRIBUTION
        if saved is None:
            saved = Saved(0, ({}, {}, 1), list(cast.processes), [[] for _ in range(PARTITIONS)])
        scheduler.now = saved.now
        bucket.load(saved.bucket, scheduler)
        self.processes = [replace(each, queue=each.queue.copy()) for each in saved.processes]
        self.log = [list(records) for records in saved.log]
        self.stranger = replace(STRANGER)
        #: Registered pods, with their ids.
        self.pods = dict(cast.pods)
        self.store = Store(bucket, scheduler, name_of)
        self.store.watch = self._check_targets
        self.registry = Registry(bucket, scheduler)
        self.gitlab = GitlabRegistry(bucket, scheduler, Rows(scheduler)) if mixed else None
        if self.gitlab is not None:
            self.gitlab.confirmed = self._check_confirmed
            if saved.rows is not None:
                self.gitlab.rows.load(saved.rows)
        self.late: list[LateWrite] = []
        #: Events that come once more.
        self.copies: list[Sent] = []
        self.connections = Connections(session)
        connections: Any = self.connections
        store: Any = self.store
        pods = [
            MountPod(number, PodName(name), kind_of(name), (), (f"pod-{name}",)) for name, number in cast.pods.items()
        ]
        self.links = Links(BucketLinks(store))
        self.claims: Claims = NO_CLAIMS
        sources = Sources(store)
        linkers: dict[PodKind, BlobLinker] = {PodKind.LINK: LinkWriter(store)}
        if self.gitlab is not None:
            database: Any = self.gitlab.rows
            self.links = Links(BucketLinks(store), {PodKind.GITLAB: lambda _: GitlabLinks(database)})
            self.claims = RowClaims(self.connections, self.gitlab.rows)
            sources = SimulatedSources(store, self.gitlab, lambda: self.processes[-1])
            linkers[PodKind.GITLAB] = Uploads(self.gitlab, lambda: self.processes[-1])
        self.mounter = Mounter(
            connections,
            MountPods(lambda: pods),
            sources,
            linkers,
            lambda _: None,
            margin=MARGIN,
            relay_limit=0 if self.gitlab is None else 1000,
            now=scheduler.time,
        )
        positions = [len(records) for records in self.log]
        self.workers = [
            Worker(name, Resolver(self.connections, self.links), self._restorer(), positions)
            for name in ("worker one", "worker two")
        ]
        #: A process died with what it had not reported, or a link came without an event: only a reconcile finds it.
        self.lost_events = False
        #: Of each blob that is needed and not served, as of the last change of the bucket.
        self.unserved: set[Digest] = set()
        self._seen_changes = (-1, -1)
        #: When somebody removed a link beside its registry, by its key, until an operator accepts that.
        self.owed: dict[str, int] = {}
        #: The database or the bucket went back in time: bytes may be where no hide of the table has them.
        self.went_back = False
        #: What a replica of the bucket looked like.
        self.replica: tuple[Any, ...] | None = None
        #: What was lost with the bucket, until it is served again.
        self.lost: set[Digest] = set()
        self.known: Callable[[Facts], Facts] = lambda facts: facts
        scheduler.after_step = self.inspect
        session.after = self._inspect_hides
        session.begin(scheduler)

    def save(self) -> Saved:
        assert not any(process.queue for process in self.processes)
        rows = None if self.gitlab is None else self.gitlab.rows.save()
        return Saved(self.scheduler.now, self.bucket.save(), self.processes, self.log, rows)

    def registry_of(self, where: str) -> Registry:
        return self.registry if self.gitlab is None or where not in GITLAB_REPOSITORIES else self.gitlab

    @property
    def registries(self) -> list[Registry]:
        return [self.registry] if self.gitlab is None else [self.registry, self.gitlab]

    @property
    def links_without_events(self) -> bool:
        """Whether a registry has rows or a link, or has them no more, and no event says so."""
        return any(each.lost for each in self.registries)

    def end_failures(self) -> None:
        """From now on all services answer."""
        self.store.errors = self.store.slow = self.store.twice = self.session.away = 0
        for each in self.registries:
            each.lossy = 0
        if self.gitlab is not None:
            self.gitlab.rows.end_failures()

    # Baleen's processes

    def _restorer(self) -> Restorer:
        presence = Presence(self.connections, self.store)
        return Restorer(
            self.connections, self.store, presence, delete_bound=DELETE_BOUND, give_links_back=write_needed_links_back
        )

    def facts(self) -> Facts:
        asking: Any = Asking(self.session)
        return read_facts(asking, TIMES, SILENCE).facts

    def apply(self, worker: Worker, partitions: Sequence[int], limit: int) -> None:
        slices = []
        for number in partitions:
            first = worker.positions[number]
            records = self.log[number][first : first + limit]
            if records:
                items = [Item(first + n, 1000, sent.pod, sent.fact, None, sent.echo) for n, sent in enumerate(records)]
                processes = frozenset((sent.pod, sent.process) for sent in records)
                last = first + len(records)
                slices.append(Slice(EVENTS, number, first, last, last, items, processes))
        if not slices:
            return
        sent = " and ".join(f"{piece.first_offset} to {piece.next_offset} of {piece.partition}" for piece in slices)
        self.scheduler.note_current(f"is going to apply {sent}: {describe_slices(slices)}")
        try:
            applied = BatchApplier(self.session, MARGIN, worker.processes, BOUND).apply(slices)  # type: ignore[arg-type]
        except OutOfStepError as error:
            worker.positions[error.piece.partition] = error.expected or 0
            self.scheduler.note_current(f"is out of step, and goes on at {error.expected}")
            return
        for piece in slices:
            worker.positions[piece.partition] = piece.next_offset
        self.scheduler.note_current("has applied them")
        if applied.removals_doubtful:
            worker.resolver.resolve_new()

    def mount(self, where: str, name: str, source: str) -> bool:
        """A client asks Baleen for a mount; False if it is to upload."""
        wanted = MountRequest(ALL_REPOSITORIES[where].name, digest_of(name), ALL_REPOSITORIES[source].name)
        try:
            self.mounter.mount(wanted, None)
        except (NotMountedError, UnavailableError) as error:
            self.scheduler.note_current(f"has to upload {name} ({error})")
            return False
        self.scheduler.note_current(f"has {name} mounted in {where}")
        return True

    def restore(self, worker: Worker) -> None:
        worker.restorer.round()

    def sweep(self) -> None:
        expiry.delete_expired_links(self.session, LINK_GRACE)  # type: ignore[arg-type]

    def probe(self, process: Process) -> None:
        connection: Any = self.session
        addresses = [each.address for each in self.processes if each.url == process.url]
        if process.address == addresses[0]:
            registry_processes.record_endpoints(
                connection, process.pod, {process.url: addresses}, findings.read_clock(connection)
            )
        nonce = registry_processes.insert_probe(connection, process.pod, process.url, process.address)
        self.scheduler.pause("store", f"probes {process.name}")
        if not process.alive:
            registry_processes.record_probe_failure(connection, nonce, "refused", refused=True)
            return
        self.registry.pull(process, nonce)
        registry_processes.record_probe_answer(connection, nonce)

    def examine(self, pod: str) -> None:
        """A doctor's visit, which finds that all is well."""
        self.session.execute("UPDATE processes SET examined_life = life WHERE pod_id = %s", (self.cast.pods[pod],))

    def reconcile(self, pod: str) -> None:
        # One that was registered may be lost with a failover.
        self.session.execute(
            """
            INSERT INTO jobs (kind, pod_id, why) SELECT %s, id, 'a history' FROM pods WHERE name = %s
            ON CONFLICT DO NOTHING
            """,
            (reconcile.JOB_KIND, f"pod-{pod}"),
        )
        runner = reconcile.Reconciler(
            self.connections,  # type: ignore[arg-type]
            self.store,
            self.links,
            margin=MARGIN,
            link_grace=LINK_GRACE,
            request_bound=BOUND,
            sizes=Sizes(parts=1, first_pause_s=0.0),
        )
        marked = mark.with_mark_moved(runner, self.connections, self.store)  # type: ignore[arg-type]
        self._run_job(reconcile.JOB_KIND, marked)

    def is_under_way(self, pod: str) -> bool:
        """Whether a reconcile of the pod was begun, and has not ended."""
        found = self.session.now(
            "SELECT FROM jobs WHERE kind = %s AND pod_id = %s AND state IN ('waiting', 'running')",
            (reconcile.JOB_KIND, self.pods.get(pod)),
        )
        return bool(found)

    def has_failed(self, pod: str) -> bool:
        """Whether the last reconcile of the pod is one that has to be tried again."""
        found = self.session.execute(
            "SELECT state = 'failed' FROM jobs WHERE kind = %s AND pod_id = %s ORDER BY id DESC LIMIT 1",
            (reconcile.JOB_KIND, self.pods.get(pod)),
        ).fetchone()
        return found is not None and found[0]

    def collect(self) -> None:
        self.session.execute("INSERT INTO jobs (kind, why) VALUES ('gc', 'a history') ON CONFLICT DO NOTHING")
        runner = collect.Collector(
            self.connections,  # type: ignore[arg-type]
            self.store,
            lambda: self.known(self.facts()),
            self._restorer(),
            claims=self.claims,
            limits=NO_LIMITS,
        )
        self._run_job(collect.JOB_KIND, runner)

    def _run_job(self, kind: str, runner: Runner) -> None:
        """As a scheduler, but for one job alone."""
        connection: Any = self.session
        job = jobs.take_job(connection, [kind])
        if job is not None:
            run_job(Work(job, self.connections, Stop(self.scheduler)), runner)  # type: ignore[arg-type]

    # Others

    def show(self, name: str) -> None:
        """Somebody who is not Baleen takes the marker off a hidden blob.

        Not between a purge's look and its delete: nothing could notice that (docs/SAFETY.md).
        """
        self.scheduler.pause("store", f"is about to take the marker off {name}")
        if self.store.deleting or self.store.flights:
            return
        key = blob_key(digest_of(name))
        on_top = next((each for each in self.bucket.list_versions(key) if each.latest), None)
        if on_top is not None and on_top.is_marker:
            self.bucket.remove_marker(key, on_top.version)

    def fail_over(self) -> None:
        """A standby takes the database's place, and lacks the last commits. All else goes on as it is."""
        self.session.fail_over()
        known = self.session.now("SELECT name, id FROM pods")
        self.pods = {name.removeprefix("pod-"): number for name, number in known}
        self.went_back = self.lost_events = True
        for worker in self.workers:
            # As after each failure: the next database may be another.
            worker.processes.forget()

    def roll_back_bucket(self) -> None:
        """An older replica takes the bucket's place. What it has not is not Baleen's loss; requests end with an error.

        Not between a purge's look and its delete: nothing could notice that (docs/SAFETY.md).
        """
        if self.replica is None or self.store.deleting or self.store.flights:
            return
        self.bucket.roll_back(self.replica)
        self.replica = None
        self.late.clear()
        self.owed.clear()
        for actor in list(self.scheduler.actors):
            if actor.process is not None:
                self.scheduler.kill(actor)
        self.went_back = self.lost_events = True
        self.lost |= {digest for digest in self.needed_digests() if not self._has_bytes(digest)}

    def _has_bytes(self, digest: Digest) -> bool:
        copies = any(key.startswith(quarantine_prefix(digest)) for key in self.bucket.stored())
        return copies or any(not each.is_marker for each in self.bucket.list_versions(blob_key(digest)))

    def remove_link(self) -> None:
        """Somebody with the pod's key removes a link, and no registry sends an event of it.

        Rather that of an index's child, as `registry garbage-collect -m` does.
        """
        self.scheduler.pause("store", "is about to remove a link beside its registry")
        found = self.removable()
        if not found:
            return
        children = [key for key in found if self._is_child(key)]
        key = self.scheduler.chance.choice(children or found)
        self.bucket.delete(key)
        self.owed[key] = self.scheduler.now
        self.lost_events = True
        self.scheduler.note_current(f"removes {name_of(key)}")

    def removable(self) -> list[str]:
        """Links that the table has, and that no delete event may be about: what vanishes of others is not noticed."""
        held = {
            revision_link_key(RepositoryName(row[0]), Digest(row[1]))
            for row in self.session.now(
                """
                SELECT r.name, b.digest FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
                JOIN pods p ON p.id = r.pod_id AND p.managed JOIN blobs b ON b.id = h.manifest_id
                WHERE NOT h.implied AND NOT EXISTS (
                    SELECT FROM removals x WHERE x.repository_id = r.id AND x.digest = b.digest)
                """
            )
        }
        waiting = [sent for process in self.processes for sent in process.queue]
        for number, records in enumerate(self.log):
            waiting += records[min(worker.positions[number] for worker in self.workers) :]
        deleted = {
            revision_link_key(sent.fact.repository, sent.fact.digest)
            for sent in waiting
            if isinstance(sent.fact, Removed)
        }
        found = []
        for key in sorted(held - deleted):
            link = self.bucket.head(key)
            if link is None:
                continue
            written = self.scheduler.at(link.modified_at)
            is_old = self.scheduler.now - written > UNSURE
            if is_old and self.registry.deletes.get(key, -UNSURE) < written - UNSURE:
                found.append(key)
        return found

    def _is_child(self, key: str) -> bool:
        where, image = _REVISIONS[key]
        return any(
            image.name in index.lists and self.bucket.has(revision_link_key(REPOSITORIES[where].name, index.digest))
            for index in IMAGES.values()
        )

    # Operators

    def accept_vanished(self, pod: str) -> None:
        """Accept that links of a pod are gone which vanished without a delete event."""
        engine: Any = Engine(self.session)
        vanished_links.accept_vanished(engine, PodName(f"pod-{pod}"), "a history", "an operator")
        accepted = self.session.now(
            "SELECT digest, evidence ->> 'repository' FROM gc_ledger WHERE decision = 'accepted'"
        )
        for digest, repository in accepted:
            self.owed.pop(revision_link_key(RepositoryName(repository), Digest(digest)), None)

    def has_strangers(self) -> bool:
        """Whether a repository in the root belongs to no registered pod."""
        begins = [f"docker/registry/v2/repositories/{each.name}/" for each in UNREGISTERED.values()]
        return "c" not in self.pods and any(key.startswith(tuple(begins)) for key in self.bucket.stored())

    def begin_stranger(self, *, unmanaged: bool) -> None:
        """A registry that sends no events has linked a layer, and perhaps an operator has declared it unmanaged."""
        digest = digest_of("x")
        link = layer_link_key(UNREGISTERED["c/one"].name, digest)
        self.bucket.put(link, f"sha256:{digest.hex()}".encode())
        if unmanaged:
            self.declare_unmanaged()

    def declare_unmanaged(self) -> None:
        """An operator registers the pod whose registry sends no events, and a doctor proves that it caches nothing."""
        connection: Any = self.session
        with connection.transaction():
            (number,) = connection.execute(
                """
                INSERT INTO pods (name, registries, event_token_sha256, managed, unmanaged_why, unmanaged_by)
                VALUES ('pod-c', '{http://c}', %s, false, 'a history', 'an operator') RETURNING id
                """,
                (b"1" * 32,),
            ).fetchone()
            connection.execute("INSERT INTO pod_prefixes (prefix, pod_id) VALUES ('pod-c', %s)", (number,))
            _record_findings(connection, number)
        self.pods["c"] = number

    def undelete(self, digest: Digest) -> None:
        """Have a hidden blob served again that nobody needs. It is pinned until that is final: only a pin, or being
        needed, keeps a collection that is under way from going on with it.
        """
        connection: Any = self.session
        self._pin(digest)
        restorer = self._restorer()
        for _ in range(3):
            hide = gc.read_hide_of_blob(connection, digest)
            if hide is None or restorer.restore([(hide, "an operator asked for it")]).final:
                self._unpin(digest)
                return
            self.scheduler.pause("store", "waits for the deletes that may be under way")

    def pin_for_a_while(self, digest: Digest) -> None:
        self._pin(digest)
        self.scheduler.pause("store", "lets it be pinned")
        self._unpin(digest)

    def hold_for_a_while(self) -> None:
        connection: Any = self.session
        with advancing(connection):
            controls.put_hold(connection, RepositoryName("pod-a"), "a history")
        self.scheduler.pause("store", "lets it be held")
        self.release("pod-a")

    # A database that went back in time meanwhile may not have what is taken away.

    def release(self, scope: str) -> None:
        connection: Any = self.session
        with suppress(NotFoundError), advancing(connection):
            controls.remove_hold(connection, RepositoryName(scope))

    def _pin(self, digest: Digest) -> None:
        connection: Any = self.session
        with advancing(connection):
            controls.put_pin(connection, digest, "a history")

    def _unpin(self, digest: Digest) -> None:
        connection: Any = self.session
        with suppress(NotFoundError), advancing(connection):
            controls.remove_pin(connection, digest)

    def switch_off_for_a_while(self) -> None:
        connection: Any = self.session
        controls.set_switch(connection, "a history", on=False)
        self.scheduler.pause("store", "lets it be off")
        controls.set_switch(connection, "a history", on=True)

    # What happens by itself

    def deliver(self, process: Process, *, again: bool = False) -> None:
        """Ingest takes a process's next event, and Kafka has it."""
        sent = process.queue.popleft()
        self.append(sent)
        self.scheduler.note(process.instance, f"delivers {describe_sent(sent)}")
        if again:
            self.copies.append(sent)

    def append(self, sent: Sent) -> None:
        for number in range(PARTITIONS) if sent.partition is None else (sent.partition,):
            self.log[number].append(sent)

    def crash(self, process: Process, *, lands: bool) -> None:
        """It dies, and with it its queue and its requests; the next link of one may still land."""
        scheduler = self.scheduler
        scheduler.note(process.instance, f"dies with {len(process.queue)} events")
        for actor in list(scheduler.actors):
            if actor.process is process:
                self.lost_events = True
                if actor.writing is not None and lands:
                    self.late.append(LateWrite(*actor.writing, scheduler.now + REQUEST_BOUND))
                scheduler.kill(actor)
        if any(sent.fact is not None for sent in process.queue):
            self.lost_events = True
        process.queue.clear()
        process.alive = False

    def restart(self, process: Process) -> None:
        process.alive = True
        process.generation += 1
        self.scheduler.note(process.instance, "begins")

    def land_late(self, write: LateWrite) -> None:
        self.late.remove(write)
        write.write()
        self.scheduler.note("storage", f"gets late: {name_of(write.what)}")
        self.inspect()

    def land(self, flight: Flight) -> None:
        self.store.flights.remove(flight)
        named = ", ".join(name_of(target.key) for target in flight.targets)
        self.scheduler.note("storage", f"deletes late, for {flight.sender}: {named}")
        self.store.land(flight)
        self.inspect()

    def pass_time(self, seconds: float) -> None:
        """Let time pass; what must have happened until then happens."""
        scheduler = self.scheduler
        if scheduler.holder is not None:
            return
        until = scheduler.now + int(seconds * SECOND)
        while True:
            due: list[tuple[int, Callable[[], None]]] = []
            due += [(each.until, lambda each=each: self.land_late(each)) for each in self.late]
            due += [(each.until, lambda each=each: self._end_flight(each)) for each in self.store.flights]
            due += [
                (actor.deadline, lambda actor=actor: self._end_request(actor))
                for actor in scheduler.actors
                if actor.deadline is not None
            ]
            first = min(due, key=lambda each: each[0], default=None)
            if first is None or first[0] > until:
                break
            scheduler.now = max(scheduler.now, first[0] - 1000)
            first[1]()
        scheduler.now = max(scheduler.now, until)
        scheduler.note("", f"{seconds:g} s have passed")

    def _end_flight(self, flight: Flight) -> None:
        if self.scheduler.roll(0.5):
            self.land(flight)
        else:
            self.store.flights.remove(flight)

    def _end_request(self, actor: Any) -> None:
        """A request that is as old as any may be ends."""
        actor.asleep = False
        deadline = actor.deadline
        while not actor.done and actor.deadline == deadline:
            self.scheduler.step(actor)

    # What must hold

    def needed_digests(self) -> set[Digest]:
        """What a repository links, and what that lists."""
        found: set[Digest] = set()
        for key in self.bucket.stored():
            known = _REVISIONS.get(key)
            if known is not None:
                found |= PULLED[known[1].digest]
        return found if self.gitlab is None else found | self.gitlab.rows.needed_digests()

    def _owed_digests(self) -> set[Digest]:
        """What was needed by links that somebody removed, and that nobody has pushed or deleted since."""
        for key, removed in list(self.owed.items()):
            if self.bucket.has(key) or self.registry.deletes.get(key, -1) >= removed:
                del self.owed[key]
        return {digest for key in self.owed for digest in PULLED[_REVISIONS[key][1].digest]}

    def inspect(self) -> None:
        changes = self.bucket.changes, 0 if self.gitlab is None else self.gitlab.rows.changes
        if changes == self._seen_changes:
            return
        self._seen_changes = changes
        needed = self.needed_digests() | self._owed_digests() if self.owed else self.needed_digests()
        self.unserved = {digest for digest in needed if not self.bucket.has(blob_key(digest))}
        if self.lost:
            self.lost &= self.unserved
            self.unserved -= self.lost
        if self.unserved:
            self._check_bytes()

    def _inspect_hides(self) -> None:
        if self.unserved:
            self._check_bytes()

    def _check_bytes(self) -> None:
        hides = {
            Digest(row[0]): row[1:]
            for row in self.session.now(
                f"""
                SELECT b.digest, h.id, b.state = {BlobState.PURGING:d} AND h.permitted_at >= h.purging_at, h.versions
                FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE b.digest = ANY(%s)
                """,
                ([bytes(digest) for digest in self.unserved],),
            )
        }
        for digest in self.unserved:
            number, to_delete, recorded = hides.get(digest, (None, False, None))
            if self.bucket.versioned:
                gone = {version for version, _ in recorded or ()} if to_delete else set()
                versions = self.bucket.list_versions(blob_key(digest))
                there = any(not each.is_marker and each.version not in gone for each in versions)
            else:
                there = number is not None and not to_delete and self.bucket.has(quarantine_key(digest, number))
            if not there and self.went_back:
                # An audit finds it (docs/RECOVERY.md, Failover and restore).
                there = self._has_bytes(digest)
            if not there:
                raise Violation(f"{NAMES[digest]} is needed, and its bytes are lost")

    def _check_confirmed(self, where: str, digests: Collection[Digest]) -> None:
        """Look at what a client was told to be there."""
        assert self.gitlab is not None
        for digest in digests:
            if self.bucket.has(blob_key(digest)) or self.went_back:
                continue
            hidden = self.session.now(
                """
                SELECT (SELECT max(began_at) FROM jobs WHERE kind = %s AND began_at <= h.intended_at)
                FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE b.digest = %s
                """,
                (collect.JOB_KIND, bytes(digest)),
            )
            if hidden and self.gitlab.rows.blobs[digest].created_at < hidden[0][0]:
                raise Violation(f"{where} confirms {NAMES[digest]} by a row, and it was hidden in spite of that row")

    def _check_targets(self, targets: Sequence[Target]) -> None:
        """Look at what a delete names, as soon as it is permitted."""
        for target in targets:
            blob = parse_blob_key(target.key)
            copy = parse_quarantine_key(target.key)
            digest = blob or (copy[0] if copy else None)
            found = (
                []
                if digest is None
                else self.session.now(
                    """
                SELECT h.id, b.state, h.marker, h.versions FROM hides h JOIN blobs b ON b.id = h.blob_id
                WHERE b.digest = %s
                """,
                    (bytes(digest),),
                )
            )
            if not found:
                raise Violation(f"a delete names {name_of(target.key)}, which no hide owns")
            number, state, marker, versions = found[0]
            if blob is not None and target.version is None:
                allowed = state == BlobState.HIDING
            elif blob is not None:
                allowed = state == BlobState.PURGING and target.version in {marker, *(each[0] for each in versions)}
            else:
                allowed = state == BlobState.PURGING and copy is not None and copy[1] == number
            if not allowed:
                raise Violation(f"a delete names {name_of(target.key)} {target.version or ''}, not its hide's to name")

    def _linked_pairs(self) -> set[tuple[str, Digest]]:
        """What a repository links, and the known manifests that its indexes list (table/implied.py)."""
        known = (_REVISIONS.get(key) for key in self.bucket.stored())
        linked = {(ALL_REPOSITORIES[where].name, image.digest) for where, image in filter(None, known)}
        if self.gitlab is not None:
            linked |= {(path, manifest.row.digest) for path, manifest in self.gitlab.rows.held()}
        manifests = {Digest(row[0]) for row in self.session.now("SELECT digest FROM blobs JOIN manifests USING (id)")}
        return {
            (repository, digest)
            for repository, listed in linked
            for digest in (listed, *(NEEDS[listed] & manifests & NEEDS.keys()))
        }

    def _held_pairs(self) -> set[tuple[str, Digest]]:
        found = self.session.now(
            """
            SELECT r.name, b.digest FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
            JOIN blobs b ON b.id = h.manifest_id
            """
        )
        return {(row[0], Digest(row[1])) for row in found}

    def holds_too_much(self) -> bool:
        """A push that was reported long after its link had gone is held until a reconcile: a leak, and no loss."""
        return not self._held_pairs() <= self._linked_pairs()

    def inspect_at_rest(self, *, checked: bool) -> None:
        """All is delivered, applied and restored: what is needed is served, and the table says what storage has."""
        needed = self.needed_digests() - self.lost
        for digest in needed:
            if not self.bucket.has(blob_key(digest)):
                raise Violation(f"at rest {NAMES[digest]} is needed and not served")
        unknown = self.session.now("SELECT kind, error FROM jobs WHERE error LIKE 'Internal error%%'")
        if unknown:
            raise Violation(f"a job of kind {unknown[0][0]} has failed: {unknown[0][1]}")
        held, linked = self._held_pairs(), self._linked_pairs()
        if held != linked:
            more = [f"{name} holds {NAMES[digest]}" for name, digest in sorted(held - linked)]
            less = [f"{name} does not hold {NAMES[digest]}" for name, digest in sorted(linked - held)]
            raise Violation(f"at rest, by the table, {', '.join(more + less)}")
        counts = Counter(digest for _, manifest in linked for digest in NEEDS[manifest])
        for row in self.session.now("SELECT digest, reference_count, state FROM blobs"):
            digest, count, state = Digest(row[0]), row[1], BlobState(row[2])
            if count != counts[digest]:
                raise Violation(f"at rest {NAMES[digest]} is counted {count} times, and needed {counts[digest]} times")
            if digest in needed and state is not BlobState.LIVE:
                raise Violation(f"at rest {NAMES[digest]} is needed, served, and {state.name.lower()}")
        if not checked:
            return
        report = check_counts(_make_engine(self.session))
        if not report.is_healthy:
            raise Violation(f"at rest `check` finds {report.differences[0]}")


def _make_engine(session: Session) -> Any:
    """What `check` takes for an engine: it sees what the history has written so far."""

    class Rows:
        def __init__(self, cursor: Any) -> None:
            self._cursor = cursor

        def scalar_one(self) -> Any:
            return self._cursor.fetchone()[0]

        def yield_per(self, _: int) -> Any:
            found = self._cursor.fetchall()
            names = [column.name for column in self._cursor.description]

            class Each(list):  # type: ignore[type-arg]
                def scalars(self) -> list[Any]:
                    return [next(iter(vars(row).values())) for row in self]

            return Each(SimpleNamespace(**dict(zip(names, row, strict=True))) for row in found)

    class Connection:
        def execution_options(self, **_: Any) -> Connection:
            return self

        def begin(self) -> Connection:
            return self

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, statement: Any) -> Rows:
            return Rows(session.raw.execute(str(statement)))

    return SimpleNamespace(connect=Connection)


def kind_of(pod: str) -> PodKind:
    return PodKind.GITLAB if pod == "g" else PodKind.LINK


def name_of(key: str) -> str:
    """A key, for people."""
    digest = parse_blob_key(key)
    if digest is not None:
        return NAMES.get(digest, key)
    copy = parse_quarantine_key(key) if key.startswith(QUARANTINE) else None
    if copy is not None:
        return f"copy {copy[1]} of {NAMES.get(copy[0], '?')}"
    short = key.removeprefix("docker/registry/v2/repositories/")
    for digest, name in NAMES.items():
        short = short.replace(f"sha256/{digest.hex()}", name)
    return short


def describe_sent(sent: Sent) -> str:
    if sent.echo is not None:
        return f"the echo of a probe of {sent.process}"
    fact = sent.fact
    assert fact is not None
    digest = getattr(fact, "digest", None)
    return f"{type(fact).__name__} {'' if digest is None else NAMES[digest]} in {fact.repository}"


def describe_slices(slices: Sequence[Slice]) -> str:
    sent = [
        "an echo" if item.echo is not None else f"{type(item.fact).__name__} {NAMES[item.fact.digest]}"  # type: ignore[union-attr]
        for piece in slices
        for item in piece.items
    ]
    return ", ".join(sent)


def _record_findings(connection: Any, pod: int) -> None:
    for each in Check:
        connection.execute(
            """
            INSERT INTO findings (pod_id, "check", result, meaning, proof, fix)
            VALUES (%s, %s, 'proved', '', '', '')
            """,
            (pod, each),
        )


def populate(world: World) -> None:
    """Register the pods, as an operator does, with a doctor who finds all well."""
    connection: Any = world.session
    for name, number in world.cast.pods.items():
        connection.execute(
            "INSERT INTO pods (name, kind, registries, event_token_sha256) VALUES (%s, %s, %s, %s)",
            (f"pod-{name}", str(kind_of(name)), [f"http://{name}"], b"0" * 32),
        )
        connection.execute("INSERT INTO pod_prefixes (prefix, pod_id) VALUES (%s, %s)", (f"pod-{name}", number))
        _record_findings(connection, number)
    for number in range(PARTITIONS):
        assert progress.set_position(connection, (EVENTS, number), None, Position(Progress(0, None, None), None))
    controls.set_switch(connection, "a history", on=True)
