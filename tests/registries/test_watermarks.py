"""A pod's watermark on real processes: it moves on with probes, and stands still when a process is silent or gone."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.stack.model_registry import ModelRegistry
from tests.registries.harness import Baleen, Pod
from tests.registries.watermarks import is_past, moves_on, now, states, watermark
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def witness(running_baleen: Baleen) -> Iterator[Pod]:
    """A pod to which nothing happens: its watermark moves on."""
    with running_baleen.at_rest_after():
        pod = running_baleen.add_pod("witness")
        running_baleen.list_registries(pod, running_baleen.registry(ModelRegistry, pod))
        yield pod


def test_a_process_that_stops_and_dies(baleen: Baleen, kind: Any, witness: Pod, request: pytest.FixtureRequest) -> None:
    """The watermark stands still while the process is stopped or dead, until the dead one is retired (scenario 25)."""
    here = request.node.callspec.id
    pod = baleen.add_pod(f"{here}-mark")
    assert "registry" in baleen.pod(pod)["waits_for"][0]
    registry = baleen.registry(kind, pod)
    baleen.list_registries(pod, registry)
    eventually(lambda: baleen.pod(pod)["watermark"] is not None, why=lambda: baleen.pod(pod))
    moves_on(baleen, pod)
    eventually(lambda: waits_for_nothing(baleen, pod), why=lambda: baleen.pod(pod))
    shown = baleen.pod(pod)
    (first,) = shown["processes"]
    assert shown["endpoints"][0]["process"] == first["instance_id"]

    # What was pushed before the watermark is applied.
    image = make_image(f"{here}/mark")
    with RegistryClient(registry.url, timeout=20) as client:
        client.push_image(f"{pod.name}/app", image, "v1")
    after = now(baleen)
    eventually(lambda: is_past(baleen, pod, after), why=lambda: baleen.pod(pod))
    assert baleen.holds(f"{pod.name}/app", image.digest)

    registry.pause()
    try:
        eventually(lambda: states(baleen, pod) == ["silent"], why=lambda: baleen.pod(pod))
        stands_still(baleen, pod, witness)
        assert any("has returned no probe" in reason for reason in baleen.pod(pod)["waits_for"])
        assert any("watermark:" in reason for reason in baleen.pod(pod)["blocked_by"])
    finally:
        registry.resume()
    eventually(lambda: states(baleen, pod) == ["live"], why=lambda: baleen.pod(pod))
    moves_on(baleen, pod)

    registry.kill()
    eventually(lambda: states(baleen, pod) == ["dead"], why=lambda: baleen.pod(pod))
    assert baleen.pod(pod)["processes"][0]["dead_why"] == "refused"
    assert "ECONNREFUSED" in baleen.pod(pod)["endpoints"][0]["error"]
    stands_still(baleen, pod, witness)

    at = watermark(baleen, pod)
    registry.start()
    eventually(lambda: states(baleen, pod) == ["dead", "live"], why=lambda: baleen.pod(pod))
    stands_still(baleen, pod, witness, at)
    why = {"why": "it was killed by a test"}
    baleen.ask("POST", f"/v1/pods/{pod.name}/processes/{first['instance_id']}/retire", why)
    moves_on(baleen, pod)
    eventually(lambda: states(baleen, pod) == ["live", "retired"], why=lambda: baleen.pod(pod))
    # What it had not told is a gap, until a reconcile that begins late enough.
    assert baleen.pod(pod)["gaps"]["open"] == 1
    baleen.rows("UPDATE gaps SET resolved_at = now(), resolved_why = 'a test' WHERE reason = 'retired' RETURNING id")
    baleen.agree()


def test_a_replaced_process(baleen: Baleen, kind: Any, witness: Pod, request: pytest.FixtureRequest) -> None:
    """A process that is replaced at once is dead all the same; a second address goes on."""
    pod = baleen.add_pod(f"{request.node.callspec.id}-two")
    one, other = baleen.registry(kind, pod, "1"), baleen.registry(kind, pod, "2")
    baleen.list_registries(pod, one, other)
    eventually(lambda: states(baleen, pod) == ["live", "live"], why=lambda: baleen.pod(pod))
    moves_on(baleen, pod)
    one.kill()
    one.start()
    eventually(lambda: states(baleen, pod) == ["dead", "live", "live"], why=lambda: baleen.pod(pod))
    eventually(lambda: watermark(baleen, pod) is not None, why=lambda: baleen.pod(pod))
    stands_still(baleen, pod, witness)


def waits_for_nothing(baleen: Baleen, pod: Pod) -> bool:
    """Whether all processes are live and the watermark waits for nothing."""
    shown = baleen.pod(pod)
    lives = {source["state"] for source in shown["processes"]} == {"live"}
    return lives and not shown["waits_for"] and not any("watermark:" in reason for reason in shown["blocked_by"])


def stands_still(baleen: Baleen, pod: Pod, witness: Pod, at: dt.datetime | None = None) -> None:
    """Check that the watermark is unknown or stays at `at` while that of the witness moves on."""
    # What the process had told before may be under way.
    baleen.await_applied()
    at = at or watermark(baleen, pod)
    assert at is not None
    for _ in range(2):
        moves_on(baleen, witness)
        assert watermark(baleen, pod) in (at, None)
