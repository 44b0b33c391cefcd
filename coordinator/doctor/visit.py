"""What one visit tries, once, for all the checks that look at it.

Route: `Visit.answers` (which addresses answer) -> `Visit.pushes` (at each of them: an image, a probe, a last blob) ->
`Visit.reports` (what was told of that, and by whom) -> `Visit.kinds` (one of each kind there, and what was told of
it: kinds.py) -> the checks.
Each is tried when a check first asks for it, and remembered.
Not here: what it proves (the checks), taking it away (scratch.py).
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from coordinator.db.connection import Connections
from coordinator.doctor import kinds
from coordinator.doctor import table as findings
from coordinator.doctor.kinds import KindsReport
from coordinator.doctor.scratch import Announcement, Scratch
from coordinator.doctor.table import ExaminedPod
from coordinator.doctor.texts import Patient
from coordinator.domain.hosts import is_address
from coordinator.domain.names import parse_digest
from coordinator.domain.pods import Linker, ProbeMethod, parse_registry
from coordinator.domain.refusals import Refusals
from coordinator.errors import BaleenError, UnavailableError
from coordinator.ingest.refusals import EVERY_S
from coordinator.kafka.log import LogInspector
from coordinator.kafka.tail import EventTail, Told
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
from coordinator.table import processes as sources
from schemas.records import RegistryEvent, RegistryWatermark

#: A refusal that was noted so long before a visit, or since, is of now: ingest notes one in `EVERY_S`.
LATELY_S = 2 * EVERY_S
#: Of one request to the registry.
TIMEOUT_S = 10.0
#: How long something that was done may take until it is told and applied. A registry sends one event at a time, so
#: that one which is busy may have some to send first.
PATIENCE_S = 30.0
POLL_S = 0.1

T = TypeVar("T")


class Instruments(NamedTuple):
    """What a doctor works with."""

    settings: Settings
    connections: Connections
    #: With Baleen's own key.
    store: TrialStore
    #: With that of the pod's registry, if it is given.
    pod_store: TrialStore | None
    credentials: Credentials | None
    inspector: LogInspector
    tail: EventTail
    patience: float = PATIENCE_S
    resolve: Resolve = resolve


class Place(NamedTuple):
    """One address of the pod's registry."""

    url: str
    address: str
    client: RegistryClient

    def __str__(self) -> str:
        return self.url if parse_registry(self.url).host == self.address else f"{self.url} at {self.address}"


class Answer(NamedTuple):
    """What an address said to /v2/. `vacant`: nobody listens there, and the name leads to others who do."""

    place: Place
    error: RegistryError | None
    vacant: bool = False


class Push(NamedTuple):
    """What was done at one place: an image was pushed; then a probe for it sent; a pull; and last a blob pushed.

    A process tells of one thing after the other: once the last was told, nothing of the others is still to come.
    """

    place: Place
    image: Image
    nonce: str
    last: Layer
    #: By the database's clock, around the manifest's push.
    asked_at: datetime | None = None
    answered_at: datetime | None = None
    #: In the User-Agent of a pull of the image: the nonce itself where probes are pulls.
    pull: str = ""
    #: Where it ended early, and why.
    error: str | None = None


class Report(NamedTuple):
    """What was told of a push: the first record of each thing."""

    push: Push
    #: By digest: configuration and layers.
    blobs: dict[str, Told]
    manifest: Told | None
    #: Of the probe, one for each partition.
    echoes: list[Told]
    last: Told | None
    #: Of the pull, as far as its registry sends pull events.
    pulls: Sequence[Told] = ()

    @property
    def missing(self) -> list[str]:
        """Digests of what was pushed and not told of."""
        image = self.push.image
        told = self.blobs.keys() | ({image.digest} if self.manifest else set())
        return [digest for digest in (*(blob.digest for blob in image.blobs), image.digest) if digest not in told]

    @property
    def events(self) -> list[Told]:
        return [*self.blobs.values(), *(each for each in (self.manifest, self.last) if each is not None)]

    @property
    def sources(self) -> set[str]:
        """The processes that told of it."""
        return {told.record.source for told in (*self.events, *self.echoes) if told.record.source}

    @property
    def is_one_process(self) -> bool:
        """Whether one process told of all: it tells of one thing after the other."""
        return len(self.sources) == 1

    @property
    def is_image_over(self) -> bool:
        """Nothing more of the image is to come: what was done after it was told."""
        copies = {told.record.partitions for told in self.echoes if isinstance(told.record, RegistryWatermark)}
        # Partitions are read in any order: only the last copy says that all before it were read.
        echoed = bool(copies) and {len({told.partition for told in self.echoes})} == copies
        return self.is_one_process and (echoed or self.last is not None)

    @property
    def is_over(self) -> bool:
        """Nothing more is to come."""
        if self.missing:
            return self.is_image_over
        return self.last is not None and (self.is_one_process or bool(self.echoes))


class Visit:
    """One doctor with one pod. Used by one thread."""

    def __init__(self, instruments: Instruments, pod: ExaminedPod) -> None:
        self.instruments = instruments
        self.pod = pod
        self.scratch = Scratch(pod, instruments.store, instruments.connections)
        #: What came of the pod since the visit began, as far as it is ours or a probe's.
        self.told: list[Told] = []
        #: The processes that told of a push of the visit; none until there are reports.
        self.reached: set[str] = set()
        self._clients: list[RegistryClient] = []
        self._began = time.monotonic()

    @property
    def patient(self) -> Patient:
        settings, store = self.instruments.settings, self.instruments.store
        return Patient(
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
        """Take away what was tried; return in sentences what could not be."""
        try:
            clients = [place.client for place in self.places]
        except BaleenError:
            clients = []  # then nothing was pushed either
        return self.scratch.clean(clients, self._is_quiet)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    # Addresses

    @cached_property
    def unresolved(self) -> dict[str, str]:
        """URLs that lead nowhere, and why."""
        return {url: found for url in self.pod.registries if isinstance(found := self._addresses(url), str)}

    @cached_property
    def answers(self) -> list[Answer]:
        """What each address of each URL answers. Whoever wants to know who asks has not answered."""
        found: list[Answer] = []
        for url in self.pod.registries:
            addresses = self._addresses(url)
            if not isinstance(addresses, str):
                found += self._ask([Place(url, address, self._client(url, address)) for address in addresses])
        return found

    @cached_property
    def places(self) -> list[Place]:
        """Where the registry answers."""
        return [answer.place for answer in self.answers if answer.error is None]

    def _addresses(self, url: str) -> list[str] | str:
        registry = parse_registry(url)
        if is_address(registry.host):
            return [registry.host]
        try:
            return list(self.instruments.resolve(registry.host, registry.port)) or "its name has no address here"
        except UnavailableError as error:
            return str(error)

    def _ask(self, places: list[Place]) -> list[Answer]:
        errors: dict[str, RegistryError] = {}
        for place in places:
            try:
                place.client.ping()
            except RegistryError as error:
                errors[place.address] = error
        return [
            Answer(
                place,
                errors.get(place.address),
                # As the prober has it: a name often has an address of IP version 6 at which nothing listens.
                vacant=isinstance(errors.get(place.address), RegistryGoneError)
                and len(errors) < len(places)
                and (place.url, place.address) not in self.pod.answered,
            )
            for place in places
        ]

    def _client(self, url: str, address: str) -> RegistryClient:
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

    # Pushes, and what is told of them

    @cached_property
    def pushes(self) -> list[Push]:
        """One for each place."""
        return [self._push(place) for place in self.places]

    def _push(self, place: Place) -> Push:
        scratch, client = self.scratch, place.client
        image = scratch.image([scratch.layer(), scratch.layer()])
        push = Push(place, image, self.nonce(place), scratch.layer())
        try:
            for blob in image.blobs:
                scratch.push_blob(client, blob)
            asked_at = self.now()
            scratch.put_manifest(client, image)
            push = push._replace(asked_at=asked_at, answered_at=self.now())
            pull = self.probe(place, image, push.nonce)
            push = push._replace(pull=pull or self.pull(place, image))
            scratch.push_blob(client, push.last)
        except RegistryError as error:
            return push._replace(error=str(error))
        return push

    def probe(self, place: Place, image: Image, nonce: str) -> str | None:
        """Send a probe for an image of the visit as the prober does for the pod; return the nonce if it is a pull."""
        if self.pod.probe is ProbeMethod.PULL:
            return self.pull(place, image, nonce)
        self.scratch.put_manifest(place.client, image, f"{AGENT}{nonce}")
        return None

    def nonce(self, place: Place) -> str:
        """Return a nonce that ingest knows, and whose echo moves no watermark."""
        return self.ask(
            lambda connection: sources.insert_trial_probe(connection, self.pod.id, place.url, place.address)
        )

    def pull(self, place: Place, image: Image, nonce: str | None = None) -> str:
        """Ask for an image of the visit, and return the nonce in the User-Agent."""
        nonce = nonce or self.nonce(place)
        found = place.client.has_manifest(
            self.scratch.repository, image.digest, user_agent=f"{AGENT}{nonce}", follow=False
        )
        if not found:
            raise RegistryError("it took a manifest, and does not have it")
        return nonce

    @cached_property
    def reports(self) -> list[Report]:
        """What was told of each push that succeeded, once nothing more is to come or patience has ended."""
        pushes = [push for push in self.pushes if push.error is None]
        self.wait(lambda: all(self._report(push).is_over for push in pushes))
        reports = [self._report(push) for push in pushes]
        self.reached.update(*(report.sources for report in reports))
        return reports

    def _report(self, push: Push) -> Report:
        wanted = {blob.digest for blob in push.image.blobs}
        pulls: list[Told] = []
        report = Report(push, {}, None, [], None, pulls)
        for told in self.told:
            record = told.record
            if isinstance(record, RegistryWatermark):
                if record.nonce == push.nonce:
                    report.echoes.append(told)
                if record.nonce == push.pull:
                    pulls.append(told)
            elif record.action != "push" or record.repository != self.scratch.repository:
                continue
            elif record.digest in wanted:
                report.blobs.setdefault(record.digest, told)
            elif record.digest == push.image.digest and report.manifest is None:
                report = report._replace(manifest=told)
            elif record.digest == push.last.digest and report.last is None:
                report = report._replace(last=told)
        return report

    @cached_property
    def kinds(self) -> list[KindsReport]:
        """One of each kind, at each place where anything was told of the push, and what was told within patience."""
        pushed = [kinds.push(self.scratch, report.push.place) for report in self.reports if report.sources]
        done = [each for each in pushed if each.error is None]
        self.wait(lambda: all(kinds.report(each, self.announced).is_over for each in done))
        return [kinds.report(each, self.announced) for each in pushed]

    @cached_property
    def are_applied(self) -> bool:
        """Whether all that is in the reports was applied, within patience."""
        self.reports, self.kinds  # noqa: B018 - tell
        return self.await_applied()

    def announced(self, wanted: Announcement) -> Told | None:
        """The first record of something that was done."""
        for told in self.told:
            record = told.record
            if isinstance(record, RegistryEvent) and (record.action, record.repository, record.digest) == wanted:
                return told
        return None

    def refused(self) -> Refusals | None:
        """Whether events in the pod's name are refused for their token now, as far as ingest has noted it."""
        lately = time.monotonic() - self._began + LATELY_S
        return self.ask(lambda connection: refusals.lately(connection, self.pod.id, lately))

    # Storage

    def stored(self, push: Push) -> tuple[list[str], list[str]]:
        """Keys that a push should have left in the shared bucket and root: those that are there, those that are not."""
        image, repository = push.image, self.scratch.repository
        digests = [*(parse_digest(blob.digest) for blob in image.blobs), parse_digest(image.digest)]
        keys = [blob_key(digest) for digest in digests]
        if self.pod.linker is Linker.LINK:
            keys += [layer_link_key(repository, digest) for digest in digests[:-1]]
            keys.append(revision_link_key(repository, digests[-1]))
        there = [key for key in keys if self.instruments.store.head(key) is not None]
        return there, [key for key in keys if key not in there]

    # Waiting

    def wait(self, over: Callable[[], bool], more: float = 0.0) -> bool:
        """Read what is told until something is so, or patience and `more` seconds have ended; whether it is."""
        deadline = time.monotonic() + self.instruments.patience + more
        while not over():
            if time.monotonic() > deadline:
                return False
            self.told += [told for told in self.instruments.tail.poll(POLL_S) if self._is_ours(told)]
        return True

    def await_applied(self) -> bool:
        """Wait until what was told so far is applied; whether it is."""
        ends: dict[int, int] = {}
        for told in self.told:
            ends[told.partition] = max(ends.get(told.partition, 0), told.offset + 1)
        return self.wait(lambda: self.ask(lambda connection: findings.applied_up_to(connection, EVENTS, ends)))

    def _is_quiet(self) -> bool:
        """Wait until all that was done was told and applied; whether it was. Who tells nothing is not waited for."""
        done = self.scratch.done
        if not self.pod.managed:
            return True
        if done and not self.told:
            return False
        told = self.wait(lambda: all(self.announced(each) is not None for each in done))
        return self.await_applied() and told

    def now(self) -> datetime:
        return self.ask(findings.now)

    def ask(self, question: Callable[[Any], T]) -> T:
        with self.instruments.connections.use() as connection:
            return question(connection)

    def _is_ours(self, told: Told) -> bool:
        record = told.record
        return isinstance(record, RegistryWatermark) or record.repository in self.scratch.repositories
