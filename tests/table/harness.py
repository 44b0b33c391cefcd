"""A table for tests: it takes facts or events, and is read back as plain sets."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg

from coordinator.audit.check import CheckReport, check_counts
from coordinator.db.engine import connect, temporary_engine
from coordinator.domain.facts import (
    BlobLinked,
    Fact,
    ManifestPushed,
    ManifestRead,
    Removed,
    RepositoryRemoved,
    RepositoryRenamed,
)
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName, format_digest, parse_digest
from coordinator.domain.progress import Position, Progress
from coordinator.domain.references import BLOB_MEDIA_TYPE, MANIFEST_KINDS, ManifestContent, ManifestKind, Reference
from coordinator.table import progress, statements
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import ApplyResult, Item, Slice
from schemas.records import ReferenceRecord, RegistryEvent, RenameRecord
from tests.oracle import Oracle

BASE = datetime(2026, 11, 1, tzinfo=UTC)
NO_MARGIN = timedelta()
IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
#: Name, mode, kind. Each owns the prefix of its name.
#: No pod's links can be checked (test_doubtful_removals.py changes that): the registry's events decide alone.
PODS = (("pod-a", "manifest", "relay"), ("pod-b", "manifest", "relay"), ("pod-l", "link", "relay"))

#: Images share layers; an index lists images, and one of them lists another's config.
MANIFESTS = {
    "m0": ("c0", "l0", "l1"),
    "m1": ("c1", "l0", "l2"),
    "m2": ("c0", "l1", "l3", "l4"),
    "m3": ("c2",),
    "i0": ("m0", "m1"),
    "i1": ("m1", "m2", "i0"),
}
BLOBS = ("c0", "c1", "c2", "l0", "l1", "l2", "l3", "l4", "l5")

_numbers = itertools.count(1)


class Row(NamedTuple):
    """A blob as the table has it."""

    references: int
    links: int
    state: BlobState
    unreferenced: bool
    size: int


def at(second: float) -> datetime:
    return BASE + timedelta(seconds=second)


class Names:
    """Digests and repositories that no other test uses."""

    def __init__(self) -> None:
        self.space = f"n{next(_numbers)}"

    def digest(self, name: str) -> Digest:
        return Digest(hashlib.sha256(f"{self.space}:{name}".encode()).digest())

    def text(self, name: str) -> str:
        return format_digest(self.digest(name))

    def repository(self, name: str, pod: str = "pod-a") -> RepositoryName:
        return RepositoryName(f"{pod}/{self.space}/{name}")

    def content(self, listed: Iterable[str], kind: ManifestKind = ManifestKind.IMAGE) -> ManifestContent:
        return ManifestContent(kind, tuple(Reference(self.digest(name), 7) for name in listed))

    def push(
        self, repository: str, name: str, listed: Iterable[str] | None, second: float = 0, pod: str = "pod-a"
    ) -> ManifestPushed:
        content = None if listed is None else self.content(listed)
        return ManifestPushed(self.repository(repository, pod), self.digest(name), at(second), 70, content)

    def link(self, repository: str, name: str, second: float = 0, pod: str = "pod-a") -> BlobLinked:
        return BlobLinked(self.repository(repository, pod), self.digest(name), at(second), 7)

    def removed(self, repository: str, name: str, second: float = 0, pod: str = "pod-a") -> Removed:
        return Removed(self.repository(repository, pod), self.digest(name), at(second))


class Table(Names):
    """A database with three pods, and a connection as a worker has it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.connection = self.connect()
        self.connection.cursor().executemany(
            "INSERT INTO pods (name, mode, kind, event_token_sha256) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(*pod, b"0" * 32) for pod in PODS],
        )
        self.pods = {name: number for number, name in self.rows("SELECT id, name FROM pods")}
        self.connection.cursor().executemany(
            "INSERT INTO pod_prefixes VALUES (%s, %s) ON CONFLICT DO NOTHING", list(self.pods.items())
        )
        self._offsets: dict[int, int] = {}

    def connect(self) -> psycopg.Connection[Any]:
        connection = connect(self.url, name="test")
        statements.prepare_connection(connection)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement, values).fetchall()

    def slice(self, facts: Iterable[Fact | None], partition: int = 0) -> Slice:
        """The next slice of a partition; it counts as applied once `set_applied` says so."""
        if partition not in self._offsets:
            begin(self.connection, self.space, partition)
            self._offsets[partition] = 0
        first = self._offsets[partition]
        items = [Item(first + n, 1000 + n, self._pod(fact), fact, None) for n, fact in enumerate(facts)]
        return Slice(self.space, partition, first, first + len(items), first + 17, items)

    def set_applied(self, piece: Slice) -> None:
        self._offsets[piece.partition] = piece.next_offset

    def apply(self, *facts: Fact, margin: timedelta = NO_MARGIN, partition: int = 0) -> ApplyResult:
        return self.apply_slices([self.slice(facts, partition)], margin)

    def apply_slices(self, slices: Sequence[Slice], margin: timedelta = NO_MARGIN) -> ApplyResult:
        applied = BatchApplier(self.connection, margin).apply(slices)
        for piece in slices:
            self.set_applied(piece)
        return applied

    def emptied(self, repository: str, second: float) -> RepositoryRemoved:
        return RepositoryRemoved(self.repository(repository), at(second))

    def renamed(self, source: str, destination: str, second: float, *, below: bool = True) -> RepositoryRenamed:
        return RepositoryRenamed(self.repository(source), self.repository(destination), below=below, at=at(second))

    def links_are(self, kind: str) -> None:
        """Set the pods' kind: with `link` removals are checked in storage, and bytes are in the shared store."""
        self.connection.execute("UPDATE pods SET kind = %s WHERE mode = 'manifest'", (kind,))

    def blob(self, name: str) -> Row | None:
        return self.blobs([self.digest(name)]).get(self.digest(name))

    def row(self, name: str) -> Row:
        """A blob that the table has."""
        return self.blobs([self.digest(name)])[self.digest(name)]

    def blobs(self, digests: Iterable[Digest]) -> dict[Digest, Row]:
        found = self.rows(
            "SELECT digest, reference_count, link_count, state, unreferenced_since IS NOT NULL, size"
            " FROM blobs WHERE digest = ANY(%s)",
            (list(digests),),
        )
        return {Digest(row[0]): Row(row[1], row[2], BlobState(row[3]), row[4], row[5]) for row in found}

    def holdings(self) -> set[tuple[str, str]]:
        """(repository, digest) pairs in this test's names."""
        return self._pairs("repository_manifests", "manifest_id")

    def implied(self) -> set[tuple[str, str]]:
        """Those of `holdings` that an index alone keeps."""
        return self._pairs("repository_manifests", "manifest_id", "AND t.implied")

    def links(self) -> set[tuple[str, str]]:
        return self._pairs("repository_blobs", "blob_id")

    def holds(self, repository: str, name: str, pod: str = "pod-a") -> bool:
        return (self.repository(repository, pod), self.text(name)) in self.holdings()

    def linked(self, repository: str, name: str, pod: str = "pod-a") -> bool:
        return (self.repository(repository, pod), self.text(name)) in self.links()

    def removals(self) -> dict[tuple[str, str], tuple[datetime, bool]]:
        """(repository, digest) -> time of the removal, and whether it is doubtful."""
        found = self.rows(
            "SELECT n.name, r.digest, r.removed_at, r.doubtful_since IS NOT NULL"
            " FROM removals r JOIN repositories n ON n.id = r.repository_id WHERE n.name LIKE %s",
            (f"%/{self.space}/%",),
        )
        return {(row[0], format_digest(row[1])): (row[2], row[3]) for row in found}

    def removal(self, repository: str, name: str) -> tuple[datetime, bool] | None:
        return self.removals().get((self.repository(repository), self.text(name)))

    def check(self) -> CheckReport:
        with temporary_engine(self.url, name="test") as engine:
            return check_counts(engine)

    def assert_equals(self, oracle: Oracle) -> None:
        """Every digest's counts, state and date, and all holdings and links, are as the oracle has them."""
        counts = oracle.counts()
        found = self.blobs(parse_digest(digest) for digest in counts)
        assert {format_digest(digest): row[:4] for digest, row in found.items()} == {
            digest: (
                count.reference_count,
                count.link_count,
                BlobState.LIVE if count.repositories else BlobState.UNREFERENCED,
                not count.repositories,
            )
            for digest, count in counts.items()
        }
        assert self.holdings() == oracle.held()
        assert self.holdings() - self.implied() == oracle.holdings
        assert self.links() == oracle.links

    def _pod(self, fact: Fact | None) -> int:
        return 0 if fact is None or isinstance(fact, ManifestRead) else self.pods[fact.repository.partition("/")[0]]

    def _pairs(self, table: str, column: str, which: str = "") -> set[tuple[str, str]]:
        found = self.rows(
            f"SELECT n.name, b.digest FROM {table} t JOIN repositories n ON n.id = t.repository_id"
            f" JOIN blobs b ON b.id = t.{column} WHERE n.name LIKE %s {which}",
            (f"%/{self.space}/%",),
        )
        return {(row[0], format_digest(row[1])) for row in found}


@contextmanager
def before_statements(connection: psycopg.Connection[Any], what: Callable[[str], None]) -> Iterator[None]:
    """Call this with each statement of the connection, before it is sent, until the end of the block."""

    class Watched(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **more: Any) -> Self:
            what(str(query))
            return super().execute(query, *arguments, **more)

    connection.cursor_factory = Watched
    try:
        yield
    finally:
        connection.cursor_factory = psycopg.Cursor


def apply_at_once(table: Table, histories: Sequence[Sequence[Sequence[Fact]]]) -> None:
    """Apply the batches of each history as a worker with a partition of its own, all at the same time.

    All start each batch together. None may deadlock.
    """
    for partition in range(len(histories)):
        begin(table.connection, table.space, partition)
    before = deadlocks(table)
    together = threading.Barrier(len(histories))

    def work(partition: int) -> None:
        offset = 0
        with table.connect() as connection:
            for batch in histories[partition]:
                items = [Item(offset + n, 0, table.pods["pod-a"], fact, None) for n, fact in enumerate(batch)]
                together.wait(60)
                piece = Slice(table.space, partition, offset, offset + len(items), 0, items)
                BatchApplier(connection, NO_MARGIN).apply([piece])
                offset = piece.next_offset

    with ThreadPoolExecutor(len(histories)) as pool:
        for worker in [pool.submit(work, partition) for partition in range(len(histories))]:
            worker.result(120)
    assert deadlocks(table) == before


def deadlocks(table: Table) -> int:
    table.rows("SELECT pg_stat_clear_snapshot()")
    return int(table.rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0])


def begin(connection: psycopg.Connection[Any], topic: str, partition: int) -> None:
    assert progress.set_position(connection, (topic, partition), None, Position(Progress(0, None, None), None))


def fact_of(event: RegistryEvent) -> Fact | None:
    """An event as the worker understands it."""
    repository = RepositoryName(event.repository)
    if event.rename is not None:
        rename = event.rename
        source, destination = RepositoryName(rename.source), RepositoryName(rename.destination)
        return RepositoryRenamed(source, destination, below=True, at=event.timestamp)
    if event.digest is None:
        return None if event.tag is not None else RepositoryRemoved(repository, event.timestamp)
    digest = parse_digest(event.digest)
    if event.action == "delete":
        return Removed(repository, digest, event.timestamp)
    if event.action == "mount" or event.media_type == BLOB_MEDIA_TYPE:
        return BlobLinked(repository, digest, event.timestamp, event.size)
    content = None
    if event.references is not None:
        listed = tuple(Reference(parse_digest(entry.digest), entry.size) for entry in event.references)
        content = ManifestContent(MANIFEST_KINDS[event.media_type or ""], listed)
    return ManifestPushed(repository, digest, event.timestamp, event.size, content)


class Events(Names):
    """Registry events about a small world, each a second after the one before."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0

    def event(self, action: Any, repository: str, name: str | None = None, **more: Any) -> RegistryEvent:
        self._second += 1
        return RegistryEvent(
            id=f"{self.space}-{self._second}",
            action=action,
            pod=repository.partition("/")[0],
            repository=self.within(repository),
            timestamp=at(self._second),
            digest=None if name is None else self.text(name),
            **more,
        )

    def within(self, repository: str) -> str:
        pod, _, rest = repository.partition("/")
        return self.repository(rest, pod)

    def pushed(self, repository: str, manifest: str) -> RegistryEvent:
        listed = [ReferenceRecord(self.text(name), 7) for name in MANIFESTS[manifest]]
        media_type = INDEX if manifest.startswith("i") else IMAGE
        return self.event("push", repository, manifest, media_type=media_type, size=70, references=listed)

    def uploaded(self, repository: str, blob: str) -> RegistryEvent:
        return self.event("push", repository, blob, media_type=BLOB_MEDIA_TYPE, size=7)

    def mounted(self, repository: str, blob: str) -> RegistryEvent:
        return self.event("mount", repository, blob, size=7)

    def deleted(self, repository: str, name: str | None) -> RegistryEvent:
        return self.event("delete", repository, name)

    def renamed(self, repository: str, destination: str) -> RegistryEvent:
        rename = RenameRecord("namespace", self.within(repository), self.within(destination))
        return self.event("rename", repository, rename=rename)
