"""A pod whose registry is a few lines: it writes links and bytes as distribution does, and reports them or not.

Route: `World.push`, `delete`, … change the store and return the facts that their events say -> `World.apply` for those
that arrive -> `World.reconcile` runs the job as a scheduler does -> `holdings` beside `linked`.
Times of the store and of events are the test's (`at`), all before today; the jobs' are the database's.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from coordinator.audit.check import check_counts
from coordinator.db.connection import Connections
from coordinator.db.engine import temporary_engine
from coordinator.domain.facts import BlobLinked, Fact, ManifestPushed, Removed
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.domain.references import parse_manifest
from coordinator.jobs import table as jobs
from coordinator.jobs.work import Pulse, run_waiting_jobs
from coordinator.reconcile.linked_manifests import ChildAdder
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.reconcile.reconcile import Reconciler
from coordinator.reconcile.resolve import Resolver
from coordinator.reconcile.sizes import PRODUCTION, Sizes
from coordinator.storage.layout import blob_key, layer_link_key, repository_prefix, revision_link_key
from coordinator.storage.port import ObjectInfo, ObjectStore
from coordinator.table import statements
from coordinator.table.doubtful_removals import LinkedPod
from tests.storage.memory import MemoryObjectStore
from tests.support.tables import add_job, add_pod
from tests.table.harness import Table, at

Pairs = set[tuple[str, Digest]]

MARGIN = timedelta(seconds=10)
#: The links of these tests are weeks old: with this grace none is, with SHORT_GRACE all are.
LONG_GRACE = timedelta(days=3650)
SHORT_GRACE = timedelta(hours=24)
BOUND = timedelta(hours=1)


class Bucket(MemoryObjectStore):
    """A store whose clock is the test's, and which can be interrupted between one answer and the next."""

    def __init__(self, *, by_parts: bool = False) -> None:
        super().__init__(by_parts=by_parts)
        self.second = 0.0
        #: Called with what is about to be answered: `walk`, `head`, `get`, `check`, and the key or prefix.
        self.interrupt: Callable[[str, str], None] = lambda call, key: None
        #: Rearranges a listing.
        self.arrange: Callable[[Sequence[ObjectInfo]], Iterable[ObjectInfo]] = lambda entries: entries

    def put(self, key: str, body: bytes) -> None:
        super().put(key, body)
        with self._lock:
            self._objects[key] = self._objects[key]._replace(modified_at=at(self.second))

    def get(self, key: str, limit: int | None = None) -> bytes:
        self.interrupt("get", key)
        return super().get(key, limit)

    def head(self, key: str) -> ObjectInfo | None:
        self.interrupt("head", key)
        return super().head(key)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        for entry in self.arrange(list(super().walk(prefix))):
            self.interrupt("walk", entry.key)
            yield entry

    def check(self) -> None:
        self.interrupt("check", "")


class Image(NamedTuple):
    """A manifest as a client pushes it."""

    body: bytes
    digest: Digest
    layers: tuple[Digest, ...]


class Done(NamedTuple):
    """A job that has ended, or was left."""

    id: int
    state: str
    progress: Mapping[str, Any]
    error: str | None

    def count(self, name: str) -> int:
        return int(self.progress[name])


class World(Table):
    """A table and one pod of it, which owns `self.pod` and all below."""

    def __init__(
        self,
        url: str,
        store: ObjectStore | None = None,
        mode: str = "manifest",
        kind: str = "link",
        sizes: Sizes = PRODUCTION,
    ) -> None:
        super().__init__(url)
        self.sizes = sizes
        self.pulse = Pulse()
        self.bucket = Bucket()
        self.store: ObjectStore = self.bucket if store is None else store
        self.pod = f"pod-{self.space}"
        self.link_grace = SHORT_GRACE
        self.add_pod(self.pod, mode, kind)

    def add_pod(self, name: str, mode: str = "manifest", kind: str = "link") -> None:
        self.pods[name] = add_pod(self.connection, name, mode=mode, kind=kind)

    def name(self, repository: str) -> RepositoryName:
        """A repository of the pod; `.` is the one that the prefix itself names."""
        return RepositoryName(self.pod if repository == "." else f"{self.pod}/{repository}")

    # The registry

    def image(self, name: str, layers: Iterable[str] = ("l0", "l1")) -> Image:
        listed = [self.digest(layer) for layer in layers]
        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor(self.digest(f"config of {name}")),
            "layers": [_descriptor(layer) for layer in listed],
        }
        body = json.dumps(document).encode()
        return Image(body, Digest(hashlib.sha256(body).digest()), tuple(listed))

    def index(self, *children: Digest) -> Image:
        """An index of these, which is pushed as any image is."""
        document = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [_descriptor(child) for child in children],
        }
        body = json.dumps(document).encode()
        return Image(body, Digest(hashlib.sha256(body).digest()), children)

    def pushed(self, repository: str, image: Image, second: float = 0) -> ManifestPushed:
        """Push a manifest: its bytes and its link are stored. Returns what its event says."""
        self.bucket.second = second
        self.store.put(blob_key(image.digest), image.body)
        self.store.put(revision_link_key(self.name(repository), image.digest), _link(image.digest))
        return ManifestPushed(
            self.name(repository), image.digest, at(second), len(image.body), parse_manifest(image.body)
        )

    def deleted(self, repository: str, digest: Digest, second: float = 0) -> Removed:
        """Delete a manifest: its link goes, and what its tag once said stays."""
        self.store.delete(revision_link_key(self.name(repository), digest))
        self.tagged(repository, digest)
        return Removed(self.name(repository), digest, at(second))

    def tagged(self, repository: str, digest: Digest, tag: str = "t") -> None:
        """Store that a tag points, or has pointed, to a manifest."""
        folder = f"{repository_prefix(self.name(repository))}_manifests/tags/{tag}/index/sha256"
        self.store.put(f"{folder}/{digest.hex()}/link", _link(digest))

    def remove_link(self, repository: str, digest: Digest) -> None:
        """Remove a manifest's link without an event. What its tag once said stays."""
        self.deleted(repository, digest)

    def uploaded(self, repository: str, name: str, second: float = 0) -> BlobLinked:
        digest = self.digest(name)
        self.bucket.second = second
        self.store.put(blob_key(digest), b"1234567")
        self.store.put(layer_link_key(self.name(repository), digest), _link(digest))
        return BlobLinked(self.name(repository), digest, at(second), 7)

    def unlinked(self, repository: str, name: str, second: float = 0) -> Removed:
        self.store.delete(layer_link_key(self.name(repository), self.digest(name)))
        return Removed(self.name(repository), self.digest(name), at(second))

    # The table

    def arrive(self, *facts: Fact) -> None:
        """Apply events."""
        if facts:
            self.apply(*facts, margin=MARGIN)

    def holdings_of_pod(self) -> Pairs:
        return self._of_pod("repository_manifests", "manifest_id")

    def kept_by_indexes(self) -> Pairs:
        """Those of `holdings_of_pod` of which no link is known."""
        return self._of_pod("repository_manifests", "manifest_id", "AND t.implied")

    def table_links(self) -> Pairs:
        return self._of_pod("repository_blobs", "blob_id")

    def stored(self, marker: str = "/_manifests/revisions/sha256/") -> Pairs:
        """What storage links: (repository, digest)."""
        found: Pairs = set()
        for entry in MemoryObjectStore.walk(self.bucket, "") if self.store is self.bucket else self.store.walk(""):
            path = entry.key.removeprefix("docker/registry/v2/repositories/")
            if marker in path and path != entry.key:
                repository, _, rest = path.partition(marker)
                found.add((repository, Digest(bytes.fromhex(rest.removesuffix("/link")))))
        return found

    def stored_layers(self) -> Pairs:
        return self.stored("/_layers/sha256/")

    def doubtful_removals(self) -> int:
        (row,) = self.rows(
            "SELECT count(*) FROM removals r JOIN repositories n ON n.id = r.repository_id"
            " WHERE n.pod_id = %s AND r.doubtful_since IS NOT NULL",
            (self.pods[self.pod],),
        )
        return int(row[0])

    def assert_sound(self) -> None:
        """Counts are those of the sets, and the pod's holdings are its links, but for what indexes keep."""
        assert self.holdings_of_pod() - self.kept_by_indexes() == self.stored()
        with temporary_engine(self.url, name="test") as engine:
            report = check_counts(engine)
        assert report.is_healthy, report

    def _of_pod(self, table: str, column: str, which: str = "") -> Pairs:
        found = self.rows(
            f"SELECT n.name, b.digest FROM {table} t JOIN repositories n ON n.id = t.repository_id"
            f" JOIN blobs b ON b.id = t.{column} WHERE n.pod_id = %s {which}",
            (self.pods[self.pod],),
        )
        return {(row[0], Digest(row[1])) for row in found}

    def _pod(self, _: Fact | None) -> int:
        return self.pods[self.pod]

    # The job

    def ask(self, why: str = "a test") -> int:
        return add_job(self.connection, self.pods[self.pod], why=why)

    def read_job(self, job: int) -> Done:
        (row,) = self.rows("SELECT id, state, progress, error FROM jobs WHERE id = %s", (job,))
        return Done(*row)

    def reconcile(self) -> Done:
        """Ask for a reconcile and run it; it must be done."""
        done = self.try_reconcile()
        assert done.state == "done", done.error
        return done

    def try_reconcile(self) -> Done:
        job = self.ask()
        self.run()
        return self.read_job(job)

    def failed(self) -> str:
        """Ask for a reconcile and run it; it must fail. Return its error."""
        done = self.try_reconcile()
        assert done.state == "failed"
        return str(done.error)

    def run(self, stop: threading.Event | None = None) -> int:
        with self.runner() as (connections, runner):
            return run_waiting_jobs(connections, {"reconcile": runner}, stop or threading.Event(), self.pulse)

    @contextmanager
    def runner(self) -> Iterator[tuple[Connections, Reconciler]]:
        times = {"margin": MARGIN, "link_grace": self.link_grace, "request_bound": BOUND}
        with (
            self.connections() as connections,
            closing(Links(BucketLinks(self.store, self.sizes.lookups_at_once))) as links,
            closing(Reconciler(connections, self.store, links, **times, sizes=self.sizes)) as runner,
        ):
            yield connections, runner

    def connections(self) -> closing[Connections]:
        return closing(Connections(self.url, name="test-reconcile", prepare=statements.prepare_connection))

    def resolve_all(self) -> None:
        """Confirm the pod's doubtful removals."""
        with (
            self.connections() as connections,
            closing(Links(BucketLinks(self.store, self.sizes.lookups_at_once))) as links,
        ):
            pod = LinkedPod(self.pods[self.pod], PodName(self.pod), PodKind.LINK)
            Resolver(connections, links).resolve_pod(pod)

    @contextmanager
    def layered(self) -> Iterator[ChildAdder]:
        with self.connections() as connections, closing(BucketLinks(self.store)) as links:
            yield ChildAdder(connections, links, MARGIN)

    def add_children(self, pushed: ManifestPushed) -> int:
        """Do what a worker does with an index that it has applied; return how many children were added."""
        with self.layered() as layered:
            return layered.add_children([(pushed.repository, pushed.digest)])

    def began_at(self, job: int) -> Any:
        (row,) = self.rows("SELECT began_at FROM jobs WHERE id = %s", (job,))
        return row[0]

    def take(self) -> jobs.Job:
        job = jobs.take_job(self.connection, ["reconcile"])
        assert job is not None
        return job


def _descriptor(digest: Digest) -> dict[str, Any]:
    return {"mediaType": "application/octet-stream", "digest": f"sha256:{digest.hex()}", "size": 7}


def _link(digest: Digest) -> bytes:
    return f"sha256:{digest.hex()}".encode()
