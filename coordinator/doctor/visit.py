"""The experiments of one visit of the doctor to a pod, each made once and shared by the checks.

Route: `Visit.ping_results` (which addresses answer) -> `Visit.pushes` (at each of them: an image, a probe, a last blob)
-> `Visit.reports` (the events of these pushes, and the processes that sent them) -> `Visit.kinds` (one push of each
kind, and its events: kinds.py) -> the checks.
An experiment runs when a check first asks for it; its result is kept.
Not here: what it proves (the checks), removing it (scratch.py).
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import structlog

from coordinator.db.connection import Connections
from coordinator.doctor import kinds
from coordinator.doctor import table as findings
from coordinator.doctor.kinds import KindsReport
from coordinator.doctor.scratch import Announcement, Scratch, clean_registry_after
from coordinator.doctor.table import ExaminedPod
from coordinator.doctor.texts import PodFacts
from coordinator.domain.hosts import is_address
from coordinator.domain.names import parse_digest
from coordinator.domain.pods import ProbeMethod, parse_registry
from coordinator.domain.refusals import Refusals
from coordinator.errors import BaleenError, UnavailableError
from coordinator.gitlab.databases import GitlabDatabases
from coordinator.ingest.refusals import EVERY_S
from coordinator.kafka.log import LogInspector
from coordinator.kafka.tail import EventTail, TailedRecord
from coordinator.kafka.topics import EVENTS
from coordinator.pods import refusals
from coordinator.pods.addresses import Resolve, resolve
from coordinator.pods.prober import AGENT
from coordinator.registry.auth import Credentials
from coordinator.registry.client import RegistryClient, RegistryError, RegistryGoneError
from coordinator.registry.images import Image, Layer
from coordinator.settings import Settings
from coordinator.storage.layout import blob_key, layer_link_key, revision_link_key
from coordinator.storage.trial import TrialStore
from coordinator.table import processes
from schemas.records import RegistryEvent, RegistryWatermark

#: A refusal counts if ingest noted it this long before the visit, or later: ingest notes one per `EVERY_S`.
RECENT_S = 2 * EVERY_S
#: For one request to the registry.
TIMEOUT_S = 10.0
#: How long an event may take until it is received and applied. A registry sends one event at a time, and a busy one
#: may have others to send first.
PATIENCE_S = 30.0
POLL_S = 0.1

T = TypeVar("T")

log = structlog.get_logger()


class Instruments(NamedTuple):
    """The services that a visit uses."""

    settings: Settings
    connections: Connections
    #: With Baleen's own key.
    store: TrialStore
    #: With the key of the pod's registry; None if it is not given.
    pod_store: TrialStore | None
    credentials: Credentials | None
    inspector: LogInspector
    tail: EventTail
    #: For pods whose registry has a database.
    databases: GitlabDatabases
    patience: float = PATIENCE_S
    resolve: Resolve = resolve


class Place(NamedTuple):
    """One address of the pod's registry."""

    url: str
    address: str
    client: RegistryClient

    def __str__(self) -> str:
        return self.url if parse_registry(self.url).host == self.address else f"{self.url} at {self.address}"


class PingResult(NamedTuple):
    """What an address answered to GET /v2/. `vacant`: nothing listens there, and the name has others that answer."""

    place: Place
    error: RegistryError | None
    vacant: bool = False


class Push(NamedTuple):
    """What was done at one place, in this order: push of an image, probe, pull, push of a last blob.

    A process sends its events in order: once that of the last blob came, no earlier one is still to come.
    """

    place: Place
    image: Image
    nonce: str
    last: Layer
    #: Times before and after the manifest's push, by the database's clock.
    asked_at: datetime | None = None
    answered_at: datetime | None = None
    #: The nonce in the User-Agent of the pull: that of the probe where probes are pulls.
    pull: str = ""
    #: Why it ended early; None if it did not.
    error: str | None = None


class PushReport(NamedTuple):
    """The events of a push: the first record of each."""

    push: Push
    #: By digest: configuration and layers.
    blobs: dict[str, TailedRecord]
    manifest: TailedRecord | None
    #: Echoes of the probe, one for each partition.
    echoes: list[TailedRecord]
    last: TailedRecord | None
    #: Events of the pull, if the registry sends such events.
    pulls: Sequence[TailedRecord] = ()

    @property
    def missing(self) -> list[str]:
        """Digests that were pushed and not reported."""
        image = self.push.image
        reported = self.blobs.keys() | ({image.digest} if self.manifest else set())
        return [digest for digest in (*(blob.digest for blob in image.blobs), image.digest) if digest not in reported]

    @property
    def events(self) -> list[TailedRecord]:
        return [*self.blobs.values(), *(each for each in (self.manifest, self.last) if each is not None)]

    @property
    def processes(self) -> set[str]:
        """The processes that sent these events."""
        return {entry.record.process for entry in (*self.events, *self.echoes) if entry.record.process}

    @property
    def is_one_process(self) -> bool:
        """Whether one process sent all of them: only then do they come in order."""
        return len(self.processes) == 1

    @property
    def is_image_over(self) -> bool:
        """Whether no more events of the image are to come: that of something later came."""
        copies = {entry.record.partitions for entry in self.echoes if isinstance(entry.record, RegistryWatermark)}
        # Partitions are read in any order: only with its echo in every partition is all before the probe read.
        echoed = bool(copies) and {len({entry.partition for entry in self.echoes})} == copies
        return self.is_one_process and (echoed or self.last is not None)

    @property
    def is_over(self) -> bool:
        """Whether no more events are to come."""
        if self.missing:
            return self.is_image_over
        return self.last is not None and (self.is_one_process or bool(self.echoes))


class Visit:
    """One visit of the doctor to one pod. Used by one thread."""

    def __init__(self, instruments: Instruments, pod: ExaminedPod) -> None:
        self.instruments = instruments
        self.pod = pod
        self.scratch = Scratch(pod, instruments.store, instruments.connections)
        #: Events of the scratch repositories, and of probes, that came since the visit began.
        self.entries: list[TailedRecord] = []
        #: The processes that reported a push of the visit; empty until `reports` is read.
        self.reached: set[str] = set()
        self._clients: list[RegistryClient] = []
        self._began = time.monotonic()

    @property
    def pod_facts(self) -> PodFacts:
        settings, store = self.instruments.settings, self.instruments.store
        return PodFacts(
            self.pod.name,
            self.pod.prefix,
            self.pod.registries,
            settings.url,
            store.bucket,
            f"/{store.root.rstrip('/')}",
            settings.s3_endpoint_url,
            self.pod.probe,
        )

    def clean(self) -> list[str]:
        """Remove everything that the visit made; return sentences about what could not be removed."""
        try:
            clients = [place.client for place in self.places]
        except BaleenError:
            clients = []  # then nothing was pushed either
        problems = self.scratch.clean(clients, self._is_quiet)
        return problems + (self._find_rows() if self.pod.kind.has_registry_database and self.scratch.done else [])

    def _find_rows(self) -> list[str]:
        """Return a sentence if the registry's database still has manifests or links of the scratch repositories."""
        try:
            left = self.instruments.databases.of(self.pod.name).has_link(self.scratch.repositories)
        except BaleenError as error:
            return [str(error)]
        return [f"The registry's database still has rows of {self.scratch.repository}: permit deletes."] if left else []

    def clean_registry(self) -> None:
        """Remove what killed visits left in the registry's database, if there is one, as far as that is possible."""
        if not self.pod.kind.has_registry_database or not self.places:
            return
        database, client = self.instruments.databases.of(self.pod.name), self.places[0].client
        try:
            clean_registry_after(self.pod, client, database, self.instruments.connections, self.scratch)
        except BaleenError as error:
            log.warning("what an earlier visit left stays in the registry", pod=self.pod.name, reason=str(error))

    def close(self) -> None:
        for client in self._clients:
            client.close()

    # Addresses

    @cached_property
    def unresolved(self) -> dict[str, str]:
        """URLs that do not resolve, and why."""
        return {url: found for url in self.pod.registries if isinstance(found := self.look_up(url), str)}

    @cached_property
    def ping_results(self) -> list[PingResult]:
        """What each address of each URL answers. One that requires login has not answered."""
        found: list[PingResult] = []
        for url in self.pod.registries:
            addresses = self.look_up(url)
            if not isinstance(addresses, str):
                found += self._ping([Place(url, address, self._make_client(url, address)) for address in addresses])
        return found

    @cached_property
    def places(self) -> list[Place]:
        """The addresses at which the registry answers."""
        return [answer.place for answer in self.ping_results if answer.error is None]

    def look_up(self, url: str) -> list[str] | str:
        """Return the addresses of a URL's host, or why there are none."""
        registry = parse_registry(url)
        if is_address(registry.host):
            return [registry.host]
        try:
            return list(self.instruments.resolve(registry.host, registry.port)) or "its name has no address here"
        except UnavailableError as error:
            return str(error)

    def _ping(self, places: list[Place]) -> list[PingResult]:
        errors: dict[str, RegistryError] = {}
        for place in places:
            try:
                place.client.ping()
            except RegistryError as error:
                errors[place.address] = error
        return [
            PingResult(
                place,
                errors.get(place.address),
                # The same rule as the prober's: a name often has an IPv6 address at which nothing listens.
                vacant=isinstance(errors.get(place.address), RegistryGoneError)
                and len(errors) < len(places)
                and (place.url, place.address) not in self.pod.answered,
            )
            for place in places
        ]

    def _make_client(self, url: str, address: str) -> RegistryClient:
        settings = self.instruments.settings
        client = RegistryClient(
            url,
            address=address,
            credentials=self.instruments.credentials,
            ca_file=settings.registry_ca_file,
            timeout=TIMEOUT_S,
        )
        self._clients.append(client)
        return client

    # Pushes, and their events

    @cached_property
    def pushes(self) -> list[Push]:
        """One push for each place."""
        return [self._make_push(place) for place in self.places]

    def _make_push(self, place: Place) -> Push:
        scratch, client = self.scratch, place.client
        image = scratch.make_image([scratch.make_layer(), scratch.make_layer()])
        push = Push(place, image, self.make_nonce(place), scratch.make_layer())
        try:
            for blob in image.blobs:
                scratch.push_blob(client, blob)
            asked_at = self.read_clock()
            scratch.put_manifest(client, image)
            push = push._replace(asked_at=asked_at, answered_at=self.read_clock())
            pull = self.send_probe(place, image, push.nonce)
            push = push._replace(pull=pull or self.pull(place, image))
            scratch.push_blob(client, push.last)
        except RegistryError as error:
            return push._replace(error=str(error))
        return push

    def send_probe(self, place: Place, image: Image, nonce: str) -> str | None:
        """Send a probe for an image of the visit as the prober does for the pod; return the nonce if it is a pull."""
        if self.pod.probe is ProbeMethod.PULL:
            return self.pull(place, image, nonce)
        self.scratch.put_manifest(place.client, image, f"{AGENT}{nonce}")
        return None

    def make_nonce(self, place: Place) -> str:
        """Return a new nonce that ingest knows, and whose echo moves no watermark."""
        return self.query(
            lambda connection: processes.insert_trial_probe(connection, self.pod.id, place.url, place.address)
        )

    def pull(self, place: Place, image: Image, nonce: str | None = None) -> str:
        """Pull an image of the visit, and return the nonce in the User-Agent."""
        nonce = nonce or self.make_nonce(place)
        found = place.client.has_manifest(
            self.scratch.repository, image.digest, user_agent=f"{AGENT}{nonce}", follow=False
        )
        if not found:
            raise RegistryError("it accepted a manifest, and answers that it does not have it")
        return nonce

    @cached_property
    def reports(self) -> list[PushReport]:
        """The events of each push that succeeded, once no more are to come or patience has ended."""
        pushes = [push for push in self.pushes if push.error is None]
        self.read_until(lambda: all(self._make_report(push).is_over for push in pushes))
        reports = [self._make_report(push) for push in pushes]
        self.reached.update(*(report.processes for report in reports))
        return reports

    def _make_report(self, push: Push) -> PushReport:
        wanted = {blob.digest for blob in push.image.blobs}
        pulls: list[TailedRecord] = []
        report = PushReport(push, {}, None, [], None, pulls)
        for entry in self.entries:
            record = entry.record
            if isinstance(record, RegistryWatermark):
                if record.nonce == push.nonce:
                    report.echoes.append(entry)
                if record.nonce == push.pull:
                    pulls.append(entry)
            elif record.action != "push" or record.repository != self.scratch.repository:
                continue
            elif record.digest in wanted:
                report.blobs.setdefault(record.digest, entry)
            elif record.digest == push.image.digest and report.manifest is None:
                report = report._replace(manifest=entry)
            elif record.digest == push.last.digest and report.last is None:
                report = report._replace(last=entry)
        return report

    @cached_property
    def kinds(self) -> list[KindsReport]:
        """The events within patience of one push of each kind, at each place that reported the first push."""
        pushed = [kinds.push_kinds(self.scratch, report.push.place) for report in self.reports if report.processes]
        done = [each for each in pushed if each.error is None]
        self.read_until(lambda: all(kinds.make_kinds_report(each, self.find_event).is_over for each in done))
        return [kinds.make_kinds_report(each, self.find_event) for each in pushed]

    @cached_property
    def are_applied(self) -> bool:
        """Whether all events of the reports are applied, within patience."""
        self.reports, self.kinds  # noqa: B018 - they read events
        return self.await_applied()

    def find_event(self, wanted: Announcement) -> TailedRecord | None:
        """Return the first event of something that was done; None if none came."""
        for entry in self.entries:
            record = entry.record
            if isinstance(record, RegistryEvent) and (record.action, record.repository, record.digest) == wanted:
                return entry
        return None

    def read_refusals(self) -> Refusals | None:
        """Return recent refusals of events in the pod's name for their token, as ingest noted them."""
        recent = time.monotonic() - self._began + RECENT_S
        return self.query(lambda connection: refusals.read_recent(connection, self.pod.id, recent))

    # Storage

    def find_keys(self, push: Push) -> tuple[list[str], list[str]]:
        """Return the keys that a push stores in the shared bucket and root: those that exist, those that do not."""
        image, repository = push.image, self.scratch.repository
        digests = [*(parse_digest(blob.digest) for blob in image.blobs), parse_digest(image.digest)]
        # The bytes of a manifest may be in the registry's database.
        keys = [blob_key(digest) for digest in (digests[:-1] if self.pod.kind.has_registry_database else digests)]
        if self.pod.kind.links_in_store:
            keys += [layer_link_key(repository, digest) for digest in digests[:-1]]
            keys.append(revision_link_key(repository, digests[-1]))
        there = [key for key in keys if self.instruments.store.head(key) is not None]
        return there, [key for key in keys if key not in there]

    # Waiting

    def read_until(self, is_over: Callable[[], bool], more: float = 0.0) -> bool:
        """Read events until `over()` is true, or patience and `more` seconds have ended; return whether it is true."""
        deadline = time.monotonic() + self.instruments.patience + more
        while not is_over():
            if time.monotonic() > deadline:
                return False
            self.entries += [entry for entry in self.instruments.tail.poll(POLL_S) if self._is_ours(entry)]
        return True

    def await_applied(self) -> bool:
        """Wait until the events that came so far are applied; return whether they are."""
        ends: dict[int, int] = {}
        for entry in self.entries:
            ends[entry.partition] = max(ends.get(entry.partition, 0), entry.offset + 1)
        return self.read_until(
            lambda: self.query(lambda connection: findings.is_applied_up_to(connection, EVENTS, ends))
        )

    def _is_quiet(self) -> bool:
        """Wait until all that was done is reported and applied; return whether it is.

        Does not wait for a registry that reported nothing.
        """
        done = self.scratch.done
        if not self.pod.managed:
            return True
        if done and not self.entries:
            return False
        all_announced = self.read_until(lambda: all(self.find_event(each) is not None for each in done))
        return self.await_applied() and all_announced

    def read_clock(self) -> datetime:
        return self.query(findings.read_clock)

    def query(self, question: Callable[[Any], T]) -> T:
        with self.instruments.connections.use() as connection:
            return question(connection)

    def _is_ours(self, entry: TailedRecord) -> bool:
        record = entry.record
        return isinstance(record, RegistryWatermark) or record.repository in self.scratch.repositories
