"""`baleen demo`: two real registries on one bucket, and every count held against the links in the bucket.

Route: `baleen up` as a child in a temporary directory -> two pods, registered over the API -> two registries ->
the story (`_story`), each step of which is checked -> exit 0 only if all held.
Not here: what the bucket says (bucket.py), which shares no code with what counts.
"""

import contextlib
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from coordinator import bootstrap
from coordinator import settings as configuration
from coordinator.commands import bucket
from coordinator.commands.client import Api, connected
from coordinator.errors import BaleenError
from coordinator.pods.images import make_image, make_index, make_layer
from coordinator.pods.registry_client import RegistryClient
from coordinator.stack import distribution
from coordinator.stack.application import answers
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Notifications, Storage
from coordinator.stack.model_registry import ModelRegistry
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.storage.port import ObjectStore

PODS = ("pod-a", "pod-b")
#: How long counts may take to follow what a registry has done. It is well under a second when all is well.
FOLLOW_S = 30.0
UP_S = 90.0
POLL_S = 0.05


class DemoFailedError(BaleenError):
    """A step of the demo did not hold; the message says which and how."""


class Pod(NamedTuple):
    name: str
    url: str
    client: RegistryClient


class Demo(NamedTuple):
    console: Console
    api: Api
    store: ObjectStore
    pods: dict[str, Pod]


def run(*, keep: bool = False, console: Console | None = None) -> None:
    """Run the demo; raises DemoFailedError at the first step that does not hold."""
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="baleen-demo-") as directory, contextlib.ExitStack() as started:
        children = started.enter_context(Children())
        console.print("[bold]Baleen demo[/]: two registries, one bucket, one reference table")
        demo = _start(Path(directory), children, console, started)
        _story(demo)
        console.print("[bold green]Every step held.[/]")
        if keep:
            _stay(demo, Path(directory))


def _story(demo: Demo) -> None:
    base = make_layer("demo/base", 4_000_000)
    images = {f"app{n}": make_image(f"demo/app{n}", [base, make_layer(f"demo/app{n}", 50_000)]) for n in (1, 2, 3)}
    _step(demo, "push app1 and app2 to pod-a: they share a base layer of 4 MB")
    for name in ("app1", "app2"):
        demo.pods["pod-a"].client.push_image(f"pod-a/{name}", images[name], "v1")
    _held(demo, base.digest, references=2, pods=["pod-a"])

    _step(demo, "push app1 and app3 to pod-b, a registry of its own on the same bucket")
    for name in ("app1", "app3"):
        demo.pods["pod-b"].client.push_image(f"pod-b/{name}", images[name], "v1")
    _held(demo, base.digest, references=4, pods=["pod-a", "pod-b"])
    _show_sharing(demo)

    _step(demo, "push an index of app1 and app2 to pod-b, and move the tag v1 of pod-a/app1")
    demo.pods["pod-b"].client.push_image("pod-b/multi", make_index([images["app1"], images["app2"]]), "v1")
    demo.pods["pod-a"].client.push_image("pod-a/app1", images["app3"], "v1")
    _held(demo, base.digest, references=7, pods=["pod-a", "pod-b"])

    _step(demo, "delete app2 in pod-a: its references go, those of pod-b stay")
    demo.pods["pod-a"].client.delete_manifest("pod-a/app2", images["app2"].digest)
    _held(demo, base.digest, references=6, pods=["pod-a", "pod-b"])
    _held(demo, images["app2"].layers[1].digest, references=1, pods=None)

    _step(demo, "delete the same image from pod-b's index repository: only the index still names it")
    demo.pods["pod-b"].client.delete_manifest("pod-b/multi", images["app2"].digest)
    _held(demo, images["app2"].digest, references=1, pods=["pod-b"])
    _held(demo, images["app2"].layers[1].digest, references=0, pods=None)

    _step(demo, "pull what is left from both pods, every layer whole")
    for pod, repository in (("pod-a", "pod-a/app1"), ("pod-b", "pod-b/app1"), ("pod-b", "pod-b/app3")):
        demo.pods[pod].client.pull_image(repository, "v1")
    demo.console.print("  [green]held[/]: all digests agree")


# What each step is held against


def _held(demo: Demo, digest: str, *, references: int, pods: list[str] | None) -> None:
    """Wait until one blob is as said, and all counts and holdings are as the links in the bucket make them."""
    deadline = time.monotonic() + FOLLOW_S
    while True:
        told = _blob(demo, digest)
        differences = _differences(demo)
        right = told["reference_count"] == references and pods in (None, told["pods"])
        if right and not differences:
            break
        if time.monotonic() > deadline:
            raise DemoFailedError(
                f"{digest} should have {references} references in {pods}, and is told as {told}; "
                f"differences from the bucket: {differences[:5]}."
            )
        time.sleep(POLL_S)
    demo.console.print(
        f"  [green]held[/]: {digest[:19]}… has {told['reference_count']} references in "
        f"{', '.join(told['pods']) or 'no pod'}; all counts agree with the links in the bucket"
    )


def _differences(demo: Demo) -> list[str]:
    """Compare the whole table with the whole bucket."""
    wanted = bucket.expected(demo.store)
    digests = sorted(wanted.sizes)
    found: list[str] = []
    for digest, blob in zip(digests, _look_up(demo, digests), strict=True):
        expected = wanted.reference_counts.get(digest, 0)
        if blob is None or blob["reference_count"] != expected:
            found.append(f"{digest}: told as {blob}, the links make {expected} references")
        elif blob["size"] != wanted.sizes[digest]:
            found.append(f"{digest}: {blob['size']} bytes, stored are {wanted.sizes[digest]}")
    for repository in sorted({repository for repository, _ in wanted.holdings}):
        manifests = sum(holder == repository for holder, _ in wanted.holdings)
        told = _repository(demo, repository)
        if told is None or told["manifests"] != manifests:
            found.append(f"{repository}: told as {told}, the links make {manifests} manifests")
    return found


def _blob(demo: Demo, digest: str) -> dict[str, Any]:
    (blob,) = _look_up(demo, [digest])
    return blob or {"reference_count": None, "pods": []}


def _look_up(demo: Demo, digests: list[str]) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = demo.api.post("/v1/blobs/lookup", {"digests": digests})["items"]
    return found


def _repository(demo: Demo, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = demo.api.get(f"/v1/repositories/{name}")
    except BaleenError:
        return None
    return found


def _show_sharing(demo: Demo) -> None:
    table = Table("blob", "bytes", "references", "pods", title="What both pods share")
    digests = sorted(bucket.expected(demo.store).sizes)
    for digest, blob in zip(digests, _look_up(demo, digests), strict=True):
        if blob is not None and len(blob["pods"]) > 1:
            table.add_row(digest[:19] + "…", f"{blob['size']:,}", str(blob["reference_count"]), ", ".join(blob["pods"]))
    demo.console.print(table)


def _step(demo: Demo, what: str) -> None:
    demo.console.print(f"[bold]•[/] {what}")


# Starting and ending it


def _start(directory: Path, children: Children, console: Console, started: contextlib.ExitStack) -> Demo:
    data_dir = directory / "data"
    ports = Ports(directory / "ports.json", "127.0.0.1")
    port = ports.take("the API")
    began = time.monotonic()
    children.start(
        ManagedProcess(
            name="baleen up",
            argv=[sys.executable, "-m", "coordinator.cli", "up", "--data-dir", str(data_dir), "--port", str(port)],
            log_file=directory / "up.log",
            stop_signal=signal.SIGTERM,
            stop_timeout=60,
            ready_timeout=UP_S,
            probe=lambda: answers(f"http://127.0.0.1:{port}/readyz"),
        )
    )
    console.print(f"  ready after {time.monotonic() - began:.1f} s: PostgreSQL, S3, Kafka protocol, API, worker")
    settings = configuration.load({"BALEEN_DATA_DIR": str(data_dir)})
    api = started.enter_context(connected(settings))
    demo = Demo(console, api, bootstrap.object_store(settings), {})
    http_secret = secrets.token_hex(16)
    for name in PODS:
        url = _start_registry(name, ports.take(name), directory, demo, children, settings, http_secret)
        demo.pods[name] = Pod(name, url, started.enter_context(contextlib.closing(RegistryClient(url))))
    program = distribution.available()
    console.print(
        f"  two pods run the program {program.name}"
        if program is not None
        else "  two pods run the [bold]model registry[/], since docker-registry is not installed here"
    )
    return demo


def _start_registry(
    name: str,
    port: int,
    directory: Path,
    demo: Demo,
    children: Children,
    settings: configuration.Settings,
    http_secret: str,
) -> str:
    pod = demo.api.post("/v1/pods", {"name": name, "prefixes": [name], "registries": [f"http://127.0.0.1:{port}"]})
    assert settings.s3_endpoint_url is not None
    assert settings.s3_bucket is not None
    assert settings.s3_access_key is not None
    assert settings.s3_secret_key is not None
    storage = Storage(
        endpoint_url=settings.s3_endpoint_url,
        bucket=settings.s3_bucket,
        root=settings.s3_root,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.reveal(),
    )
    notifications = Notifications(url=f"{settings.url}/v1/events/{name}", token=pod["event_token"])
    known: dict[str, Any] = {
        "name": name,
        "directory": directory / name,
        "port": port,
        "storage": storage,
        "notifications": notifications,
    }
    registry = (
        DistributionRegistry(**known, http_secret=http_secret)
        if distribution.available() is not None
        else ModelRegistry(**known)
    )
    children.start(registry.process())
    return registry.url


def _stay(demo: Demo, directory: Path) -> None:
    demo.console.print(
        f"\nStill running. In another terminal:\n"
        f"  cd {directory} && BALEEN_DATA_DIR=data baleen pods list\n"
        + "".join(f"  {pod.name} is at {pod.url}\n" for pod in demo.pods.values())
        + "Ctrl-C ends it, and removes everything."
    )
    with _until_told():
        signal.pause()


@contextlib.contextmanager
def _until_told() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)
