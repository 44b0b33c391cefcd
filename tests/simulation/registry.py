"""Registries as distribution is: they look before they link, tell later, and lose what they have not told.

Two pods: `a` runs two processes that serve the same repositories, `b` one. In some histories there is a third one, `g`,
whose registry is another (gitlab.py). A request is an actor of its own, that goes
on call by call; what a killed process was about to write may still land within the request bound after its death.
The clock of a process may be wrong. Not here: who asks for what, and when what dies (history.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from coordinator.domain.facts import BlobLinked, Fact, ManifestPushed, Removed
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.domain.references import ManifestContent, parse_manifest
from coordinator.storage.layout import blob_key, layer_link_key, revision_link_key
from coordinator.table.batch import Echo
from tests.simulation.scheduler import SECOND, Actor, Scheduler
from tests.simulation.store import Bucket

#: How long a request may run, in microseconds.
REQUEST_BOUND = 300 * SECOND
PARTITIONS = 2


class Image(NamedTuple):
    name: str
    digest: Digest
    body: bytes
    content: ManifestContent
    #: Names of what it lists: layers, or images.
    lists: tuple[str, ...]
    index: bool


def _digest(body: bytes) -> Digest:
    return Digest(hashlib.sha256(body).digest())


LAYERS = {name: f"the bytes of layer {name}".encode() for name in ("x", "y", "z")}


def _images() -> dict[str, Image]:
    known = {
        name: (_digest(body), len(body), "application/vnd.oci.image.layer.v1.tar") for name, body in LAYERS.items()
    }
    made: dict[str, Image] = {}
    for name, lists, index in (
        ("A", ("x",), False),
        ("B", ("x", "y"), False),
        ("C", ("y",), False),
        ("D", ("z",), False),
        ("I", ("A", "B"), True),
    ):
        listed = [
            {"mediaType": known[each][2], "digest": format_digest(known[each][0]), "size": known[each][1]}
            for each in lists
        ]
        kind = "index" if index else "manifest"
        media_type = f"application/vnd.oci.image.{kind}.v1+json"
        document = {"schemaVersion": 2, "mediaType": media_type, "annotations": {"name": name}}
        document |= {"manifests": listed} if index else {"config": listed[0], "layers": listed[1:]}
        body = json.dumps(document).encode()
        made[name] = Image(name, _digest(body), body, parse_manifest(body), lists, index)
        known[name] = (made[name].digest, len(body), media_type)
    return made


IMAGES = _images()
NAMES: dict[Digest, str] = {_digest(body): f"layer {name}" for name, body in LAYERS.items()} | {
    image.digest: f"image {name}" for name, image in IMAGES.items()
}
#: By manifest: itself, and what it lists.
NEEDS: dict[Digest, frozenset[Digest]] = {
    image.digest: frozenset({image.digest, *(reference.digest for reference in image.content.references)})
    for image in IMAGES.values()
}
#: By manifest: what a pull of it reads, through the children of an index.
PULLED: dict[Digest, frozenset[Digest]] = {
    digest: listed.union(*(NEEDS[each] for each in listed if each in NEEDS)) for digest, listed in NEEDS.items()
}


def digest_of(name: str) -> Digest:
    return IMAGES[name].digest if name in IMAGES else _digest(LAYERS[name])


def body_of(name: str) -> bytes:
    return IMAGES[name].body if name in IMAGES else LAYERS[name]


class Sent(NamedTuple):
    """An event in the memory of a process, or in the log."""

    process: str
    pod: int
    #: None of a probe that was pulled.
    partition: int | None
    fact: Fact | None
    echo: Echo | None = None


@dataclass
class Process:
    name: str
    pod: int
    url: str
    address: str
    skew: timedelta = timedelta()
    alive: bool = True
    #: How often there was one in this place.
    generation: int = 0
    queue: deque[Sent] = field(default_factory=deque)

    @property
    def instance(self) -> str:
        return f"{self.name}.{self.generation}"


class Repository(NamedTuple):
    name: RepositoryName
    pod: str
    partition: int


REPOSITORIES = {
    "a/one": Repository(RepositoryName("pod-a/one"), "a", 0),
    "a/two": Repository(RepositoryName("pod-a/two"), "a", 1),
    "b/one": Repository(RepositoryName("pod-b/one"), "b", 1),
}


#: Of a registry that is no registered pod's: it uses the same bucket and root, and nobody gets its events.
UNREGISTERED = {"c/one": Repository(RepositoryName("pod-c/one"), "c", 0)}
#: Of the pod of kind `gitlab`, in histories that have one.
GITLAB_REPOSITORIES = {
    "g/one": Repository(RepositoryName("pod-g/one"), "g", 0),
    "g/two": Repository(RepositoryName("pod-g/two"), "g", 1),
}
ALL_REPOSITORIES = REPOSITORIES | UNREGISTERED | GITLAB_REPOSITORIES


class DeadError(Exception):
    """The process that served the request is dead."""


class Registry:
    """What a process does for a client. Every method is code of an actor."""

    def __init__(self, bucket: Bucket, scheduler: Scheduler) -> None:
        self._bucket = bucket
        self._scheduler = scheduler
        #: How probably a link is written and the client gets 500, without an event.
        self.lossy = 0.0
        #: A link was written of which no event tells.
        self.lost = False
        #: When the last delete event of a link was sent, by the link's key.
        self.deletes: dict[str, int] = {}

    def upload(self, process: Process, where: str, name: str) -> bool:
        """The end of an upload: what is there already is not stored again (facts: the gap before the link)."""
        with self._request(process):
            self._store(f"ends an upload of {name} to {where}", name)
            return self._link_layer(process, where, name)

    def mount(self, process: Process, where: str, name: str, source: str) -> bool:
        with self._request(process):
            digest = digest_of(name)
            self._see(f"mounts {name} from {source} to {where}: looks for link and bytes")
            link = layer_link_key(ALL_REPOSITORIES[source].name, digest)
            if not (self._bucket.has(link) and self._bucket.has(blob_key(digest))):
                return False
            return self._link_layer(process, where, name)

    def has(self, process: Process, where: str, name: str) -> bool:
        """HEAD of a blob."""
        with self._request(process):
            digest = digest_of(name)
            self._see(f"is asked whether {where} has {name}")
            return self._bucket.has(layer_link_key(ALL_REPOSITORIES[where].name, digest)) and self._bucket.has(
                blob_key(digest)
            )

    def put_manifest(self, process: Process, where: str, name: str) -> bool:
        """PUT of a manifest; False if something is lacking."""
        with self._request(process):
            image, repository = IMAGES[name], ALL_REPOSITORIES[where].name
            for each in image.lists:
                self._see(f"takes image {name} for {where}: looks for {each}")
                digest = digest_of(each)
                link = (revision_link_key if image.index else layer_link_key)(repository, digest)
                if not (self._bucket.has(link) and self._bucket.has(blob_key(digest))):
                    self._scheduler.note_current(f"refuses image {name}: {each} is not there")
                    return False
            self._see(f"looks whether the bytes of image {name} are there")
            if not self._bucket.has(blob_key(image.digest)):
                self._see(f"stores the bytes of image {name}")
                self._bucket.put(blob_key(image.digest), image.body)
            self._link(revision_link_key(repository, image.digest), f"links image {name} in {where}")
            if self._scheduler.roll(self.lossy):
                self.lost = True
                self._scheduler.note_current(
                    f"and fails: the client gets 500, and no event says that {where} links {name}"
                )
                return False
            self._see(f"is about to tell that {where} has image {name}")
            at = self._now(process)
            self._send(process, where, ManifestPushed(repository, image.digest, at, len(image.body), image.content))
            return True

    def delete_manifest(self, process: Process, where: str, name: str) -> bool:
        with self._request(process):
            image, repository = IMAGES[name], ALL_REPOSITORIES[where].name
            key = revision_link_key(repository, image.digest)
            self._see(f"is asked to delete image {name} from {where}")
            if not self._bucket.has(key):
                return False
            self._see(f"unlinks image {name} in {where}")
            self._bucket.delete(key)
            self._see(f"is about to tell that {where} has image {name} no more")
            self.deletes[key] = self._scheduler.now
            self._send(process, where, Removed(repository, image.digest, self._now(process)))
            return True

    def pull(self, process: Process, nonce: str) -> None:
        """The known manifest is asked for, with a nonce."""
        process.queue.append(Sent(process.instance, process.pod, None, None, Echo(process.instance, nonce, PARTITIONS)))

    def holds(self, where: str, name: str) -> bool:
        """Whether a repository has an image."""
        return self._bucket.has(revision_link_key(ALL_REPOSITORIES[where].name, digest_of(name)))

    def _store(self, what: str, name: str) -> None:
        key = blob_key(digest_of(name))
        self._see(f"{what}: looks whether its bytes are there")
        if not self._bucket.has(key):
            self._see(f"stores the bytes of {name}")
            self._bucket.put(key, body_of(name))

    def _link_layer(self, process: Process, where: str, name: str) -> bool:
        digest, repository = digest_of(name), ALL_REPOSITORIES[where].name
        self._link(layer_link_key(repository, digest), f"links layer {name} in {where}")
        self._see(f"is about to tell that {where} has {name}")
        self._send(process, where, BlobLinked(repository, digest, self._now(process), len(body_of(name))))
        return True

    def _link(self, key: str, what: str) -> None:
        body = f"sha256:{key.split('/')[-2]}".encode()
        actor = self._actor
        if actor is not None:
            actor.writing = key, lambda: self._bucket.put(key, body)
        self._see(what)
        self._bucket.put(key, body)
        if actor is not None:
            actor.writing = None

    def _see(self, what: str) -> None:
        self._scheduler.pause("store", what)

    def _send(self, process: Process, where: str, fact: Fact) -> None:
        if where in UNREGISTERED:
            return
        process.queue.append(Sent(process.instance, process.pod, ALL_REPOSITORIES[where].partition, fact))

    def _now(self, process: Process) -> datetime:
        return self._scheduler.time() + process.skew

    @property
    def _actor(self) -> Actor | None:
        return self._scheduler.current

    @contextmanager
    def _request(self, process: Process) -> Iterator[None]:
        """From its beginning to its end a request is in one process, and bounded in time."""
        if not process.alive:
            raise DeadError
        actor = self._actor
        if actor is not None:
            actor.process, actor.deadline = process, self._scheduler.now + REQUEST_BOUND
        try:
            yield
        finally:
            if actor is not None:
                actor.process = actor.deadline = None
