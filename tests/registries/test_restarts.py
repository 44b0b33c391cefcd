"""A registry that is killed repeatedly: each death is noticed, and a reconcile finds what was lost."""

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple

import pytest

from coordinator.registry.client import RegistryClient
from coordinator.registry.images import make_image
from coordinator.stack.distribution import DistributionRegistry
from tests.registries.harness import Baleen, Pod, Registry
from tests.registries.proxy import WebhookProxy
from tests.registries.watermarks import is_past, moves_on, now, states
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


class End(NamedTuple):
    """How a process ends. `unechoed`: ingest was away for its last events, so that they are lost for certain."""

    by: Callable[[Registry], None]
    unechoed: bool


ENDS = [
    End(Registry.kill, unechoed=True),
    End(Registry.terminate, unechoed=False),
    End(Registry.kill, unechoed=False),
    End(Registry.terminate, unechoed=True),
    End(Registry.kill, unechoed=True),
]


def test_a_registry_that_is_restarted_again_and_again(baleen: Baleen) -> None:
    """Each ended process holds the watermark until a reconcile has found what was lost and retired it (scenario 25)."""
    pod = baleen.add_pod("restarted")
    app = f"{pod.name}/app"
    first, *others = (make_image(f"{pod.name}/{number}", sizes=[300]) for number in range(len(ENDS) + 1))
    ended: list[dt.datetime] = []
    with WebhookProxy(baleen.webhook(pod)) as proxy:
        registry = baleen.registry(DistributionRegistry, pod, url=proxy.url)
        baleen.list_registries(pod, registry)
        with RegistryClient(registry.url, timeout=20) as client:
            client.push_image(app, first, "v0")
        moves_on(baleen, pod)
        last = first
        for number, (end, image) in enumerate(zip(ENDS, others, strict=True), start=1):
            proxy.away = end.unechoed
            with RegistryClient(registry.url, timeout=20) as client:
                client.push_image(app, image, f"v{number}")
                client.delete_manifest(app, last.digest)
                client.push_image(f"{pod.name}/new-{number}", last, "v1")
            end.by(registry)
            ended.append(now(baleen))
            proxy.away = False
            registry.start()
            # The next process reports from beyond that end, and the watermark stays before the first one.
            eventually(lambda: has_reported(baleen, pod, ended[-1]), why=lambda: baleen.pod(pod))
            shown = baleen.pod(pod)
            dead = [source["instance_id"] for source in shown["processes"] if source["state"] == "dead"]
            assert len(dead) == number
            unexplained = [each for each in dead if f"process {each} has been dead" not in str(shown["waits_for"])]
            assert not unexplained, shown["waits_for"]
            assert not is_past(baleen, pod, ended[0])
            last = image
        # Not where the table and the bucket part now: a gap that is every pod's asks for a reconcile of this one, too.
        returned = {event["target"]["repository"] for event in proxy.accepted()}
        lost = [number for number, end in enumerate(ENDS, start=1) if end.unechoed]
        assert returned.isdisjoint(f"{pod.name}/new-{number}" for number in lost)

        an_hour_later(baleen, pod)
        retired = ["live"] + ["retired"] * len(ENDS)
        eventually(lambda: states(baleen, pod) == retired, why=lambda: baleen.pod(pod))
        jobs = baleen.api.get("/v1/jobs", params={"pod": pod.name}).json()["items"]
        (job,) = (job for job in jobs if job["progress"].get("processes_retired"))
        assert "a registry process died" in job["why"], jobs
        assert len(job["progress"]["processes_retired"]) == len(ENDS)
        moves_on(baleen, pod)
        baleen.agree()
    assert [baleen.holds(app, image.digest) for image in (first, *others)] == [False] * len(ENDS) + [True]


def has_reported(baleen: Baleen, pod: Pod, moment: dt.datetime) -> bool:
    """Whether the process that lives has reported beyond a moment."""
    marks = [source["watermark"] for source in baleen.pod(pod)["processes"] if source["state"] == "live"]
    return any(mark is not None and dt.datetime.fromisoformat(mark) > moment for mark in marks)


def an_hour_later(baleen: Baleen, pod: Pod) -> None:
    """Let all that has happened to the pod be an hour ago: what a dead process had begun has landed by then."""
    baleen.rows(
        """
        WITH p AS (SELECT id FROM pods WHERE name = %s),
        deaths AS (UPDATE processes o SET dead_since = dead_since - interval '1 hour' FROM p WHERE o.pod_id = p.id),
        probes AS (
            UPDATE probes o SET sent_at = sent_at - interval '1 hour', answered_at = answered_at - interval '1 hour'
            FROM p WHERE o.pod_id = p.id
        )
        UPDATE jobs o SET began_at = began_at - interval '1 hour', finished_at = finished_at - interval '1 hour'
        FROM p WHERE o.pod_id = p.id RETURNING o.id
        """,
        pod.name,
    )
