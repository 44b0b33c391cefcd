"""Every process of every pod is probed with a nonce of its own, whatever others do, and the result is recorded."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from coordinator.compose import database as compose_database
from coordinator.errors import UnavailableError
from coordinator.pods import prober as probing
from coordinator.pods.prober import AGENT, Prober, make_probe_image
from coordinator.settings import Settings
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import StackEndpoints
from tests.api.harness import settings_for
from tests.services.http import Handler, HTTPServer
from tests.storage.memory import MemoryObjectStore
from tests.support.guarded_registry import GuardedRegistry
from tests.support.issuer import CREDENTIALS, TokenIssuer, basic_header
from tests.support.registries import running_distribution, running_model
from tests.support.sink import NotificationSink
from tests.support.tables import add_pod, add_process
from tests.support.wait import eventually

DEADLINE = 60.0


class Resolver:
    """Names as a test defines them; any other cannot be looked up."""

    def __init__(self) -> None:
        self.names: dict[str, Sequence[str]] = {}

    def __call__(self, host: str, _: int) -> Sequence[str]:
        if host not in self.names:
            raise UnavailableError(f"{host} cannot be looked up.")
        return self.names[host]


class Endpoint(NamedTuple):
    answered: bool
    failing: bool
    error: str | None


class World:
    def __init__(self, settings: Settings, db: psycopg.Connection[Any]) -> None:
        self.db = db
        self.resolver = Resolver()
        self.connections = compose_database.make_connections(settings, name="test-prober")

    def add_pod(self, name: str, *registries: str, probe: str = "push") -> None:
        self.pod = add_pod(self.db, name, registries=list(registries), probe=probe)

    @contextmanager
    def prober(self, **options: Any) -> Iterator[Prober]:
        # One that is given up is not what these tests are about, nor is another after it.
        prober = Prober(self.connections, resolve=self.resolver, timeout=DEADLINE, **options)
        try:
            yield prober
        finally:
            prober.close()

    def probes(self, url: str) -> list[tuple[str, str]]:
        """(address, nonce) of the probes of a URL, the oldest first."""
        found = self.db.execute("SELECT address, nonce FROM probes WHERE url = %s ORDER BY sent_at, nonce", (url,))
        return [(address, nonce.hex) for address, nonce in found]

    def answered(self, url: str) -> list[bool]:
        """Whether each probe of a URL was answered as it should be, the oldest first."""
        found = self.db.execute("SELECT answered_at IS NOT NULL FROM probes WHERE url = %s ORDER BY sent_at", (url,))
        return [answered for (answered,) in found]

    def endpoint(self, url: str, address: str = "127.0.0.1") -> Endpoint | None:
        columns = "answered_at IS NOT NULL, failing_since IS NOT NULL, error"
        statement = f"SELECT {columns} FROM endpoints WHERE url = %s AND address = %s"
        row = self.db.execute(statement, (url, address)).fetchone()
        return None if row is None else Endpoint(*row)

    def answers(self, url: str, address: str = "127.0.0.1") -> bool:
        return self.endpoint(url, address) == Endpoint(answered=True, failing=False, error=None)

    def fails(self, url: str, address: str = "127.0.0.1") -> str | None:
        found = self.endpoint(url, address)
        return None if found is None else found.error


@pytest.fixture(scope="session")
def settings(embedded_stack: StackEndpoints) -> Settings:
    return settings_for(embedded_stack)


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    with psycopg.connect(compose_database.database_url(settings), autocommit=True) as db:
        db.execute("DELETE FROM probes; DELETE FROM endpoints; DELETE FROM processes; DELETE FROM pod_prefixes")
        db.execute("DELETE FROM pods")
        world = World(settings, db)
        try:
            yield world
        finally:
            world.connections.close()


def echoes(sink: NotificationSink) -> dict[str, Mapping[str, Any]]:
    """The events that carry a nonce, by it."""
    return {
        event["request"]["useragent"].removeprefix(AGENT): event
        for event in sink.accepted
        if event["request"]["useragent"].startswith(AGENT)
    }


def pushed(sink: NotificationSink) -> list[str]:
    """Digests of the pushes that were not probes."""
    return [
        event["target"]["digest"]
        for event in sink.accepted
        if event["action"] == "push" and not event["request"]["useragent"].startswith(AGENT)
    ]


@pytest.mark.parametrize(("probe", "method"), [("push", "PUT"), ("pull", "HEAD")])
def test_each_probe_comes_back(world: World, sink: NotificationSink, probe: str, method: str) -> None:
    """The known image is pushed once; then each round puts or requests its manifest, as the pod is probed, and the
    event returns the nonce.
    """
    with running_model(sink, pulls=probe == "pull") as registry, world.prober() as prober:
        world.add_pod("team", registry.url, probe=probe)
        prober.round()
        eventually(lambda: world.answers(registry.url), "it answers")
        # Behind all that was pushed.
        nonce = world.probes(registry.url)[-1][1]
        eventually(lambda: nonce in echoes(sink), "it comes back")
        image = make_probe_image()
        assert pushed(sink) == [*(blob.digest for blob in image.blobs), image.digest]
        assert {event["target"]["repository"] for event in sink.accepted} == {"team/baleen-probe"}
        for count in (3, 4):
            another_round(prober)
            eventually(lambda n=count: len(world.probes(registry.url)) == n, "a probe more is sent")
            nonce = world.probes(registry.url)[-1][1]
            echo = eventually(lambda n=nonce: echoes(sink).get(n), "it comes back")
            assert (echo["request"]["method"], echo["target"]["digest"]) == (method, image.digest)
        # The first was of what was not there yet: that answer brings no event.
        eventually(lambda: world.answered(registry.url) == [False, True, True, True], "it is noted")
        assert len(pushed(sink)) == len(image.blobs) + 1


def test_the_row_comes_first(world: World) -> None:
    """A probe's row is in the table before the registry gets its request."""
    seen: list[bool] = []

    class Watching(GuardedRegistry):
        def check(self, agent: str) -> None:
            known = {nonce for _, nonce in world.probes(self.url)}
            seen.append(agent.removeprefix(AGENT) in known)

    with Watching() as registry, world.prober() as prober:
        registry.good = {None}
        registry.asked = registry.check
        world.add_pod("team", registry.url)
        prober.round()
        eventually(lambda: world.answers(registry.url), "it answers")
    assert seen == [True]


def test_a_name_stands_for_all_its_addresses(world: World, sink: NotificationSink) -> None:
    """Each address of a name is probed under the name; one that the name no longer has is not probed again."""
    store = MemoryObjectStore()
    with (
        running_model(sink, store) as first,
        running_model(sink, store, "127.0.0.2", port_of(first.url)) as second,
        world.prober() as prober,
    ):
        url = f"http://registry.test:{port_of(first.url)}"
        world.resolver.names["registry.test"] = ["127.0.0.1", "127.0.0.2"]
        world.add_pod("team", url)
        prober.round()
        eventually(lambda: all(world.answers(url, address) for address in ("127.0.0.1", "127.0.0.2")), "both answer")
        last = dict(world.probes(url))
        eventually(lambda: set(last.values()) <= set(echoes(sink)), "both come back")
        hosts = {echoes(sink)[nonce]["request"]["host"] for nonce in last.values()}
        assert hosts == {url.removeprefix("http://")}
        assert {echoes(sink)[nonce]["source"]["addr"] for nonce in last.values()} == {
            f"{socket.gethostname()}:{port_of(each.url)}" for each in (first, second)
        }
        assert len({echoes(sink)[nonce]["source"]["instanceID"] for nonce in last.values()}) == 2

        world.resolver.names["registry.test"] = ["127.0.0.2"]
        sent = len(world.probes(url))
        for more in (1, 2):
            another_round(prober)
            eventually(lambda n=more: len(world.probes(url)) == sent + n, "one is asked again")
        assert {address for address, _ in world.probes(url)[sent:]} == {"127.0.0.2"}
        assert world.endpoint(url, "127.0.0.1") is not None

        # While names cannot be looked up, what was known is asked on, and is not told as looked up.
        del world.resolver.names["registry.test"]
        eventually(lambda: not prober._busy, "nothing is under way")
        before = resolved_at(world, url)
        prober.round()
        eventually(lambda: len(world.probes(url)) == sent + 3, "it is asked all the same")
        assert resolved_at(world, url) == before


def test_a_name_is_known_as_of_before_it_was_looked_up(world: World, sink: NotificationSink) -> None:
    """The time of a look-up is that of its beginning, however long it takes."""
    asked_at: list[Any] = []

    class Slow(Resolver):
        def __call__(self, host: str, port: int) -> Sequence[str]:
            with psycopg.connect(world.db.info.dsn, password=world.db.info.password) as other:
                asked_at.extend(other.execute("SELECT clock_timestamp()").fetchone() or ())
            return super().__call__(host, port)

    world.resolver = Slow()
    with running_model(sink) as registry, world.prober() as prober:
        url = f"http://registry.test:{port_of(registry.url)}"
        world.resolver.names["registry.test"] = ["127.0.0.1"]
        world.add_pod("team", url)
        prober.round()
        eventually(lambda: world.answers(url), "it answers")
        assert resolved_at(world, url)["127.0.0.1"] <= asked_at[0]


def test_an_address_where_nobody_ever_was(world: World, sink: NotificationSink) -> None:
    """An address of a name at which nothing ever listened is probed and not counted on."""
    store = MemoryObjectStore()
    with running_model(sink, store) as first, world.prober() as prober:
        url = f"http://registry.test:{port_of(first.url)}"
        world.resolver.names["registry.test"] = ["127.0.0.1", "127.0.0.2"]
        world.add_pod("team", url)
        prober.round()
        eventually(lambda: world.answers(url) and world.fails(url, "127.0.0.2"), "one answers, one refuses")
        before = resolved_at(world, url)
        another_round(prober)
        eventually(lambda: resolved_at(world, url)["127.0.0.1"] > before["127.0.0.1"], "one was seen again")
        assert resolved_at(world, url)["127.0.0.2"] == before["127.0.0.2"]
        with running_model(sink, store, "127.0.0.2", port_of(first.url)):
            another_round(prober)
            eventually(lambda: world.answers(url, "127.0.0.2"), "the other answers")
            another_round(prober)
            eventually(lambda: resolved_at(world, url)["127.0.0.2"] > before["127.0.0.2"], "both were seen")


def test_one_that_hangs_delays_nobody(world: World, sink: NotificationSink) -> None:
    """A registry that hangs has one probe under way, while others are probed on."""
    with socket.create_server(("127.0.0.1", 0)) as hanging, running_model(sink) as registry, world.prober() as prober:
        hanging_url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        world.add_pod("hanging", hanging_url)
        world.add_pod("team", registry.url)
        for count in (2, 3, 4):
            prober.round()
            eventually(lambda n=count: len(world.probes(registry.url)) == n, "the other was asked")
            eventually(lambda: len(prober._busy) == 1, "it answers")
        assert len(world.probes(hanging_url)) == 1


def test_one_that_is_gone(world: World, sink: NotificationSink, tmp_path: Path) -> None:
    """An address that refuses has its error recorded until it answers again."""
    store = MemoryObjectStore()
    # Nobody else takes it while nothing listens there.
    port = Ports(tmp_path / "ports.json", "127.0.0.1").take("registry")
    with running_model(sink, store, port=port) as registry, world.prober() as prober:
        url = registry.url
        world.add_pod("team", url)
        prober.round()
        eventually(lambda: world.answers(url), "it answers")
    with world.prober() as prober:
        prober.round()
        error = eventually(lambda: world.fails(url), "it refuses")
        assert "ECONNREFUSED" in error
        with running_model(sink, store, port=port):
            another_round(prober)
            eventually(lambda: world.answers(url), "it answers again")


def test_one_that_does_not_take_the_image(world: World) -> None:
    """A registry that does not accept the image gets it rarely, since each attempt may leave an upload."""
    with Empty() as registry, world.prober() as prober:
        world.add_pod("team", registry.url)
        for count in (1, 2, 3):
            prober.round()
            eventually(lambda n=count: len(world.probes(registry.url)) == n, "it was asked")
            eventually(lambda: world.fails(registry.url) and not prober._busy, "it failed")
        assert not any(world.answered(registry.url))
        posts = [request for request in registry.requests if request.method == "POST"]
        assert len(posts) == len(make_probe_image().blobs)
        assert world.endpoint(registry.url) == Endpoint(answered=True, failing=True, error=world.fails(registry.url))


def test_one_that_lacks_the_repository(world: World) -> None:
    """GitLab's registry answers 500 there, and names the unknown blobs among its errors: then the image is pushed."""
    with LacksRepository() as registry, world.prober() as prober:
        world.add_pod("team", registry.address)
        prober.round()
        eventually(lambda: world.answers(registry.address), why=lambda: world.fails(registry.address))
        assert len(registry.uploads) == len(make_probe_image().blobs)


@pytest.mark.parametrize("status", [401, 403, 405])
def test_one_that_takes_no_pushes(world: World, status: int) -> None:
    """If a registry refuses pushes, the error says that the pod can be probed by pulls."""

    class ReadOnly(GuardedRegistry):
        def __init__(self) -> None:
            super().__init__()
            self.good = {None}
            self.put_status = status

    with ReadOnly() as registry, world.prober() as prober:
        world.add_pod("team", registry.url)
        prober.round()
        error = eventually(lambda: world.fails(registry.url), "it fails")
        assert "`baleen pods set-probe team pull`" in error
        world.db.execute("UPDATE pods SET probe = 'pull'")
        another_round(prober)
        eventually(lambda: world.answers(registry.url), "it answers")


def test_pods_that_come_and_go(world: World, sink: NotificationSink) -> None:
    """A new pod is probed in the next round, and nothing is kept of one that is removed."""
    with running_model(sink) as registry, world.prober() as prober:
        prober.round()
        world.add_pod("team", registry.url)
        prober.round()
        eventually(lambda: world.answers(registry.url), "it answers")
        eventually(lambda: not prober._busy, "nothing is under way")
        assert len(prober._endpoints) == 1
        world.db.execute("DELETE FROM probes; DELETE FROM endpoints; DELETE FROM pod_prefixes; DELETE FROM pods")
        prober.round()
        assert (prober._endpoints, prober._addresses) == ({}, {})


def test_all_of_a_shared_address_are_asked(world: World, sink: NotificationSink) -> None:
    """An address with several processes is probed more than once a round, each time by a new connection."""
    with running_model(sink) as registry, world.prober() as prober:
        world.add_pod("team", registry.url)
        prober.round()
        eventually(lambda: world.answers(registry.url), "it answers")
        world.db.execute("UPDATE endpoints SET shared = true")
        for instance in ("one", "two", "three"):
            add_process(world.db, world.pod, instance)
        sent = len(world.probes(registry.url))
        another_round(prober)
        eventually(lambda: len(world.probes(registry.url)) == sent + 3 * probing.PROBES_PER_PROCESS, "all are sent")
        eventually(
            lambda: {nonce for _, nonce in world.probes(registry.url)[sent:]} <= set(echoes(sink)), "they are back"
        )
        nonces = [nonce for _, nonce in world.probes(registry.url)[sent:]]
        assert len({echoes(sink)[nonce]["request"]["addr"] for nonce in nonces}) == len(nonces)


@pytest.mark.registry
def test_two_real_processes_of_one_pod(world: World, sink: NotificationSink, tmp_path: Path) -> None:
    """Of two processes of CNCF distribution on one storage, each brings its own probes back."""
    with (
        running_distribution(sink, tmp_path, "one") as one,
        running_distribution(sink, tmp_path, "two") as two,
        world.prober() as prober,
    ):
        world.add_pod("team", one.url, two.url)
        instances = {}
        for url in (one.url, two.url):
            # Both push the image to the one storage at first: a registry that reads what the other writes answers 500.
            eventually(lambda u=url: asked_again(prober) and world.answers(u), "it answers")
            nonce = world.probes(url)[-1][1]
            instances[url] = eventually(lambda n=nonce: echoes(sink).get(n), "it comes back")["source"]["instanceID"]
        assert instances[one.url] != instances[two.url]


@pytest.mark.registry
def test_behind_a_login(world: World, sink: NotificationSink, tmp_path: Path) -> None:
    """A registry with token auth gets one token for many probes; without credentials the error names the setting."""
    with TokenIssuer(tmp_path) as issuer, running_distribution(sink, tmp_path, more=issuer.configuration()) as registry:
        world.add_pod("team", registry.url)
        with world.prober() as prober:
            prober.round()
            assert "BALEEN_REGISTRY_USERNAME" in eventually(lambda: world.fails(registry.url), "it fails")
        with world.prober(credentials=CREDENTIALS) as prober:
            for _ in range(3):
                sent = len(world.probes(registry.url))
                prober.round()
                eventually(lambda n=sent: len(world.probes(registry.url)) > n and not prober._busy, "it was asked")
            assert world.answers(registry.url)
            by_us = [asked for asked in issuer.asked if asked.authorization == basic_header(CREDENTIALS)]
            # The registry names the actions in any order.
            to_push = [{f"repository:team/baleen-probe:{actions}"} for actions in ("pull,push", "push,pull")]
            assert len([asked for asked in by_us if set(asked.scopes) in to_push]) == 1


def another_round(prober: Prober) -> None:
    """Wait until no probe is under way, and send the next ones."""
    eventually(lambda: not prober._busy, "nothing is under way")
    prober.round()


def asked_again(prober: Prober) -> bool:
    """Send a round of probes and wait until all have ended; return true."""
    prober.round()
    eventually(lambda: not prober._busy, "nothing is under way")
    return True


class Empty(GuardedRegistry):
    """Accepts every upload and has nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.good = {None}
        self.has_nothing = True


class LacksRepository(HTTPServer):
    """Has its repository once a blob was uploaded to it. Until then it refuses a manifest as GitLab's registry does."""

    REFUSAL = b'{"errors": [{"code": "UNKNOWN", "message": "unknown error"}, {"code": "MANIFEST_BLOB_UNKNOWN"}]}'

    def __init__(self) -> None:
        self.uploads: list[str] = []
        registry = self

        class Answering(Handler):
            def do_HEAD(self) -> None:
                self.reply(404)

            def do_POST(self) -> None:
                self.reply(202, headers={"Location": f"{self.path}session"})

            def do_PUT(self) -> None:
                self.body()
                if "/manifests/" not in self.path:
                    registry.uploads.append(self.path)
                refused = not registry.uploads
                self.reply(500 if refused else 201, registry.REFUSAL if refused else b"")

        super().__init__(Answering)


def resolved_at(world: World, url: str) -> dict[str, Any]:
    return dict(world.db.execute("SELECT address, resolved_at FROM endpoints WHERE url = %s", (url,)).fetchall())


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])
