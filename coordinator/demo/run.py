"""`baleen demo`: run two registries on one bucket, and compare every count with the links in the bucket.

Route: `baleen up` as a child in a temporary directory -> two pods, registered over the API -> two registries ->
the steps (`_run_scenario`), each of which is checked, with a mount (mount.py) and garbage collection (gc.py) -> exit 0
only if all checks pass.
Not here: counting in the bucket (bucket.py), which shares no code with Baleen's counts.
"""

import contextlib
import datetime as dt
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coordinator import settings as configuration
from coordinator.client import connect_api
from coordinator.compose import store as compose_store
from coordinator.demo import bucket
from coordinator.demo import gc as demo_gc
from coordinator.demo import mount as demo_mount
from coordinator.demo.gate import Gate
from coordinator.demo.world import PODS, UNSAFE_FINDINGS, Demo, DemoFailedError, DemoPod
from coordinator.errors import BaleenError
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Layer, make_image, make_index, make_layer
from coordinator.stack import distribution
from coordinator.stack.application import is_answering, user_environment
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Notifications, Storage
from coordinator.stack.model_registry import ModelRegistry
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess

UP_S = 90.0
#: How long Baleen may take to notice that a registry was killed, wait for its last requests, and reconcile.
REPAIR_S = 90.0
#: A demonstration need not wait as long as a cluster: requests of a dead registry land within eight seconds here, and
#: there is one clock. A process that is silent for half of that counts as paused. The quarantine is long enough to push
#: a hidden image again.
SETTINGS = f"""\
unsafe_times = true
unsafe_findings = "{",".join(UNSAFE_FINDINGS)}"
safety_request_bound = "8s"
safety_clock_skew = "4s"
safety_link_grace = "2s"
safety_grace = "2s"
safety_quarantine = "8s"
probe_every = "500ms"
mounts = "open"
"""


def run_demo(*, keep: bool = False, console: Console | None = None) -> None:
    """Run the demo; raises DemoFailedError at the first check that fails."""
    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="baleen-demo-") as directory, contextlib.ExitStack() as started:
        children = started.enter_context(Children())
        console.print("[bold]Baleen demo[/]: two registries, one bucket, one reference table")
        demo, through, api = _start_all(Path(directory), children, console, started)
        _run_scenario(demo, through, api)
        console.print("[bold green]Every check passed.[/]")
        if keep:
            _keep_running(demo, Path(directory))


def _run_scenario(demo: Demo, through: str | None, api: str) -> None:
    """Run the steps. `through`: the router, if there is one."""
    base = make_layer("demo/base", 4_000_000)
    images = {f"app{n}": make_image(f"demo/app{n}", [base, make_layer(f"demo/app{n}", 50_000)]) for n in (1, 2, 3)}
    demo.show_step("push app1 and app2 to pod-a: they share a base layer of 4 MB")
    for name in ("app1", "app2"):
        demo.pods["pod-a"].client.push_image(f"pod-a/{name}", images[name], "v1")
    _check_blob(demo, base.digest, references=2, pods=["pod-a"])

    demo.show_step("push app1 and app3 to pod-b, another registry on the same bucket")
    for name in ("app1", "app3"):
        demo.pods["pod-b"].client.push_image(f"pod-b/{name}", images[name], "v1")
    _check_blob(demo, base.digest, references=4, pods=["pod-a", "pod-b"])
    _show_sharing(demo)

    demo.show_step("push an index of app1 and app2 to pod-b, and move the tag v1 of pod-a/app1")
    demo.pods["pod-b"].client.push_image("pod-b/multi", make_index([images["app1"], images["app2"]]), "v1")
    demo.pods["pod-a"].client.push_image("pod-a/app1", images["app3"], "v1")
    _check_blob(demo, base.digest, references=7, pods=["pod-a", "pod-b"])

    demo.show_step("delete app2 in pod-a: its references end, those of pod-b stay")
    demo.pods["pod-a"].client.delete_manifest("pod-a/app2", images["app2"].digest)
    _check_blob(demo, base.digest, references=6, pods=["pod-a", "pod-b"])
    _check_blob(demo, images["app2"].layers[1].digest, references=1, pods=None)

    demo.show_step(
        "delete the same image from pod-b's repository multi: the index still references it and what it lists"
    )
    demo.pods["pod-b"].client.delete_manifest("pod-b/multi", images["app2"].digest)
    _check_blob(demo, images["app2"].digest, references=2, pods=["pod-b"])
    _check_blob(demo, images["app2"].layers[1].digest, references=1, pods=None)

    demo.show_step("pull what is left from both pods")
    for pod, repository in (("pod-a", "pod-a/app1"), ("pod-b", "pod-b/app1"), ("pod-b", "pod-b/app3")):
        demo.pods[pod].client.pull_image(repository, "v1")
    demo.show_ok("all layers match their digests")

    mounted = demo_mount.mount_layer(demo, through, api)
    _check_blob(demo, mounted.digest, references=2, pods=["pod-a", "pod-b"])

    garbage = demo_gc.push_garbage(demo, base)
    _check_blob(demo, garbage.old.layers[1].digest, references=0, pods=None)
    _lose_events(demo, base)
    demo_gc.collect_garbage(demo, garbage)

    demo.show_step("pull every image that is left from both pods again")
    for pod, names in (("pod-a", ("app1", "base")), ("pod-b", ("app1", "app3", "app4", "app5", "again"))):
        for name in names:
            demo.pods[pod].client.pull_image(f"{pod}/{name}", "v1")
    demo.show_ok("all layers match their digests")
    _check_blob(demo, base.digest, references=8, pods=["pod-a", "pod-b"])


def _lose_events(demo: Demo, base: Layer) -> None:
    """Kill a registry with events in its queue: Baleen can find what was pushed only in the bucket."""
    pod = demo.pods["pod-b"]
    demo.show_step("pod-b's registry cannot reach Baleen, accepts a push of app4, and is killed")
    _wait_for_pod(demo, "the watermark of pod-b", lambda answer: answer["watermark"] is not None)
    pod.gate.close()
    image = make_image("demo/app4", [base, make_layer("demo/app4", 50_000)])
    pod.client.push_image("pod-b/app4", image, "v1")
    demo.children.kill(pod.process)
    pod.gate.open()
    process = demo.children.start(pod.registry.process())
    demo.pods["pod-b"] = pod = pod._replace(process=process)
    if (answer := _read_blob(demo, image.digest))["reference_count"] is not None:
        raise DemoFailedError(f"The events of app4 were in the queue of a dead registry, but the table has {answer}.")

    demo.show_step("the table does not know app4, so pod-b's watermark stops: GC is blocked")
    frozen = _wait_for_pod(
        demo, "the death of the old process", lambda answer: any(s["dead_since"] for s in answer["processes"])
    )
    demo.show_ok(f"the watermark stands at {frozen['watermark']}")
    for reason in frozen["waits_for"][:3]:
        demo.console.print(f"  {reason}", highlight=False)

    demo.show_step("a reconcile starts automatically once the dead process's last writes have landed")
    done = _wait_for_pod(
        demo,
        "the reconcile",
        lambda answer: (
            any(s["retired_at"] for s in answer["processes"]) and _watermark_of(answer) > _watermark_of(frozen)
        ),
    )
    _check_blob(demo, image.digest, references=1, pods=["pod-b"])
    _check_blob(demo, base.digest, references=7, pods=["pod-a", "pod-b"])
    pod.client.pull_image("pod-b/app4", "v1")
    demo.show_ok(f"the dead process is retired, and the watermark advances: {done['watermark']}")


def _watermark_of(answer: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(answer["watermark"] or "0001-01-01T00:00:00Z")


def _wait_for_pod(demo: Demo, what: str, there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until pod-b satisfies `there`; return it."""
    return demo.wait_until(
        lambda: demo.api.get("/v1/pods/pod-b"),
        there,
        lambda answer: f"Timed out waiting for {what}; pod-b is {answer}.",
        REPAIR_S,
    )


# Checks of the steps


def _check_blob(demo: Demo, digest: str, *, references: int, pods: list[str] | None) -> None:
    """Wait until one blob is as expected, and all counts and holdings agree with the links in the bucket."""
    answer, _ = demo.wait_until(
        lambda: (_read_blob(demo, digest), _find_differences(demo)),
        lambda found: found[0]["reference_count"] == references and pods in (None, found[0]["pods"]) and not found[1],
        lambda found: (
            f"{digest} should have {references} references in {pods}, but is {found[0]}; "
            f"differences from the bucket: {found[1][:5]}."
        ),
    )
    demo.show_ok(
        f"{digest[:19]}… has {answer['reference_count']} reference{'s' * (references != 1)} "
        f"in {', '.join(answer['pods']) or 'no pod'}; all counts agree with the links in the bucket"
    )


def _find_differences(demo: Demo) -> list[str]:
    """Compare the whole table with the whole bucket."""
    wanted = bucket.read_expected_counts(demo.store)
    digests = sorted(wanted.sizes)
    found: list[str] = []
    for digest, blob in zip(digests, demo.look_up(digests), strict=True):
        expected = wanted.reference_counts.get(digest, 0)
        if blob is None or blob["reference_count"] != expected:
            found.append(f"{digest}: the table has {blob}, the links make {expected} references")
        elif blob["size"] != wanted.sizes[digest]:
            found.append(f"{digest}: the table has {blob['size']} bytes, storage has {wanted.sizes[digest]}")
    for repository in sorted({repository for repository, _ in wanted.holdings}):
        manifests = sum(holder == repository for holder, _ in wanted.holdings)
        answer = _read_repository(demo, repository)
        if answer is None or answer["manifests"] != manifests:
            found.append(f"{repository}: the table has {answer}, the links make {manifests} manifests")
    return found


def _read_blob(demo: Demo, digest: str) -> dict[str, Any]:
    (blob,) = demo.look_up([digest])
    return blob or {"reference_count": None, "pods": []}


def _read_repository(demo: Demo, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = demo.api.get(f"/v1/repositories/{name}")
    except BaleenError:
        return None
    return found


def _show_sharing(demo: Demo) -> None:
    table = Table("blob", "bytes", "references", "pods", title="Blobs that both pods share")
    digests = sorted(bucket.read_expected_counts(demo.store).sizes)
    for digest, blob in zip(digests, demo.look_up(digests), strict=True):
        if blob is not None and len(blob["pods"]) > 1:
            table.add_row(digest[:19] + "…", f"{blob['size']:,}", str(blob["reference_count"]), ", ".join(blob["pods"]))
    demo.console.print(table)


# Start and end


def _start_all(
    directory: Path, children: Children, console: Console, started: contextlib.ExitStack
) -> tuple[Demo, str | None, str]:
    """Start everything; return it, the router's URL, if there is one, and the API's URL."""
    data_dir = directory / "data"
    ports = Ports(directory / "ports.json", "127.0.0.1")
    port = ports.take("the API")
    began = time.monotonic()
    (directory / configuration.FILE).write_text(SETTINGS)
    children.start(
        ManagedProcess(
            name="baleen up",
            argv=[sys.executable, "-m", "coordinator.cli", "up", "--data-dir", str(data_dir), "--port", str(port)],
            # None of the user's own settings: GC with the demo's times would run on the services that they name.
            env=user_environment(),
            cwd=directory,
            log_file=directory / "up.log",
            stop_signal=signal.SIGTERM,
            stop_timeout=60,
            ready_timeout=UP_S,
            probe=lambda: is_answering(f"http://127.0.0.1:{port}/readyz"),
        )
    )
    console.print(
        f"  ready after {time.monotonic() - began:.1f} s: PostgreSQL, S3, Kafka protocol, API, worker, scheduler"
    )
    settings = configuration.load({"BALEEN_DATA_DIR": str(data_dir)}, directory)
    api = started.enter_context(connect_api(settings))
    demo = Demo(console, settings, api, compose_store.make_object_store(settings), {}, children)
    http_secret = secrets.token_hex(16)
    for name in PODS:
        gate = started.enter_context(Gate("127.0.0.1", port))
        registry = _make_registry(name, ports.take(name), directory, demo, gate, settings, http_secret)
        process = children.start(registry.process())
        client = started.enter_context(contextlib.closing(RegistryClient(registry.url)))
        demo.pods[name] = DemoPod(registry, process, client, gate)
    program = distribution.find_program()
    console.print(
        f"  two pods run the program {program.name}"
        if program is not None
        else "  two pods run the [bold]model registry[/], since docker-registry is not installed here"
    )
    api_url = f"http://127.0.0.1:{port}"
    return demo, demo_mount.start_router(demo, directory, ports.take("the router"), api_url), api_url


def _make_registry(
    name: str,
    port: int,
    directory: Path,
    demo: Demo,
    gate: Gate,
    settings: configuration.Settings,
    http_secret: str,
) -> DistributionRegistry | ModelRegistry:
    """Register a pod, and return its registry, which is not started yet."""
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
    notifications = Notifications(url=f"http://127.0.0.1:{gate.port}/v1/events/{name}", token=pod["event_token"])
    known: dict[str, Any] = {
        "name": name,
        "directory": directory / name,
        "port": port,
        "storage": storage,
        "notifications": notifications,
    }
    if distribution.find_program() is not None:
        return DistributionRegistry(**known, http_secret=http_secret)
    return ModelRegistry(**known)


def _keep_running(demo: Demo, directory: Path) -> None:
    demo.console.print(
        f"\nStill running. In another terminal:\n"
        f"  cd {directory} && BALEEN_DATA_DIR=data baleen pods list\n"
        + "".join(f"  {pod.registry.name} is at {pod.registry.url}\n" for pod in demo.pods.values())
        + "Press Ctrl-C to stop and remove everything."
    )
    with _until_interrupted():
        signal.pause()


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)
