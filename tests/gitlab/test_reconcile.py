"""A reconcile of a GitLab registry's database makes the table agree with a real one's rows, holding by holding."""

import datetime as dt
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest

from coordinator.db.connection import Connections
from coordinator.domain.names import PodName, format_digest
from coordinator.domain.pods import PodKind
from coordinator.gitlab.database import GitlabDatabase
from coordinator.gitlab.links import GitlabLinks
from coordinator.ingest.normalise import Accepted, Origin, normalise_body
from coordinator.jobs.work import run_waiting_jobs
from coordinator.kafka.topics import EVENTS
from coordinator.pods import directory
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.reconcile.reconcile import JOB_KIND, Reconciler
from coordinator.settings import Secret
from coordinator.storage.layout import blob_key
from coordinator.table import statements
from coordinator.table.apply import BatchApplier
from tests.gitlab.model import CAPTURED, fill_tables, make_tables
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore
from workers.interpret import Chunk, Interpreter

FAST = 10_000.0
#: So that every link counts, however old.
EVER = timedelta(days=36500)


class Record(NamedTuple):
    """A record of Kafka."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes


class Registry:
    """The database of a GitLab registry, and a table of Baleen that has its pod."""

    def __init__(self, databases: Databases) -> None:
        self.url = databases.empty()
        self.rows = psycopg.connect(self.url, autocommit=True)
        make_tables(self.rows)
        self.table_url = databases.migrated()
        self.table = psycopg.connect(self.table_url, autocommit=True)
        self.store = MemoryObjectStore()
        self.offset = 0
        self.table.execute(
            "INSERT INTO partition_progress (topic, partition, next_offset) VALUES (%s, 0, 0)", (EVENTS,)
        )
        # Something of a registry is in the bucket: its blobs, and no link.
        self.store.put(blob_key(bytes(32)), b"")  # type: ignore[arg-type]

    def fill(self, folder: str = "tables") -> None:
        fill_tables(self.rows, folder)
        found = self.rows.execute("SELECT name FROM top_level_namespaces").fetchall()
        (pod,) = self.table.execute(
            "INSERT INTO pods (name, kind, event_token_sha256) VALUES ('gitlab', 'gitlab', %s) RETURNING id",
            (bytes(32),),
        ).fetchone()
        for (name,) in found:
            self.table.execute("INSERT INTO pod_prefixes (prefix, pod_id) VALUES (%s, %s)", (name, pod))

    def report(self, notifications: Sequence[Any]) -> None:
        """Apply captured notifications as a worker does, in order."""
        with psycopg.connect(self.table_url) as connection:
            prefixes = [name for (name,) in connection.execute("SELECT prefix FROM pod_prefixes")]
            known = directory.read_directory(connection)
        records = []
        for each in notifications:
            origin = Origin("gitlab", prefixes, dt.datetime(2026, 12, 1, tzinfo=dt.UTC), each["content_type"])
            for outcome in normalise_body(json.dumps(each["envelope"]).encode(), origin):
                if isinstance(outcome, Accepted):
                    value = msgspec.json.encode(outcome.event)
                    records.append(Record(self.offset + len(records), 0, None, value))
        if records:
            piece = Interpreter(known).interpret(Chunk(EVENTS, 0, records))
            self.offset = piece.next_offset
            with (
                closing(Connections(self.table_url, name="test", prepare=statements.prepare_connection)) as connections,
                connections.use() as connection,
            ):
                BatchApplier(connection, timedelta(seconds=1)).apply([piece])

    def reconcile(self) -> dict[str, Any]:
        self.table.execute("INSERT INTO jobs (kind, pod_id, why) SELECT %s, id, 'a test' FROM pods", (JOB_KIND,))
        times = {"margin": timedelta(seconds=1), "link_grace": EVER, "request_bound": timedelta()}
        with (
            closing(Connections(self.table_url, name="test", prepare=statements.prepare_connection)) as connections,
            closing(GitlabDatabase(PodName("gitlab"), lambda: Secret(self.url), per_s=FAST)) as database,
            closing(Links(BucketLinks(self.store), {PodKind.GITLAB: lambda _: GitlabLinks(database)})) as links,
            closing(Reconciler(connections, self.store, links, **times)) as runner,
        ):
            run_waiting_jobs(connections, {JOB_KIND: runner}, threading.Event())
        row = self.table.execute("SELECT state, error, progress FROM jobs ORDER BY id DESC LIMIT 1").fetchone()
        assert row is not None
        assert row[:2] == ("done", None)
        return dict(row[2])

    def holdings(self) -> dict[str, dict[str, list[str]]]:
        """For each repository its manifests, with what each needs."""
        found: dict[str, dict[str, list[str]]] = {}
        for path, digest, needs in self.table.execute(
            """
            SELECT r.name, b.digest, ARRAY(SELECT n.digest FROM unnest(m.refs) x (id) JOIN blobs n ON n.id = x.id)
            FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
            JOIN blobs b ON b.id = h.manifest_id JOIN manifests m ON m.id = h.manifest_id WHERE NOT h.implied
            """
        ):
            found.setdefault(path, {})[format_digest(digest)] = sorted(map(format_digest, needs))
        return found

    def links(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path, digest in self.table.execute(
            "SELECT r.name, b.digest FROM repository_blobs l JOIN repositories r ON r.id = l.repository_id"
            " JOIN blobs b ON b.id = l.blob_id ORDER BY 1, 2"
        ):
            found.setdefault(path, []).append(format_digest(digest))
        return found

    def close(self) -> None:
        self.rows.close()
        self.table.close()


@pytest.fixture
def registry(databases: Databases) -> Iterator[Registry]:
    with closing(Registry(databases)) as registry:
        yield registry


def expected(name: str) -> Any:
    return json.loads((CAPTURED / f"{name}.json").read_text())


def needs_of(manifest: Any) -> list[str]:
    """What a manifest needs. Its subject is none of it: a referrer may exist without it (OCI image-spec)."""
    listed = [manifest["config"], *manifest["layers"], *manifest["children"]]
    return sorted({digest for digest in listed if digest is not None})


def assert_agrees(registry: Registry, name: str = "expected") -> None:
    repositories = expected(name)["repositories"]
    assert registry.holdings() == {
        path: {digest: needs_of(manifest) for digest, manifest in each["manifests"].items()}
        for path, each in repositories.items()
        if each["manifests"]
    }
    links = registry.links()
    for path, each in repositories.items():
        assert set(each["blob_links"]) <= set(links.get(path, []))


@pytest.mark.parametrize(("folder", "name"), [("tables", "expected"), ("tables-middle", "expected-middle")])
def test_the_table_agrees_with_the_rows(registry: Registry, folder: str, name: str) -> None:
    """After a reconcile each repository has exactly its manifests, their references and its links."""
    registry.fill(folder)
    registry.reconcile()
    assert_agrees(registry, name)
    again = registry.reconcile()
    assert (again["holdings_added"], again["holdings_removed"], again["links_added"]) == (0, 0, 0)


NOTIFICATIONS = [json.loads(line) for line in (CAPTURED / "notifications.jsonl").read_text().splitlines()]
CUTS = [*range(0, len(NOTIFICATIONS), 12), len(NOTIFICATIONS)]


@pytest.mark.parametrize("cut", CUTS)
def test_notifications_cut_at_any_point(registry: Registry, cut: int) -> None:
    """Whatever came before a reconcile, and whatever comes again after it, the table agrees with the rows."""
    registry.fill()
    registry.report(NOTIFICATIONS[:cut])
    registry.reconcile()
    assert_agrees(registry)
    registry.report(NOTIFICATIONS[cut:])
    registry.reconcile()
    assert_agrees(registry)


def test_notifications_twice(registry: Registry) -> None:
    """Notifications that come twice, and again after a reconcile, change nothing."""
    registry.fill()
    registry.report([each for each in NOTIFICATIONS for _ in range(2)])
    registry.reconcile()
    assert_agrees(registry)
    registry.report(NOTIFICATIONS)
    registry.reconcile()
    assert_agrees(registry)
