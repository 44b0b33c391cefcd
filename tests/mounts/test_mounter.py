"""The rights that a mount needs, the source's confirmation, and the order of the checks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest

from coordinator.db.connection import Connections
from coordinator.domain.access import Access, Grant
from coordinator.domain.facts import BlobLinked
from coordinator.domain.mounts import MountRequest, NotMountedError, Reason
from coordinator.domain.names import PodName, RepositoryName, format_digest
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.mounts import table
from coordinator.mounts.directory import MountPod, MountPods
from coordinator.mounts.linker import LinkWriter, MountJob
from coordinator.mounts.mounter import Mounter
from coordinator.mounts.relay import Relay
from coordinator.mounts.sources import Sources
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.reconcile.resolve import Resolver
from coordinator.registry.auth import Credentials
from coordinator.settings import Secret
from coordinator.storage.layout import blob_key, layer_link_key
from coordinator.storage.port import ObjectStore
from coordinator.table import statements
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item
from coordinator.table.doubtful_removals import LinkedPod
from tests.gc.harness import Garbage
from tests.services.databases import Databases
from tests.services.http import Handler, HTTPServer
from tests.storage.memory import MemoryObjectStore
from tests.support.guarded_registry import GuardedRegistry
from tests.tokens.issuer import basic

SOURCE, TARGET, OTHER = (RepositoryName(name) for name in ("pod-a/app", "pod-b/app", "pod-b/other"))


class Failing:
    """A linker whose store does not answer."""

    def is_relayed(self, _: MountPod) -> bool:
        return False

    def link(self, job: MountJob) -> None:
        raise UnavailableError(f"The object store does not take the link of {job.repository}.")


class World:
    """Two pods on one store; `l` is linked by SOURCE and nobody else, `elsewhere` by no repository that is asked."""

    def __init__(self, garbage: Garbage) -> None:
        self.garbage = garbage
        self.store: Any = garbage.store
        self.access: Access | None = None
        self.others: list[MountPod] = []
        self.target_kind = PodKind.LINK
        self.target_registries: tuple[str, ...] = ("http://pod-b.invalid:5000",)
        self.relay_limit = 1000
        #: Other bounds of time of `Sources` than usual.
        self.bounds: dict[str, float] = {}
        self.connections = Connections(garbage.url, name="test-mounter", prepare=table.prepare_connection)
        self.linker: Any = LinkWriter(self.store)
        self.source = MountPod(garbage.pods["pod-a"], PodName("pod-a"), PodKind.LINK, (), ("pod-a",))
        for name in ("l", "elsewhere"):
            garbage.pushed(f"m-{name}", name)
        self.store.put(layer_link_key(SOURCE, garbage.digest("l")), format_digest(garbage.digest("l")).encode())

    def source_apart(self, *registries: str, kind: PodKind = PodKind.RELAY) -> None:
        """Let the source be a pod with these registries, and a store of its own unless `kind` is another."""
        self.source = self.source._replace(kind=kind, registries=registries)

    def mounter(self, store: ObjectStore | None = None) -> Mounter:
        target = MountPod(
            self.garbage.pods["pod-b"], PodName("pod-b"), self.target_kind, self.target_registries, ("pod-b",)
        )
        pods = [self.source, target, *self.others]
        return Mounter(
            self.connections,
            MountPods(lambda: pods),
            Sources(store or self.store, narrow=lambda _, repository: f"for {repository}", **self.bounds),
            {self.target_kind: self.linker},
            lambda _: self.access,
            margin=timedelta(seconds=1),
            relay_limit=self.relay_limit,
        )

    def mount(self, name: str = "l", source: RepositoryName | None = SOURCE, target: RepositoryName = TARGET) -> None:
        self.mounter().mount(MountRequest(target, self.garbage.digest(name), source), None)

    def refused(self, **asked: Any) -> Reason:
        with pytest.raises(NotMountedError) as raised:
            self.mount(**asked)
        return raised.value.reason

    def linked(self, repository: RepositoryName = TARGET, name: str = "l") -> bool:
        return self.store.head(layer_link_key(repository, self.garbage.digest(name))) is not None


@pytest.fixture
def world(databases: Databases) -> Iterator[World]:
    with Garbage(databases.migrated(), MemoryObjectStore()) as garbage:
        world = World(garbage)
        opened = world.connections
        yield world
        opened.close()


def access(**actions: str) -> Access:
    names = {"source": SOURCE, "target": TARGET, "other": OTHER}
    return Access(tuple(Grant(names[name], frozenset(each.split(","))) for name, each in actions.items()))


@pytest.mark.parametrize(
    "granted",
    [
        {},
        {"source": "pull"},
        {"target": "pull,push"},
        {"source": "push", "target": "pull,push"},
        {"source": "delete", "target": "*"},
        {"source": "pull", "target": "push"},
        {"source": "pull", "target": "pull"},
        {"source": "pull", "other": "pull,push"},
    ],
)
def test_too_little(world: World, granted: dict[str, str]) -> None:
    """Without push and pull on the target and pull on the source, nothing is mounted."""
    world.access = access(**granted)
    assert world.refused() is Reason.NO_RIGHT
    assert not world.linked()
    assert world.garbage.rows("SELECT FROM mounts") == []


@pytest.mark.parametrize("granted", [{"source": "pull", "target": "pull,push"}, {"source": "*", "target": "*"}])
def test_enough(world: World, granted: dict[str, str]) -> None:
    """With these rights the blob is mounted, and the reference is in the table."""
    world.access = access(**granted)
    world.mount()
    assert world.linked()
    assert world.garbage.rows("SELECT repository, source FROM mounts") == [(TARGET, SOURCE)]


def test_a_right_is_not_a_blob(world: World) -> None:
    """A right to read a repository gives only that repository's blobs."""
    world.access = access(source="pull", target="pull,push")
    assert world.garbage.store.head(blob_key(world.garbage.digest("elsewhere"))) is not None
    assert world.refused(name="elsewhere") is Reason.NOT_THERE


def test_without_a_source(world: World) -> None:
    """Without a named source the blob is looked for in the repositories that the token may pull."""
    assert world.refused(source=None) is Reason.NO_SOURCE
    world.access = access(target="pull,push", other="pull")
    assert world.refused(source=None) is Reason.NOT_THERE
    world.access = access(other="pull", source="pull", target="pull,push")
    world.mount(source=None)
    assert world.linked()


def test_nothing_is_asked_before_the_source_says_yes(world: World) -> None:
    """The table, which knows who has a blob, is not read before the source has confirmed it."""

    class Closed:
        def use(self) -> Any:
            raise AssertionError("the table was asked")

    world.connections.close()
    world.connections = Closed()  # type: ignore[assignment]
    assert world.refused(name="elsewhere") is Reason.NOT_THERE
    world.access = access(target="pull,push")
    assert world.refused() is Reason.NO_RIGHT
    world.access = None
    with pytest.raises(AssertionError, match="the table was asked"):
        world.mount()


def test_unknown_pods(world: World) -> None:
    """A repository of no pod is neither source nor target."""
    assert world.refused(source=RepositoryName("nobody/app")) is Reason.UNKNOWN_SOURCE
    assert world.refused(target=RepositoryName("nobody/app")) is Reason.UNKNOWN_TARGET


def test_bytes_that_are_not_there(world: World) -> None:
    """A link to bytes that are hidden or lost is no source."""
    world.store.delete(blob_key(world.garbage.digest("l")))
    assert world.refused() is Reason.NOT_SERVED
    assert not world.linked()


def test_a_registry_that_does_not_let_the_client_in(world: World) -> None:
    """If a source's registry refuses the client's token, the client uploads."""
    with GuardedRegistry() as registry:
        world.source_apart(registry.url)
        assert world.refused() is Reason.NOT_THERE
    assert [request.method for request in registry.requests] == ["HEAD"]
    with pytest.raises(UnavailableError):
        world.mount()


class YesRegistry(HTTPServer):
    """A registry with a store of its own that claims to have every blob, with this size."""

    def __init__(self, content: bytes, size: int | None, pause: float = 0) -> None:
        """`size` is what it says of every blob; `pause` in seconds is before each byte."""
        asked = self.asked = []

        class Answering(Handler):
            def do_HEAD(self) -> None:
                asked.append((self.command, self.headers["Authorization"]))
                self.send_response(200)
                if size is not None:
                    self.send_header("Content-Length", str(size))
                self.end_headers()

            def do_GET(self) -> None:
                asked.append((self.command, self.headers["Authorization"]))
                if not pause:
                    self.reply(200, content)
                    return
                self.reply(200, headers={"Content-Length": str(len(content))})
                with contextlib.suppress(OSError):
                    for byte in content:
                        time.sleep(pause)
                        self.wfile.write(bytes([byte]))

        super().__init__(Answering)
        self.url = self.address


@pytest.mark.parametrize("has_it", [False, True])
def test_a_registry_that_only_says_that_it_has_a_blob(world: World, has_it: bool) -> None:
    """A registry gives a blob of the shared store only by its bytes, not by a claim to have it."""
    blob = world.garbage.body("elsewhere")
    with YesRegistry(blob if has_it else b"?" * len(blob), len(blob)) as registry:
        world.source_apart(registry.url)
        if has_it:
            world.mount(name="elsewhere")
        else:
            assert world.refused(name="elsewhere") is Reason.NOT_THERE
        assert {method for method, _ in registry.asked} == {"HEAD", "GET"}
        assert {token for _, token in registry.asked} == {"Bearer for pod-a/app"}
        assert world.linked(name="elsewhere") is has_it
        # What may not be sent may not be read either, as it would take as long.
        world.relay_limit = len(blob) - 1
        assert world.refused(name="elsewhere", target=OTHER) is Reason.TOO_LARGE


@pytest.mark.parametrize("has_it", [False, True])
def test_a_registry_is_asked_the_same_wherever_the_blob_is(world: World, has_it: bool) -> None:
    """A source's registry gets the same requests whether or not the shared store has the blob."""
    blob = world.garbage.body("elsewhere")
    asked = []
    for is_shared in (True, False):
        if not is_shared:
            world.store.delete(blob_key(world.garbage.digest("elsewhere")))
        with YesRegistry(blob if has_it else b"?" * len(blob), len(blob)) as registry:
            world.source_apart(registry.url)
            if has_it and is_shared:
                world.mount(name="elsewhere")
            else:
                assert world.refused(name="elsewhere") is (Reason.NOT_SHARED if has_it else Reason.NOT_THERE)
            asked.append(registry.asked)
    assert asked[0] == asked[1]


def test_without_a_source_the_shared_store_is_asked_first(world: World) -> None:
    """A registry is not asked for a blob that a repository of the shared store has."""
    apart = RepositoryName("apart/app")
    world.access = Access(tuple(Grant(name, frozenset({"pull", "push"})) for name in (apart, TARGET, SOURCE)))
    with YesRegistry(b"", 1) as registry:
        world.others = [MountPod(0, PodName("apart"), PodKind.RELAY, (registry.url,), ("apart",))]
        world.mount(source=None)
        assert registry.asked == []
    assert world.linked()


def test_another_registry_of_the_source(world: World) -> None:
    """If one registry of a pod is away, the next answers for it; if all are, the mount is unavailable."""
    blob, away = world.garbage.body("elsewhere"), "http://127.0.0.1:1"
    with YesRegistry(blob, len(blob)) as registry:
        for registries in [(away,), (away, registry.url)]:
            world.source_apart(*registries)
            if registry.url in registries:
                world.mount(name="elsewhere")
                continue
            with pytest.raises(UnavailableError):
                world.mount(name="elsewhere")
    assert world.linked(name="elsewhere")


def test_a_registry_that_takes_too_long_to_show_a_blob(world: World) -> None:
    """A registry that sends its bytes slowly delays a mount no longer than a proof may take."""
    world.bounds = {"proof_s": 0.3}
    blob = world.garbage.body("elsewhere")
    with YesRegistry(blob, len(blob), pause=0.2) as registry:
        world.source_apart(registry.url)
        with pytest.raises(UnavailableError, match="too long"):
            world.mount(name="elsewhere")
    assert not world.linked(name="elsewhere")


class EndlessRegistry(HTTPServer):
    """A registry that claims to have every blob, and whose answers have no end."""

    def __init__(self, size: int, status: int, pause: float) -> None:
        is_over = self.is_over = threading.Event()

        class Answering(Handler):
            def do_HEAD(self) -> None:
                self.reply(200, headers={"Content-Length": str(size)})

            def do_GET(self) -> None:
                if self.path == "/v2/elsewhere":
                    self.send_error(404)
                    return
                self.send_response(status)
                self.send_header("Location", "/v2/elsewhere")
                self.send_header("Connection", "close")
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not is_over.wait(pause):
                        self.wfile.write(b"?" * (1 if pause else 65536))

        super().__init__(Answering)
        self.url = self.address


@pytest.mark.parametrize("status", [200, 307, 500])
@pytest.mark.parametrize("pause", [0, 0.02])
def test_a_registry_whose_answer_has_no_end(world: World, status: int, pause: float) -> None:
    """An endless blob, error or redirect delays no mount, by its length or by its time."""
    # What comes without a pause is ended by its length, however slow this machine is.
    world.bounds = dict.fromkeys(("proof_s", "read_timeout_s"), 0.5 if pause else 15.0)
    blob = world.garbage.body("elsewhere")
    with EndlessRegistry(len(blob), status, pause) as registry, ThreadPoolExecutor() as threads:
        world.source_apart(registry.url)
        mounting = threads.submit(world.mount, name="elsewhere")
        try:
            with pytest.raises((NotMountedError, UnavailableError)) as raised:
                mounting.result(timeout=20)
            # What is more than it has said is not read, however quickly it comes.
            assert (status, pause) != (200, 0) or raised.type is NotMountedError
        finally:
            registry.is_over.set()
    assert not world.linked(name="elsewhere")


def test_a_registry_that_does_not_report_how_large_a_blob_is(world: World) -> None:
    """A registry that reports no size has not confirmed the blob."""
    with YesRegistry(b"", None) as registry:
        world.source_apart(registry.url)
        assert world.refused() is Reason.NOT_THERE


class Relayed(Relay):
    """A relay to a registry that has every blob in some repositories; `within` records the requests."""

    def __init__(self, world: World, *having: RepositoryName) -> None:
        super().__init__(world.connections, Sources(world.store).read, credentials=None)
        self.having = having
        self.within: list[str] = []

    def _client(self, *_: Any, **__: Any) -> Any:
        def mount(_: RepositoryName, __: str, source: RepositoryName) -> bool:
            if source in self.having:
                self.within.append("mounted")
            return source in self.having

        client = mock.MagicMock()
        client.__enter__.return_value = client
        client.has_blob.return_value = False
        client.mount_blob.side_effect = mount
        client.begin_upload.side_effect = lambda *_: self.within.append("sent") or "/v2/x/blobs/uploads/y"
        return client


def linked_in(world: World, *repositories: RepositoryName) -> None:
    """Let these repositories of the target's pod link `l` in the table."""
    digest, size = world.garbage.digest("l"), len(world.garbage.body("l"))
    BatchApplier(world.garbage.connection, timedelta(seconds=1)).apply_stored(
        [
            Item(0, 0, world.garbage.pods["pod-b"], BlobLinked(each, digest, datetime.now(UTC), size), None)
            for each in repositories
        ]
    )


@pytest.mark.parametrize("kind", [PodKind.LINK, PodKind.RELAY])
def test_what_is_mounted_within_a_pod(world: World, kind: PodKind) -> None:
    """A blob that shared storage proves is mounted within the target's pod; one that a registry claims is sent."""
    blob = world.garbage.body("l")
    with YesRegistry(blob, len(blob)) as registry:
        world.source_apart(registry.url, kind=kind)
        world.target_kind, world.relay_limit = PodKind.RELAY, len(blob)
        world.linker = Relayed(world, OTHER)
        linked_in(world, OTHER)
        world.mount()
    assert world.linker.within == (["mounted"] if kind is PodKind.LINK else ["sent"])


@pytest.mark.parametrize("has", range(3))
def test_which_repository_of_a_pod_has_it(world: World, has: int) -> None:
    """Whichever repository of the table has the blob, nothing is sent again."""
    repositories = [RepositoryName(f"pod-b/{number}") for number in range(3)]
    linked_in(world, *repositories)
    world.target_kind, world.linker = PodKind.RELAY, Relayed(world, repositories[has])
    world.mount()
    assert world.linker.within == ["mounted"]


@pytest.mark.parametrize("authorization", [None, "Basic YWxpY2U6c2VjcmV0", "Bearer \xe9"])
def test_a_relay_is_nobody_else_than_its_client(world: World, authorization: str | None) -> None:
    """A client without a token gets nothing uploaded with Baleen's own password."""
    baleens = basic("baleen", "its password")
    with GuardedRegistry() as registry:
        registry.challenge, registry.good, registry.has_nothing = 'Basic realm="x"', {baleens}, True
        world.target_kind = PodKind.RELAY
        world.target_registries = (registry.url,)
        credentials = Credentials("baleen", Secret("its password"))
        world.linker = Relay(world.connections, Sources(world.store).read, credentials=credentials)
        with pytest.raises(UnavailableError):
            world.mounter().mount(MountRequest(TARGET, world.garbage.digest("l"), SOURCE), authorization)
        assert baleens not in {request.authorization for request in registry.requests}
        assert "POST" not in {request.method for request in registry.requests}


def test_a_check_between_reference_and_link(world: World) -> None:
    """A reference that a reconcile removes before the link is written is made again."""
    digest, confirmed = world.garbage.digest("l"), []

    class Sought(LinkWriter):
        def link(self, job: MountJob) -> None:
            connections = Connections(world.garbage.url, name="test-settler", prepare=statements.prepare_connection)
            (key,) = world.garbage.rows("SELECT id FROM repositories WHERE name = %s", (job.repository,))
            pod = LinkedPod(world.garbage.pods["pod-b"], PodName("pod-b"), PodKind.LINK)
            with closing(connections), closing(Links(BucketLinks(world.store))) as links:
                resolver = Resolver(connections, links)
                confirmed.extend(
                    resolver.resolve_unlisted(pod, [(key[0], digest)], datetime.now(UTC), [RepositoryName("pod-b")])
                )
            super().link(job)

    world.garbage.connection.execute("UPDATE pods SET kind = 'link'")
    # Something of the pod is stored, so that an absence counts.
    world.store.put(layer_link_key(OTHER, digest), format_digest(digest).encode())
    world.linker = Sought(world.store)
    world.mount()
    assert [result.linked for result in confirmed] == [False]
    linked = "SELECT FROM repository_blobs l JOIN repositories r ON r.id = l.repository_id WHERE r.name = %s"
    assert len(world.garbage.rows(linked, (TARGET,))) == 1


def test_a_link_that_fails(world: World) -> None:
    """A failed link removes the reference that was reserved for it."""
    world.linker = Failing()
    before = world.garbage.rows("SELECT link_count FROM blobs WHERE digest = %s", (world.garbage.digest("l"),))
    with pytest.raises(UnavailableError):
        world.mount()
    assert world.garbage.rows("SELECT link_count FROM blobs WHERE digest = %s", (world.garbage.digest("l"),)) == before
