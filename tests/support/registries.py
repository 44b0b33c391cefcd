"""The registries that the contract is tried on: the model, and CNCF distribution itself."""

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from coordinator.registry.images import sha256_digest
from coordinator.stack.distribution import DistributionRegistry, _make_environment, find_program
from coordinator.stack.model_notifications import Webhook
from coordinator.stack.model_server import ModelServer
from coordinator.stack.model_storage import ModelStorage
from coordinator.stack.ports import Ports
from tests.storage.memory import MemoryObjectStore
from tests.support.sink import NotificationSink

TOKEN = "event-token"
PROGRAM = "docker-registry"
START_S = 60.0
#: Of each request, also by registries: one that gives up earlier sends the same events again.
REQUEST_S = 60
FENCE = b"the fence"
FENCE_DIGEST = sha256_digest(FENCE)


class RunningRegistry:
    """A registry under test: its address, what it announced, what it stored."""

    def __init__(self, url: str, sink: NotificationSink) -> None:
        self.url = url
        self.sink = sink

    def stored(self) -> dict[str, bytes]:
        """Everything that is stored, except upload sessions and the fence."""
        fence = FENCE_DIGEST.partition(":")[2]
        return {key: content for key, content in self.objects().items() if "/_uploads/" not in key and fence not in key}

    def objects(self) -> dict[str, bytes]:
        raise NotImplementedError

    def overwrite(self, key: str, content: bytes) -> None:
        raise NotImplementedError

    def events(self) -> list[dict[str, Any]]:
        """Everything that was announced up to now.

        Delivery is serial, so an event of our own (the fence) proves that all earlier ones have arrived.
        """
        nonce = str(uuid.uuid4())
        with httpx.Client(base_url=self.url, headers={"User-Agent": nonce}, timeout=REQUEST_S, trust_env=False) as http:
            if http.head(f"/v2/fence/blobs/{FENCE_DIGEST}").status_code == 404:
                upload = http.post("/v2/fence/blobs/uploads/").headers["Location"]
                http.put(httpx.URL(upload).copy_merge_params({"digest": FENCE_DIGEST}), content=FENCE)
        self.sink.wait(lambda sink: any(event["request"]["useragent"] == nonce for event in sink.accepted))
        return [event for event in self.sink.accepted if event["target"]["repository"] != "fence"]


class RunningModel(RunningRegistry):
    def __init__(self, url: str, sink: NotificationSink, store: MemoryObjectStore) -> None:
        super().__init__(url, sink)
        self._store = store

    def objects(self) -> dict[str, bytes]:
        return {entry.key: self._store.get(entry.key) for entry in self._store.walk("")}

    def overwrite(self, key: str, content: bytes) -> None:
        self._store.put(key, content)


class RunningDistribution(RunningRegistry):
    def __init__(self, url: str, sink: NotificationSink, root: Path) -> None:
        super().__init__(url, sink)
        self._root = root

    def objects(self) -> dict[str, bytes]:
        paths = [path for path in self._root.rglob("*") if path.is_file()]
        return {path.relative_to(self._root).as_posix(): path.read_bytes() for path in paths}

    def overwrite(self, key: str, content: bytes) -> None:
        (self._root / key).write_bytes(content)


@contextmanager
def running_model(
    sink: NotificationSink,
    store: MemoryObjectStore | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    pulls: bool = True,
) -> Iterator[RunningModel]:
    """Run the model on a store in memory, in a thread of this process, until the block ends."""
    store = store or MemoryObjectStore()
    webhook = Webhook(sink.url, TOKEN, timeout_seconds=REQUEST_S, backoff_seconds=0.02, pulls=pulls)
    server = ModelServer(host, port, ModelStorage(store), webhook)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield RunningModel(server.url, sink, store)
    finally:
        server.shutdown()
        server.close()
        thread.join(10)


@contextmanager
def running_distribution(
    sink: NotificationSink, directory: Path, name: str = "registry", more: str = ""
) -> Iterator[RunningDistribution]:
    """Run the real program on a directory, without a descriptor cache, until the block ends.

    Several of one directory, each with a name of its own, are processes of one registry. `more` is configuration.
    """
    port = Ports(directory / "ports.json", "127.0.0.1").take(name)
    configuration = directory / f"{name}.yml"
    configuration.write_text(_make_configuration(directory / "root", port, sink) + more)
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", str(configuration)], stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_answering(url, process)
        yield RunningDistribution(url, sink, directory / "root")
    finally:
        process.kill()
        process.wait(10)


def collect_as_registry(
    made: DistributionRegistry, *options: str, file: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the registry's own `garbage-collect` with its configuration, and so with its key, or with another file."""
    program = find_program()
    assert program is not None
    return subprocess.run(
        [program, "garbage-collect", *options, file or made.directory / f"{made.name}.yml"],
        capture_output=True,
        text=True,
        env=_make_environment(),
        timeout=START_S,
        check=False,
    )


def _wait_until_answering(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/v2/", timeout=2, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"{PROGRAM} does not answer on {url}; exit status {process.poll()}")


def _make_configuration(root: Path, port: int, sink: NotificationSink) -> str:
    return f"""\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
  relativeurls: true
notifications:
  events: {{includereferences: true}}
  endpoints:
    - name: sink
      url: {sink.url}
      headers: {{Authorization: [Bearer {TOKEN}]}}
      timeout: {REQUEST_S}s
      threshold: 1
      backoff: 20ms
"""
