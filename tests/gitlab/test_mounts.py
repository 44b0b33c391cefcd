"""Mounts into the pod of a GitLab registry: by rows in its database where Baleen may write them, else by uploads."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from sqlalchemy.engine import make_url

from coordinator.db.connection import Connections
from coordinator.domain.mounts import MountRequest, NotMountedError, Reason
from coordinator.domain.names import PodName, RepositoryName, format_digest
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.gitlab import writer
from coordinator.gitlab.writer import GitlabWriter, WrittenLink
from coordinator.kinds.kind import MountParts
from coordinator.kinds.kinds import Kinds
from coordinator.mounts import table
from coordinator.mounts.directory import MountPod, MountPods
from coordinator.mounts.linker import BlobLinker, MountJob
from coordinator.mounts.mounter import Mounter
from coordinator.mounts.relay import Relay
from coordinator.mounts.sources import Sources
from coordinator.settings import Secret, Settings
from coordinator.storage.layout import blob_key, layer_link_key
from tests.gc.harness import Garbage
from tests.gitlab.model import fill_tables, make_tables
from tests.gitlab.row_registry import RowRegistry
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore
from tests.support.wait import eventually

SOURCE, TARGET, OTHER = (RepositoryName(name) for name in ("pod-a/app", "pod-b/team/app", "pod-b/other"))
NOWHERE = "postgresql://baleen@127.0.0.1:1/registry"
LIMIT = 1000


class Writing(NamedTuple):
    """A registry's database, and the URL of a role that may write what a mount needs."""

    url: str
    writer_url: str
    role: str


@pytest.fixture
def database(databases: Databases) -> Iterator[Writing]:
    url, role = databases.empty(), f"baleen_writer_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as connection:
        make_tables(connection)
        fill_tables(connection)
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
        # Exactly the rights that the documentation of the module names.
        for grant in re.findall(r"GRANT [^;]+ TO role;", writer.__doc__ or ""):
            connection.execute(grant.replace("TO role", f"TO {role}"))
        yield Writing(url, make_url(url).set(username=role, password=role).render_as_string(hide_password=False), role)
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


class World:
    """Pod-a has its links in the store and links `l`; pod-b is a GitLab registry on the same store."""

    def __init__(self, garbage: Garbage, database: Writing, directory: Path, stack: ExitStack) -> None:
        self.garbage = garbage
        self.store: Any = garbage.store
        self.stack = stack
        self.database = database
        self.directory = directory
        self.registry = RowRegistry(self.store, database.url)
        stack.callback(lambda: self.registry.kill())  # noqa: PLW0108 - a test may replace it
        self.rows = stack.enter_context(psycopg.connect(database.url, autocommit=True))
        self.connections = stack.enter_context(
            closing(Connections(garbage.url, name="test-mounts", prepare=table.prepare_connection))
        )
        self.source = MountPod(garbage.pods["pod-a"], PodName("pod-a"), PodKind.LINK, (), ("pod-a",))
        self.digest = garbage.digest("l")
        self.size = len(garbage.body("l"))
        garbage.pushed("m-l", "l")
        self.store.put(layer_link_key(SOURCE, self.digest), format_digest(self.digest).encode())
        self.permit(database.writer_url)

    def permit(self, url: str) -> None:
        """Write the file that permits Baleen to write rows."""
        (self.directory / "pod-b").write_text(url)

    @property
    def uploads(self) -> list[str]:
        return self.registry.storage.uploads

    @property
    def target(self) -> MountPod:
        return MountPod(self.garbage.pods["pod-b"], PodName("pod-b"), PodKind.GITLAB, (self.registry.url,), ("pod-b",))

    def job(self, repository: RepositoryName = TARGET) -> MountJob:
        return MountJob(self.target, repository, self.digest, self.size, self.source, SOURCE, None)

    def make_linkers(self, settings: Settings | None = None, limit: int = LIMIT) -> Mapping[PodKind, BlobLinker]:
        kinds = self.stack.enter_context(Kinds(settings or Settings(gitlab_writers=str(self.directory)), self.store))
        relay = Relay(self.connections, Sources(self.store).read, credentials=None)
        return kinds.make_linkers(MountParts(self.store, relay, limit))

    def mounter(self, settings: Settings | None = None, limit: int = LIMIT) -> Mounter:
        made = Mounter(
            self.connections,
            MountPods(lambda: [self.source, self.target]),
            Sources(self.store),
            self.make_linkers(settings, limit),
            lambda _: None,
            margin=timedelta(seconds=1),
            relay_limit=limit,
        )
        return self.stack.enter_context(closing(made))

    def mount(self, repository: RepositoryName = TARGET, **options: Any) -> None:
        self.mounter(**options).mount(MountRequest(repository, self.digest, SOURCE), None)

    def is_served(self, repository: RepositoryName = TARGET) -> bool:
        return self.registry.storage.layer_size(repository, format_digest(self.digest)) == self.size

    def links(self) -> list[tuple[Any, ...]]:
        """What the registry's rows say of the blob and the repositories that link it."""
        return self.rows.execute(
            """
            SELECT n.name, r.name, r.path, r.parent_id, r.deleted_at, b.size, t.media_type
            FROM repository_blobs l JOIN blobs b ON b.digest = l.blob_digest
            JOIN media_types t ON t.id = b.media_type_id
            JOIN repositories r ON (r.top_level_namespace_id, r.id) = (l.top_level_namespace_id, l.repository_id)
            JOIN top_level_namespaces n ON n.id = l.top_level_namespace_id
            WHERE l.blob_digest = %s ORDER BY r.path
            """,
            (b"\x01" + self.digest,),
        ).fetchall()

    def row(self, repository: str) -> tuple[Any, ...]:
        first, _, name = repository.partition("/")
        return (first, name.rpartition("/")[2], repository, None, None, self.size, "application/octet-stream")

    def review_in(self) -> timedelta:
        (left,) = self.rows.execute(
            "SELECT review_after - now() FROM gc_blob_review_queue WHERE digest = %s", (b"\x01" + self.digest,)
        ).fetchone() or (None,)
        assert left is not None
        return left


@pytest.fixture
def world(databases: Databases, database: Writing, tmp_path: Path) -> Iterator[World]:
    with Garbage(databases.migrated(), MemoryObjectStore()) as garbage, ExitStack() as stack:
        yield World(garbage, database, tmp_path, stack)


@pytest.mark.parametrize("there", ["nothing", "namespace", "repository", "blob", "link"])
def test_a_mount_by_rows(world: World, there: str) -> None:
    """The registry serves the blob, nothing is uploaded, and its rows are as it writes them, whatever was there."""
    before = {"namespace": OTHER, "repository": TARGET, "blob": RepositoryName("fx/app"), "link": TARGET}.get(there)
    if before is not None:
        world.registry.storage.link_layer(before, format_digest(world.digest))
    if there in {"namespace", "repository"}:
        world.rows.execute("DELETE FROM blobs WHERE digest = %s", (b"\x01" + world.digest,))
    world.mount()
    assert world.is_served()
    assert world.uploads == []
    assert world.links() == [world.row(each) for each in (["fx/app", TARGET] if there == "blob" else [TARGET])]


@pytest.mark.parametrize("lacks", ["setting", "file"])
def test_without_a_right_to_write(world: World, lacks: str) -> None:
    """Where no URL of a writer is given the blob is uploaded, and Baleen writes no row."""
    if lacks == "file":
        (world.directory / "pod-b").unlink()
    world.mount(settings=Settings() if lacks == "setting" else None)
    assert world.is_served()
    assert world.uploads == [TARGET]
    session = "SELECT FROM pg_stat_activity WHERE usename = %s"
    assert world.rows.execute(session, (world.database.role,)).fetchall() == []


@pytest.mark.parametrize("why", ["away", "no URL", "another schema", "no rights", "read only"])
def test_a_database_that_cannot_be_written_to(world: World, why: str) -> None:
    """A blob is uploaded where rows cannot be written, for whatever reason."""
    if why == "no rights":
        world.rows.execute(f"REVOKE INSERT ON repository_blobs FROM {world.database.role}")
    if why == "read only":
        world.rows.execute(f"ALTER ROLE {world.database.role} SET default_transaction_read_only = on")
    urls = {"away": NOWHERE, "no URL": "", "another schema": world.garbage.url}
    world.permit(urls.get(why, world.database.writer_url))
    world.mount()
    assert world.uploads == [TARGET]
    assert world.links() == [world.row(TARGET)]


def test_what_is_too_large_for_a_relay(world: World) -> None:
    """A blob that is too large to be sent is mounted by rows, and not at all where these cannot be written."""
    world.mount(limit=world.size - 1)
    assert world.uploads == []
    world.permit(NOWHERE)
    with pytest.raises(NotMountedError) as raised:
        world.mount(OTHER, limit=world.size - 1)
    assert raised.value.reason is Reason.TOO_LARGE
    assert not world.is_served(OTHER)


def test_a_repository_that_is_marked_as_deleted(world: World) -> None:
    """Rows do not bring a repository back; the registry itself does, by an upload."""
    world.registry.storage.link_layer(TARGET, format_digest(world.garbage.digest("l")))
    world.rows.execute("DELETE FROM repository_blobs WHERE blob_digest = %s", (b"\x01" + world.digest,))
    world.rows.execute("UPDATE repositories SET deleted_at = now() WHERE path = %s", (TARGET,))
    world.mount()
    assert world.uploads == [TARGET]
    assert world.is_served()


@pytest.mark.parametrize("content", [None, b"other bytes"])
def test_a_blob_whose_bytes_are_gone(world: World, content: bytes | None) -> None:
    """A mount of a blob whose bytes are gone, or others, is refused, and no row is written."""
    linker = world.make_linkers()[PodKind.GITLAB]
    world.store.delete(blob_key(world.digest))
    if content is not None:
        world.store.put(blob_key(world.digest), content)
    with pytest.raises(UnavailableError):
        linker.link(world.job())
    assert world.links() == []
    assert ("pod-b",) not in world.rows.execute("SELECT name FROM top_level_namespaces").fetchall()


def test_a_registry_on_another_store(world: World) -> None:
    """If the registry does not serve what its rows link, the mount is refused and the link is removed again."""
    world.registry.kill()
    world.registry = RowRegistry(MemoryObjectStore(), world.database.url)
    with pytest.raises(UnavailableError, match="does not serve"):
        world.mount()
    assert world.links() == []
    assert world.garbage.rows("SELECT link_count FROM blobs WHERE digest = %s", (world.digest,)) == [(0,)]


def test_a_registry_that_does_not_answer(world: World) -> None:
    """If the registry is away nothing is mounted."""
    world.registry.kill()
    with pytest.raises(UnavailableError):
        world.mount()
    world.registry.start()


def test_mounts_at_once(world: World) -> None:
    """Many mounts of a blob into one new namespace, also into one repository, are each made by rows."""
    repositories = [RepositoryName(f"pod-b/app{number}") for number in range(4)] * 2
    mounter = world.mounter()
    with ThreadPoolExecutor(8) as threads:
        for made in [
            threads.submit(mounter.mount, MountRequest(each, world.digest, SOURCE), None) for each in repositories
        ]:
            made.result()
    assert world.uploads == []
    assert world.links() == [world.row(each) for each in sorted(set(repositories))]


def test_a_claim_of_a_registry(world: World) -> None:
    """What only the registry of the source claims is linked by rows once it has shown the bytes, and else relayed."""
    with closing(RowRegistry(world.store, world.database.url)) as source:
        source.storage.link_layer(SOURCE, format_digest(world.digest))
        world.source = world.source._replace(kind=PodKind.RELAY, registries=(source.url,))
        world.mount()
        assert world.uploads == []
        world.make_linkers()[PodKind.GITLAB].link(world.job(OTHER))
        assert world.uploads == [OTHER]
        # A registry that only claims it shows nothing.
        source.storage.read_blob = lambda _: bytes(world.size)
        with pytest.raises(NotMountedError):
            world.mount(RepositoryName("pod-b/third"))
    assert not world.is_served(RepositoryName("pod-b/third"))


def test_a_review_that_is_due(world: World) -> None:
    """A row that the registry's collector is about to delete is kept for a day, as one that is new."""
    world.mount()
    assert world.review_in() > timedelta(hours=23)
    world.rows.execute("UPDATE gc_blob_review_queue SET review_after = now() - interval '1 hour'")
    world.mount(OTHER)
    assert world.review_in() > timedelta(hours=23)
    world.rows.execute("UPDATE gc_blob_review_queue SET review_after = now() + interval '2 days'")
    world.mount(RepositoryName("pod-b/third"))
    assert world.review_in() > timedelta(hours=47)


class Link(NamedTuple):
    """A link that a writer has added."""

    world: World
    writer: GitlabWriter
    written: WrittenLink


@pytest.fixture
def link(world: World) -> Iterator[Link]:
    with closing(GitlabWriter(PodName("pod-b"), lambda: Secret(world.database.writer_url))) as made:
        yield Link(world, made, made.write_link(TARGET, world.digest, world.size))


@pytest.mark.parametrize("served", [False, True])
def test_a_link_is_removed_unless_it_is_served(link: Link, served: bool) -> None:
    """A link without bytes is removed; one whose bytes came meanwhile stays."""
    assert link.writer.remove_link(link.written, lambda: served) is served
    assert link.world.is_served() is served


def test_only_a_link_of_its_own_is_removed(link: Link) -> None:
    """A mount removes no link that was there before it."""
    again = link.writer.write_link(TARGET, link.world.digest, link.world.size)
    assert not link.writer.remove_link(again, lambda: False)
    assert link.world.is_served()


def test_a_link_that_a_manifest_needs(link: Link) -> None:
    """A link that a manifest has begun to rely on is not removed."""
    link.world.rows.execute("SET session_replication_role = replica")
    link.world.rows.execute(
        "INSERT INTO layers (top_level_namespace_id, repository_id, manifest_id, size, media_type_id, digest)"
        " VALUES (%s, %s, 1, 1, 21, %s)",
        (link.written.namespace, link.written.repository, b"\x01" + link.world.digest),
    )
    assert not link.writer.remove_link(link.written, lambda: False)
    assert link.world.is_served()


def test_an_upload_while_a_link_is_removed(link: Link) -> None:
    """A client that uploads the blob at that moment has its link when it is answered."""
    uploading = threading.Thread(
        target=link.world.registry.storage.link_layer, args=(TARGET, format_digest(link.world.digest))
    )

    def let_upload() -> bool:
        uploading.start()
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: link.world.rows.execute(waiting).fetchall())
        return False

    assert not link.writer.remove_link(link.written, let_upload)
    uploading.join(60)
    assert link.world.is_served()
