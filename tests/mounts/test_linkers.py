"""The contract of every linker, on real registries: once it returns the pod serves the blob, and else it raises.

Another linker is one more entry of `MAKERS`, or more if its registry needs it.
Not here: the reference that comes before (test_mounter.py), how the relay sends (test_relay.py).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from coordinator.db.connection import Connections
from coordinator.domain.names import RepositoryName, parse_digest, parse_pod
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.gitlab.databases import GitlabWriters
from coordinator.gitlab.linker import GitlabLinker
from coordinator.mounts import table
from coordinator.mounts.directory import MountPod
from coordinator.mounts.linker import BlobLinker, LinkWriter, MountJob
from coordinator.mounts.relay import ReadSource, Relay
from coordinator.mounts.sources import Sources
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Layer, make_image, make_layer
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.conftest import temporary_directory
from tests.gitlab.model import fill_tables, make_tables
from tests.gitlab.row_registry import RowRegistry
from tests.registries.harness import HOST, HTTP_SECRET, Registry
from tests.services.databases import Databases
from tests.services.s3 import s3_storage

pytestmark = pytest.mark.registry

AT_ONCE = 4
CLIENT_S = 20.0


class Refusing:
    """A store that takes nothing."""

    def put(self, key: str, _: bytes) -> None:
        raise UnavailableError(f"The object store does not take {key}.")


@dataclass
class World:
    """A blob of one pod, a pod that is to serve it, and the linker of that pod."""

    linker: BlobLinker
    #: The same linker, when what it links in is away.
    failing: BlobLinker
    source: MountPod
    target: MountPod
    registry: Registry | RowRegistry
    layer: Layer
    connections: Connections
    #: Reads a blob from its source.
    read: ReadSource

    def job(self, repository: str = "app") -> MountJob:
        return MountJob(
            self.target,
            RepositoryName(f"{self.target.name}/{repository}"),
            parse_digest(self.layer.digest),
            len(self.layer.content),
            self.source,
            RepositoryName(f"{self.source.name}/app"),
            None,
        )

    def client(self) -> RegistryClient:
        return RegistryClient(self.registry.url, timeout=CLIENT_S)


def link(store: S3ObjectStore, _: Relay) -> tuple[BlobLinker, BlobLinker]:
    refusing: Any = Refusing()
    return LinkWriter(store), LinkWriter(refusing)


def relay(_: S3ObjectStore, relay: Relay) -> tuple[BlobLinker, BlobLinker]:
    return relay, relay


MAKERS = {PodKind.LINK: link, PodKind.RELAY: relay}


def rows(url: str, name: str, directory: Path, store: S3ObjectStore, relay: Relay) -> tuple[BlobLinker, BlobLinker]:
    """Linkers of the pod of this name, whose registry has its database at `url`."""
    linkers = []
    for folder, known in (("there", url), ("away", "postgresql://127.0.0.1:1/registry")):
        (directory / folder).mkdir()
        (directory / folder / name).write_text(known)
        linkers.append(GitlabLinker(GitlabWriters(str(directory / folder)), store, relay, relay_limit=1 << 20))
    return linkers[0], linkers[1]


@pytest.fixture(scope="module")
def database(databases: Databases) -> str:
    return databases.migrated()


@pytest.fixture(scope="module")
def gitlab_url(databases: Databases) -> str:
    url = databases.empty()
    with psycopg.connect(url, autocommit=True) as connection:
        make_tables(connection)
        fill_tables(connection)
    return url


@pytest.fixture(params=PodKind)
def world(
    request: pytest.FixtureRequest, embedded_stack: StackEndpoints, database: str, gitlab_url: str
) -> Iterator[World]:
    kind, mark = request.param, secrets.token_hex(3)
    storage = s3_storage(embedded_stack, "linkers")
    store = S3ObjectStore(**asdict(storage))
    with ExitStack() as closing:
        directory = closing.enter_context(temporary_directory())
        children, ports = closing.enter_context(Children()), Ports(directory / "ports.json", HOST)

        def started(name: str, root: str) -> Registry:
            made = DistributionRegistry(
                name=name,
                directory=directory / name,
                port=ports.take(name),
                storage=replace(storage, root=root),
                http_secret=HTTP_SECRET,
            )
            return Registry(children, made)

        source = started(f"source-{mark}", storage.root)
        name = f"target-{mark}"
        target: Registry | RowRegistry
        if kind is PodKind.GITLAB:
            target = RowRegistry(store, gitlab_url)
            closing.callback(target.kill)
        else:
            target = started(name, storage.root if kind is PodKind.LINK else name)
        layer = make_layer(mark, 100_000)
        with RegistryClient(source.url, timeout=CLIENT_S) as client:
            client.push_image(f"source-{mark}/app", make_image(mark, [layer]), "v1")
        connections = Connections(database, name="test-linkers", prepare=table.prepare_connection)
        closing.callback(connections.close)
        read = Sources(store).read
        relay = Relay(connections, read, credentials=None)
        if kind is PodKind.GITLAB:
            linker, failing = rows(gitlab_url, name, directory, store, relay)
        else:
            linker, failing = MAKERS[kind](store, relay)
        pods = (known(1, f"source-{mark}", PodKind.LINK, source), known(2, name, kind, target))
        yield World(linker, failing, *pods, target, layer, connections, read)


def known(number: int, name: str, kind: PodKind, registry: Registry | RowRegistry) -> MountPod:
    return MountPod(number, parse_pod(name), kind, (registry.url,), (name,))


def test_it_is_served_once_it_returns(world: World) -> None:
    """A client pulls the blob from the repository, and an image of it with every layer."""
    world.linker.link(world.job())
    with world.client() as client:
        assert client.get_blob(f"{world.target.name}/app", world.layer.digest) == world.layer.content
        image = make_image("of another", [world.layer])
        client.push_image(f"{world.target.name}/app", image, "v1")
        assert client.pull_image(f"{world.target.name}/app", "v1").digest == image.digest


def test_again_and_at_once(world: World) -> None:
    """Repeated links, and links for several repositories at once, are each made."""
    repositories = [f"r{number}" for number in range(AT_ONCE)] * 2
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(world.linker.link, world.job(name)) for name in repositories]:
            done.result()
    world.linker.link(world.job("r0"))
    with world.client() as client:
        assert all(client.has_blob(f"{world.target.name}/{name}", world.layer.digest) for name in repositories)


def test_by_another_registry_of_the_pod(world: World) -> None:
    """If the pod's first registry is away, the blob is served all the same."""
    world.target = world.target._replace(registries=("http://127.0.0.1:1", world.registry.url))
    world.linker.link(world.job())
    with world.client() as client:
        assert client.get_blob(f"{world.target.name}/app", world.layer.digest) == world.layer.content


def test_it_raises_when_it_did_not(world: World) -> None:
    """If the link cannot be made the linker raises, and the blob is not served."""
    world.registry.kill()
    with pytest.raises(UnavailableError):
        world.failing.link(world.job())
    world.registry.start()
    with world.client() as client:
        assert not client.has_blob(f"{world.target.name}/app", world.layer.digest)


@pytest.mark.parametrize("world", [PodKind.RELAY], indirect=True)
def test_a_relay_that_falls_behind(world: World) -> None:
    """A relay that is slower than the least rate is given up with its upload, and leaves its place to others."""
    slow = Relay(
        world.connections, world.read, credentials=None, at_once=1, waiting=1, head_start=0, least_rate=math.inf
    )
    for _ in range(2):
        with pytest.raises(UnavailableError, match="slower than"):
            slow.link(world.job())
    with world.client() as client:
        assert not client.has_blob(f"{world.target.name}/app", world.layer.digest)
    ended = [line for line in world.registry.log().splitlines() if "http.request.method=DELETE" in line]
    assert len(ended) == 2
    assert all("http.response.status=204" in line for line in ended)
    world.linker.link(world.job())


@pytest.mark.parametrize("world", [PodKind.RELAY], indirect=True)
def test_a_source_that_gives_more_than_it_has_reported(world: World) -> None:
    """Bytes beyond the size that the source has reported are not sent."""
    given = 0

    @contextmanager
    def read(_: MountJob) -> Iterator[Iterator[bytes]]:
        def endless() -> Iterator[bytes]:
            nonlocal given
            while given < 100:
                given += 1
                yield bytes(len(world.layer.content))

        yield endless()

    with pytest.raises(UnavailableError, match="more than"):
        Relay(world.connections, read, credentials=None).link(world.job())
    assert given == 2
