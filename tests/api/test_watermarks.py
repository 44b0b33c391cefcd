"""How far pods have reported is shown for each process and each partition, and holds garbage collection."""

import datetime as dt
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from coordinator.stack.supervisor import StackEndpoints
from tests.api.harness import Served, served, settings_for

URL, ADDRESS = "http://registry:5000", "10.0.0.7"
PARTITIONS = 2


@pytest.fixture(scope="module")
def alone(embedded_stack: StackEndpoints) -> Iterator[Served]:
    """An API with a database of its own: the status is of all its pods."""
    with served(settings_for(embedded_stack)) as api:
        for number in range(PARTITIONS):
            api.db.execute(
                "INSERT INTO partition_progress (topic, partition, next_offset) VALUES ('registry.events', %s, 0)",
                (number,),
            )
        yield api


class Pods(NamedTuple):
    """Makes pods, processes and watermarks as the prober and the worker do. Times are ages in seconds."""

    api: Served

    def pod(self, name: str) -> None:
        self.api.db.execute(
            "WITH p AS (INSERT INTO pods (name, registries, event_token_sha256) VALUES (%s, %s, %s) RETURNING id)"
            " INSERT INTO pod_prefixes (prefix, pod_id) SELECT %s, id FROM p",
            (name, [f"{URL}{len(name)}"], b"x" * 32, name),
        )
        self.api.db.execute(
            "INSERT INTO jobs (kind, pod_id, why, state, began_at, finished_at)"
            " SELECT 'reconcile', id, 'a test', 'done', now(), now() FROM pods WHERE name = %s",
            (name,),
        )

    def process(self, pod: str, instance: str, *ages: float | None) -> None:
        """A process whose watermark in each partition is so old; None where none is known."""
        self.api.db.execute(
            "INSERT INTO processes (pod_id, instance_id, echoed_at) SELECT id, %s, now() FROM pods WHERE name = %s",
            (instance, pod),
        )
        for number, age in enumerate(ages):
            if age is not None:
                self.api.db.execute(
                    "INSERT INTO watermarks (process_id, topic, partition, at)"
                    " SELECT id, 'registry.events', %s, now() - %s FROM processes WHERE instance_id = %s",
                    (number, dt.timedelta(seconds=age), instance),
                )
        self.api.db.execute(
            "INSERT INTO endpoints (pod_id, url, address, process_id, answered_at, echoed_at)"
            " SELECT p.id, p.registries[1], %s, s.id, now(), now() FROM pods p JOIN processes s ON s.pod_id = p.id"
            " WHERE s.instance_id = %s ON CONFLICT DO NOTHING",
            (ADDRESS, instance),
        )

    def noted(self, instance: str, partition: int) -> dt.datetime:
        """The watermark of a process in a partition, as the table has it."""
        row = self.api.db.execute(
            "SELECT w.at FROM watermarks w JOIN processes s ON s.id = w.process_id"
            " WHERE s.instance_id = %s AND w.partition = %s",
            (instance, partition),
        ).fetchone()
        assert row is not None
        return row[0]

    def now(self) -> dt.datetime:
        row = self.api.db.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        return row[0]

    def show(self, name: str) -> Any:
        return self.api.get(f"/v1/pods/{name}").json()

    def status(self) -> Any:
        return self.api.get("/v1/status").json()

    def metric(self, name: str) -> float:
        lines = self.api.get("/metrics", None).text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture
def pods(alone: Served) -> Pods:
    alone.db.execute("DELETE FROM endpoints; DELETE FROM processes; DELETE FROM jobs; DELETE FROM pod_prefixes")
    alone.db.execute("DELETE FROM gaps; DELETE FROM probes; DELETE FROM pods")
    return Pods(alone)


def reasons(shown: list[str]) -> list[str]:
    """Those that are of watermarks and reconciles."""
    return [reason for reason in shown if "watermark:" in reason or "never reconciled" in reason]


def at(shown: str) -> dt.datetime:
    return dt.datetime.fromisoformat(shown)


def age(time: str) -> float:
    return (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(time)).total_seconds()


def test_no_pods(pods: Pods) -> None:
    """Where there is no pod, no watermark is known."""
    assert pods.status()["watermark"] is None


def test_the_least_of_all(pods: Pods) -> None:
    """A pod's watermark is the least of its processes and partitions, the status' the least of all pods."""
    pods.pod("one")
    pods.process("one", "p1", 20, 5)
    pods.process("one", "p2", 1, 10)
    pods.pod("other")
    pods.process("other", "p3", 30, 2)
    shown = pods.show("one")
    assert at(shown["watermark"]) == pods.noted("p1", 0)
    assert {process["instance_id"]: process["state"] for process in shown["processes"]} == {"p1": "live", "p2": "live"}
    first = next(process for process in shown["processes"] if process["instance_id"] == "p1")
    assert first["watermark"] == shown["watermark"] == first["partitions"]["0"]
    assert at(first["partitions"]["1"]) == pods.noted("p1", 1)
    assert (shown["waits_for"], reasons(shown["blocked_by"])) == ([], [])
    assert shown["endpoints"][0]["address"] == ADDRESS
    status = pods.status()
    assert status["watermark"] == pods.show("other")["watermark"]
    assert at(status["watermark"]) == pods.noted("p3", 0)
    assert reasons(status["gc"]["blocked_by"]) == []
    before = pods.now()
    lag = dt.timedelta(seconds=pods.metric('baleen_watermark_lag_seconds{pod="one"}'))
    assert before <= pods.noted("p1", 0) + lag <= pods.now()
    assert pods.metric('baleen_processes{pod="one",state="live"}') == 2
    assert [pod["watermark"] is not None for pod in pods.api.pages("/v1/pods", limit=1)] == [True, True]


def test_unknown_is_not_known(pods: Pods) -> None:
    """Where one partition of one process has no watermark, the pod has none, nor has the status; both say why."""
    pods.pod("one")
    pods.process("one", "p1", 1, 1)
    pods.pod("other")
    pods.process("other", "p2", 1, None)
    shown = pods.show("other")
    assert shown["watermark"] is None
    assert shown["processes"][0]["watermark"] is None
    assert "p2" in shown["waits_for"][0]
    assert reasons(shown["blocked_by"]) == [f"watermark: {shown['waits_for'][0]}"]
    status = pods.status()
    assert status["watermark"] is None
    assert reasons(status["gc"]["blocked_by"]) == [f"pod other: watermark: {shown['waits_for'][0]}"]
    assert pods.metric('baleen_watermark_lag_seconds{pod="other"}') == float("inf")


def test_never_reconciled(pods: Pods) -> None:
    """A pod that was never compared with its storage holds garbage collection, whatever else is known of it."""
    pods.pod("one")
    pods.process("one", "p1", 1, 1)
    assert pods.show("one")["reconciled_at"] is not None
    pods.api.db.execute("UPDATE jobs SET state = 'failed'")
    shown = pods.show("one")
    assert shown["reconciled_at"] is None
    (reason,) = reasons(shown["blocked_by"])
    assert "baleen pods reconcile one" in reason


def test_a_process_is_retired(pods: Pods) -> None:
    """Who operates may let a process count no more, with a reason; the watermark is then that of the others, and what
    the process had not told is a gap.
    """
    pods.pod("one")
    pods.process("one", "live", 1, 1)
    pods.process("one", "gone", 500, 500)
    assert age(pods.show("one")["watermark"]) >= 500
    path = "/v1/pods/one/processes/gone/retire"
    assert pods.api.ask("POST", path, json={}).status_code == 400
    assert pods.api.ask("POST", path, json={"why": ""}).status_code == 400
    shown = pods.api.ask("POST", path, json={"why": "its machine is gone"})
    assert shown.status_code == 200, shown.text
    assert age(shown.json()["watermark"]) < 500
    assert shown.json()["gaps"]["open"] == 1
    gone = next(process for process in shown.json()["processes"] if process["instance_id"] == "gone")
    assert (gone["state"], gone["retired_why"]) == ("retired", "its machine is gone")
    assert pods.api.ask("POST", path, json={"why": "again"}).status_code == 404
    assert pods.api.ask("POST", "/v1/pods/none/processes/gone/retire", json={"why": "no pod"}).status_code == 404


def test_registries_are_of_one_pod(pods: Pods) -> None:
    """A URL that another pod has is refused, however it is written; one that says who asks is refused too."""
    assert add(pods, "one", "http://Registry:5000/", "http://registry:5000") == 201
    assert pods.show("one")["registries"] == ["http://registry:5000"]
    assert add(pods, "two", "http://registry:5000") == 409
    assert add(pods, "two", "https://registry:443/", "http://[2001:DB8::1]:5000") == 201
    assert pods.show("two")["registries"] == ["https://registry", "http://[2001:db8::1]:5000"]
    assert put(pods, "two", "http://registry:5000") == 409
    assert put(pods, "one", "https://registry") == 409
    assert put(pods, "one", "http://registry:5000", "http://registry:5001") == 200
    assert put(pods, "none", "http://registry:5009") == 404
    for wrong in (
        "http://user:secret@registry:5000",
        "http://registry:5000/v2/",
        "http://registry:0",
        "http://registry:65536",
        "http://registry?x",
        "http://reg istry",
        "ftp://registry",
        "http://",
    ):
        assert put(pods, "one", wrong) == 400, wrong
    pods.process("one", "p1", 1, 1)
    pods.api.db.execute(
        "INSERT INTO probes (nonce, pod_id, url, address) SELECT gen_random_uuid(), id, '', '' FROM pods"
    )
    for pod in ("one", "two"):
        assert pods.api.ask("DELETE", f"/v1/pods/{pod}").status_code == 204


def add(pods: Pods, name: str, *registries: str) -> int:
    body = {"name": name, "prefixes": [name], "registries": registries}
    return pods.api.ask("POST", "/v1/pods", json=body).status_code


def put(pods: Pods, name: str, *registries: str) -> int:
    return pods.api.ask("PUT", f"/v1/pods/{name}/registries", json={"registries": registries}).status_code
