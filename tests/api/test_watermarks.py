"""How far pods have reported is shown for each process and each partition, and blocks garbage collection."""

import datetime as dt
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from coordinator.stack.supervisor import StackEndpoints
from tests.api.harness import Served, served, settings_for
from tests.support.tables import NOW, add_done_job, add_pod, add_process, ago, id_of, insert, value

URL, ADDRESS = "http://registry:5000", "10.0.0.7"
PARTITIONS = 2


@pytest.fixture(scope="module")
def alone(embedded_stack: StackEndpoints) -> Iterator[Served]:
    """An API with a database of its own: the status is of all its pods."""
    with served(settings_for(embedded_stack)) as api:
        for number in range(PARTITIONS):
            insert(api.db, "partition_progress", topic="registry.events", partition=number, next_offset=0)
        yield api


class Pods(NamedTuple):
    """Makes pods, processes and watermarks as the prober and the worker do. Times are ages in seconds."""

    api: Served

    def pod(self, name: str) -> None:
        add_done_job(self.api.db, add_pod(self.api.db, name, registries=[f"{URL}{len(name)}"]))

    def process(self, pod: str, instance: str, *ages: float | None) -> None:
        """A process whose watermark in each partition is so old; None where none is known."""
        process = add_process(self.api.db, id_of(pod), instance, echoed_at=NOW)
        for number, age in enumerate(ages):
            if age is not None:
                at = {"topic": "registry.events", "partition": number, "at": ago(dt.timedelta(seconds=age))}
                insert(self.api.db, "watermarks", process_id=process, **at)
        self.api.db.execute(
            "INSERT INTO endpoints (pod_id, url, address, process_id, answered_at, echoed_at)"
            " SELECT p.id, p.registries[1], %s, s.id, now(), now() FROM pods p JOIN processes s ON s.pod_id = p.id"
            " WHERE s.instance_id = %s ON CONFLICT DO NOTHING",
            (ADDRESS, instance),
        )

    def noted(self, instance: str, partition: int) -> dt.datetime:
        """The watermark of a process in a partition, as the table has it."""
        of_process = "process_id = (SELECT id FROM processes WHERE instance_id = %s)"
        statement = f"SELECT at FROM watermarks WHERE {of_process} AND partition = %s"
        noted: dt.datetime = value(self.api.db, statement, instance, partition)
        return noted

    def now(self) -> dt.datetime:
        now: dt.datetime = value(self.api.db, "SELECT clock_timestamp()")
        return now

    def show(self, name: str) -> Any:
        return self.api.get(f"/v1/pods/{name}").json()

    def status(self) -> Any:
        return self.api.get("/v1/status").json()


@pytest.fixture
def pods(alone: Served) -> Pods:
    alone.db.execute("DELETE FROM endpoints; DELETE FROM processes; DELETE FROM jobs; DELETE FROM pod_prefixes")
    alone.db.execute("DELETE FROM gaps; DELETE FROM probes; DELETE FROM pods")
    return Pods(alone)


def reasons(shown: list[str]) -> list[str]:
    """The reasons that are about watermarks and reconciles."""
    return [reason for reason in shown if "watermark:" in reason or "never reconciled" in reason]


def at(shown: str) -> dt.datetime:
    return dt.datetime.fromisoformat(shown)


def age(time: str) -> float:
    return (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(time)).total_seconds()


def test_the_least_of_all(pods: Pods) -> None:
    """A pod's watermark is the least of its processes and partitions, the status' the least of all pods."""
    assert pods.status()["watermark"] is None
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
    lag = dt.timedelta(seconds=pods.api.metric('baleen_watermark_lag_seconds{pod="one"}'))
    assert before <= pods.noted("p1", 0) + lag <= pods.now()
    assert pods.api.metric('baleen_processes{pod="one",state="live"}') == 2
    assert [pod["watermark"] is not None for pod in pods.api.pages("/v1/pods", limit=1)] == [True, True]


def test_unknown_is_not_known(pods: Pods) -> None:
    """If one partition of one process has no watermark, the pod and the status have none, and both say why."""
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
    assert pods.api.metric('baleen_watermark_lag_seconds{pod="other"}') == float("inf")


def test_never_reconciled(pods: Pods) -> None:
    """A pod that was never compared with storage blocks garbage collection, whatever else is known of it."""
    pods.pod("one")
    pods.process("one", "p1", 1, 1)
    assert pods.show("one")["reconciled_at"] is not None
    pods.api.db.execute("UPDATE jobs SET state = 'failed'")
    shown = pods.show("one")
    assert shown["reconciled_at"] is None
    (reason,) = reasons(shown["blocked_by"])
    assert "baleen pods reconcile one" in reason


def test_a_process_is_retired(pods: Pods) -> None:
    """An operator retires a process with a reason: it no longer counts for the watermark, and what it had not reported
    is a gap.
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
    """A registry's URL that another pod has is refused, however it is written, and so is one with credentials or a
    path.
    """
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
