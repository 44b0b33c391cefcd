"""The router as it runs: with a configuration that was made for registries on one bucket, and requests to it.

Route: `World.started` (store, three registries, a stand-in of Baleen) -> `World.behind` (nginx or Envoy) -> `client`,
or `raw`, which writes bytes as they are -> `Pod.seen`, the registry's own access log.
Not here: what runs (proxies.py), what Baleen answers to a mount (stand_in.py), real clients (test_clients.py).
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from coordinator.domain.pods import parse_registry
from coordinator.registry.client import RegistryClient
from coordinator.router import nginx as router
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Storage
from coordinator.stack.nginx import is_listening
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.stack.supervisor import Stack
from tests.registries.harness import HOST, HTTP_SECRET, Registry
from tests.router.proxies import Proxy
from tests.router.stand_in import StandIn
from tests.services.envoy import remove_shared_memory
from tests.services.s3 import s3_storage
from tests.support.wait import eventually

DEADLINE_S = 120.0
#: What each pod owns. `teams` is not `team`, and a repository may be called as an endpoint is.
PREFIXES = {"pod-a": ["team"], "pod-b": ["teams", "other/manifests"], "pod-c": ["c.d"]}
LAYER = b"a layer that two pods need" * 100
#: The pod that lets the store send the bytes of blobs, and writes absolute URLs.
REDIRECTS = "pod-c"


class Seen(NamedTuple):
    """One request as a registry has logged it."""

    method: str
    target: str
    status: int


class AbsoluteURLs(DistributionRegistry):
    def configuration(self) -> dict[str, Any]:
        known: dict[str, Any] = super().configuration()
        return known | {"http": known["http"] | {"relativeurls": False}}


class Pod(Registry):
    """One registry process of a pod."""

    def __init__(self, children: Children, made: DistributionRegistry) -> None:
        super().__init__(children, made)
        self.name = made.name
        self._log = made.directory / f"{made.name}.log"
        self._read = 0

    def seen(self) -> list[Seen]:
        """The requests since the last call. A short answer is logged before it is sent."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
            self._read = log.tell()
        lines = re.findall(rb'"([A-Z]+) (/\S*) HTTP/1\.[01]" ([0-9]{3}) ', text)
        return [Seen(method.decode(), target.decode(), int(status)) for method, target, status in lines]


class Answer(NamedTuple):
    status: int
    #: By their names in lower case.
    headers: dict[str, str]
    body: bytes


@dataclass
class Router:
    url: str
    address: str
    directory: Path
    process: ManagedProcess
    file: Path
    #: Its options, if the command has not made its file.
    options: router.Options | None = None
    _read: int = field(default=0, repr=False)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}", timeout=DEADLINE_S, trust_env=False, **options)

    def raw(self, request: bytes) -> Answer:
        """Write a request as it is, and read the answer."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
            connection.sendall(request)
            return read_answer(connection)

    def log(self) -> list[dict[str, str]]:
        with (self.directory / "access.log").open("rb") as log:
            log.seek(self._read)
            # The last line may not be whole yet.
            text = b"".join(line for line in log if line.endswith(b"\n"))
            self._read += len(text)
        return [httpx.Response(200, content=line).json() for line in text.splitlines()]

    def skip_log(self) -> None:
        """Leave out all earlier requests, also those that are logged only now."""
        mark = f"/{secrets.token_hex(8)}"
        self.raw(request(f"GET {mark} HTTP/1.1"))
        eventually(lambda: any(line["path"] == mark for line in self.log()))

    def lines(self, count: int = 1) -> list[dict[str, str]]:
        """The log of the last requests, which is written just after they are answered."""
        found: list[dict[str, str]] = []

        def all_there() -> bool:
            found.extend(self.log())
            return len(found) >= count

        eventually(all_there, why=lambda: found)
        return found

    def routes(self, count: int = 1) -> list[str]:
        return [line["route"] for line in self.lines(count)]

    def workers(self) -> list[int]:
        """The processes that do the work."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(each) for each in children.split()] or [self.process.pid]


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """One request on a connection of its own; a body gets its length unless it is said to be chunked."""
    lines = [line, "Host: router.example:5000", "Connection: close", *headers]
    if body and not any(each.lower().startswith("transfer-encoding") for each in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def read_answer(connection: socket.socket) -> Answer:
    """Read as much as the answer says it has, or to the end of the connection; interim answers (100) are left out."""
    content = b""
    # Envoy keeps a connection for a second on which a client may still be sending.
    while not is_whole(content) and (chunk := connection.recv(65536)):
        content += chunk
    return parse_answer(content)


def is_whole(content: bytes) -> bool:
    if b"\r\n\r\n" not in content or content.startswith(b"HTTP/1.1 100"):
        return False
    answer = parse_answer(content)
    return "content-length" in answer.headers and len(answer.body) >= int(answer.headers["content-length"])


def parse_answer(content: bytes) -> Answer:
    head, _, body = content.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    status = int(first.split()[1])
    if status == 100:
        return parse_answer(body)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Answer(status, headers, body)


@dataclass
class World:
    """Three registries on one bucket, a stand-in of Baleen, and a router."""

    directory: Path
    children: Children
    ports: Ports
    storage: Storage
    pods: dict[str, Pod]
    coordinator: StandIn
    proxy: Proxy = field(init=False)
    router: Router = field(init=False)
    _numbers: int = 0
    #: The processes of other routers, and the addresses of those that may be reloaded.
    _others: list[ManagedProcess] = field(default_factory=list)
    _reloadable: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def started(cls, directory: Path) -> Iterator[World]:
        ports = Ports(directory / "ports.json", HOST)
        with Stack(directory / "stack", services=("s3",)) as stack, Children() as children:
            storage = s3_storage(stack.endpoints, "router")
            pods = {name: make_pod(name, directory, children, ports, storage) for name in PREFIXES}
            with StandIn({prefix: pods[pod].url for pod, owned in PREFIXES.items() for prefix in owned}) as coordinator:
                yield cls(directory, children, ports, storage, pods, coordinator)
            stack.discard()

    @contextmanager
    def behind(self, proxy: Proxy) -> Iterator[World]:
        """Run a router of this kind until the block ends."""
        self.proxy = proxy
        self.router = self.another_router()
        self._others.clear()
        yield self
        self.children.end(self.router.process)

    def end_others(self) -> None:
        """End the routers that a test has started, since each takes processor time while it is idle."""
        for process in self._others:
            self.children.end(process)
        for address in self._reloadable:
            remove_shared_memory(address)
        self._others.clear()
        self._reloadable.clear()

    def seen(self) -> dict[str, list[Seen]]:
        """The requests since the last call to each pod that got some."""
        return {name: seen for name, pod in self.pods.items() if (seen := pod.seen())}

    def another_router(
        self,
        *,
        pods: Iterable[router.RoutedPod] | None = None,
        baleen: str | None = None,
        to_be_reloaded: bool = False,
        **options: Any,
    ) -> Router:
        """A router of other pods, with another Baleen or with other options, for one test."""
        self._numbers += 1
        made = start_router(
            self.proxy,
            self.directory / f"router-{self._numbers}",
            self.children,
            self.ports,
            routed(self.pods.values()) if pods is None else pods,
            self.coordinator.url if baleen is None else baleen,
            to_be_reloaded=to_be_reloaded,
            **options,
        )
        self._others.append(made.process)
        if to_be_reloaded:
            self._reloadable.append(made.address)
        return made

    def reload(self, made: Router, pods: Iterable[router.RoutedPod]) -> None:
        assert made.options is not None
        made.file.write_text(self.proxy.configuration(pods, made.options))
        if self.proxy.epochs is None:
            os.kill(made.process.pid, signal.SIGHUP)
        else:
            following = self.proxy.epochs[1](made.directory, made.file, made.address)
            self._others.append(self.children.start(following))

    def nowhere(self) -> str:
        self._numbers += 1
        return f"http://{HOST}:{self.ports.take(f'nowhere-{self._numbers}')}"

    def repository(self, pod: str) -> str:
        """A repository of the pod that no test has used."""
        self._numbers += 1
        return f"{PREFIXES[pod][0]}/r{self._numbers}"

    def client(self, pod: str | None = None) -> RegistryClient:
        """A client of the router, or directly of a pod."""
        return RegistryClient(self.router.url if pod is None else self.pods[pod].url)


def make_pod(name: str, directory: Path, children: Children, ports: Ports, storage: Storage) -> Pod:
    kind = AbsoluteURLs if name == REDIRECTS else DistributionRegistry
    made = kind(
        name=name,
        directory=directory / name,
        port=ports.take(name),
        storage=storage,
        http_secret=HTTP_SECRET,
        redirect=name == REDIRECTS,
    )
    return Pod(children, made)


def start_router(
    proxy: Proxy,
    directory: Path,
    children: Children,
    ports: Ports,
    routed: Iterable[router.RoutedPod],
    baleen: str,
    *,
    to_be_reloaded: bool = False,
    **options: Any,
) -> Router:
    """Start a router; `options` are other than those that all tests have."""
    state = directory / "router"
    state.mkdir(parents=True)
    address = f"{HOST}:{ports.take(f'router-{directory.name}')}"
    usual = router.Options(
        coordinator=[parse_registry(baleen)],
        request_bound_s=60,
        listen=address,
        # Long, since a machine that is slow for a moment is no reason to leave Baleen out.
        coordinator_timeout_s=60,
        whole=True,
        state_dir=str(state),
        log_file=f"{state}/access.log",
    )
    made = replace(usual, **options)
    file = directory / "router.conf"
    file.write_text(proxy.configuration(routed, made))
    start = proxy.epochs[0] if to_be_reloaded and proxy.epochs is not None else proxy.process
    process = children.start(start(state, file, address))
    return Router(f"{'http' if made.tls is None else 'https'}://{address}", address, state, process, file, made)


def routed(pods: Iterable[Pod]) -> list[router.RoutedPod]:
    return [router.RoutedPod(pod.name, PREFIXES[pod.name], [parse_registry(pod.url)]) for pod in pods]


def frozen_stand_in(world: World) -> tuple[str, ManagedProcess]:
    """A stand-in in a process of its own, which can be paused; its URL, and the process."""
    port = world.ports.take("frozen")
    process = ManagedProcess(
        name="stand-in",
        argv=[sys.executable, "-m", "tests.router.stand_in", str(port)],
        cwd=Path(__file__).parents[2],
        log_file=world.directory / "stand-in.log",
        stop_signal=signal.SIGKILL,
        probe=lambda: is_listening(f"{HOST}:{port}"),
    )
    world.children.start(process)
    return f"http://{HOST}:{port}", process
