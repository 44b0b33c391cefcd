"""A dead letter holds garbage collection for its pod until what it came to is applied, or it was given up."""

import datetime as dt
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.stack.supervisor import StackEndpoints
from schemas.records import RECORD_CONTENT_TYPE
from tests.api.harness import Served, dead_letter, served, settings_for, until
from tests.api.test_watermarks import Pods

ENVELOPE = "application/vnd.docker.distribution.events.v1+json"


@pytest.fixture(scope="module")
def alone(embedded_stack: StackEndpoints) -> Iterator[Served]:
    """An API with a database of its own, and one partition that nobody writes to."""
    with served(settings_for(embedded_stack)) as api:
        api.db.execute(
            "INSERT INTO partition_progress (topic, partition, next_offset) VALUES ('registry.events', 0, 0)"
        )
        yield api


@pytest.fixture
def pods(alone: Served) -> Pods:
    """Nothing is open but what a test opens."""
    alone.db.execute("DELETE FROM dead_letters; DELETE FROM endpoints; DELETE FROM sources; DELETE FROM findings")
    alone.db.execute("DELETE FROM gaps; DELETE FROM jobs; DELETE FROM pod_prefixes; DELETE FROM pods")
    return Pods(alone)


def letters_hold(pods: Pods, pod: str) -> list[str]:
    return [reason for reason in pods.told(pod)["held_by"] if "dead letter" in reason]


def report(pods: Pods, instance: str) -> None:
    """The process has reported everything up to now."""
    pods.api.db.execute(
        "UPDATE watermarks w SET at = clock_timestamp() FROM sources s WHERE s.id = w.source_id AND s.instance_id = %s",
        (instance,),
    )
    pods.api.db.execute("UPDATE endpoints SET echoed_at = clock_timestamp(), resolved_at = clock_timestamp()")


def body(repository: str) -> str:
    target = {"repository": repository, "digest": f"sha256:{'a' * 64}", "mediaType": "application/octet-stream"}
    event = {"id": "e1", "timestamp": "2026-01-01T00:00:00Z", "action": "push", "target": target}
    return json.dumps({"events": [event]})


def settle(pods: Pods, number: int, how: str, **values: Any) -> int:
    return pods.api.ask("POST", f"/v1/dead-letters/{number}/{how}", **values).status_code


def lock_waits(pods: Pods) -> int:
    row = pods.api.db.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    assert row is not None
    return int(row[0])


def test_it_holds_its_own_pod_only(pods: Pods) -> None:
    """An open letter holds the pod that sent it, is told by the status, and holds no other pod."""
    for name in ("one", "other"):
        pods.pod(name)
        pods.source(name, f"p-{name}", 0)
    dead_letter(pods.api.db, "one", "{}", "text/plain")
    assert letters_hold(pods, "one") == ["1 open dead letter: retry or discard with `baleen dead-letters`"]
    assert letters_hold(pods, "other") == []
    held = [reason for reason in pods.status()["gc"]["held_by"] if "dead letter" in reason]
    assert [reason.partition(":")[0] for reason in held] == ["pod one"]


def test_a_retry_that_is_refused_settles_nothing(pods: Pods) -> None:
    """While it still cannot be understood, a retry leaves the letter open, and it holds as before."""
    pods.pod("one")
    pods.source("one", "p1", 0)
    for payload, content_type in ((body("elsewhere/app"), ENVELOPE), ("no json", ENVELOPE), ("{}", "text/plain")):
        number = dead_letter(pods.api.db, "one", payload, content_type)
        assert settle(pods, number, "retry") == 409
    report(pods, "p1")
    assert letters_hold(pods, "one")[0].startswith("3 open dead letters")


def test_a_retry_holds_until_it_is_applied(pods: Pods) -> None:
    """Kafka's word for the events of a retry is not enough: the watermark of the pod has to pass it (scenario 25).

    They stand in the log behind all that the watermark is of, so that garbage collection could run between the two.
    """
    pods.pod("one")
    pods.source("one", "p1", 0)
    number = dead_letter(pods.api.db, "one", body("one/app"), ENVELOPE)
    report(pods, "p1")
    began = dt.datetime.now(dt.UTC)
    assert settle(pods, number, "retry") == 200
    assert [reason.partition(":")[0] for reason in letters_hold(pods, "one")] == [
        "dead letter retried and perhaps not applied yet"
    ]
    settled_at = dt.datetime.fromisoformat(pods.api.get(f"/v1/dead-letters/{number}").json()["settled_at"])
    assert settled_at > began - dt.timedelta(seconds=1)
    report(pods, "p1")
    assert letters_hold(pods, "one") == []


def test_the_time_of_a_retry_is_after_its_acknowledgement(pods: Pods) -> None:
    """A probe that was sent while a retry waited for Kafka proves nothing of it: its time is taken after the wait."""
    pods.pod("one")
    pods.source("one", "p1", 0)
    number = dead_letter(pods.api.db, "one", body("one/app"), ENVELOPE)
    with pods.api.db.transaction():
        # A lock stands for a slow broker: the retry has begun its transaction, and has not published yet.
        pods.api.db.execute("LOCK TABLE pod_prefixes IN ACCESS EXCLUSIVE MODE")
        waiting = threading.Thread(target=settle, args=(pods, number, "retry"))
        waiting.start()
        until("the retry waits", lambda: lock_waits(pods))
        row = pods.api.db.execute("SELECT clock_timestamp()").fetchone()
    waiting.join(20)
    assert row is not None
    settled_at = pods.api.get(f"/v1/dead-letters/{number}").json()["settled_at"]
    assert dt.datetime.fromisoformat(settled_at) > row[0]


def test_a_discard_demands_a_reason(pods: Pods) -> None:
    """Without a reason nothing is discarded, and it holds; with one it is settled at once, and the reason is kept."""
    pods.pod("one")
    pods.source("one", "p1", 0)
    number = dead_letter(pods.api.db, "one", "{}", "text/plain")
    for why in ("", "   ", "x" * 1001, "nul\0"):
        assert settle(pods, number, "discard", json={"why": why}) == 400
    assert settle(pods, number, "discard", json={}) == 400
    assert len(letters_hold(pods, "one")) == 1
    assert settle(pods, number, "discard", json={"why": " it is of a test "}) == 200
    assert letters_hold(pods, "one") == []
    told = pods.api.get(f"/v1/dead-letters/{number}").json()
    assert (told["settlement"], told["settled_why"]) == ("discarded", "it is of a test")


@pytest.mark.parametrize(("pod", "gaps"), [("one", {"one"}), ("", {"one", "other"}), ("gone", set())])
def test_what_is_given_up_is_a_gap(pods: Pods, pod: str, gaps: set[str]) -> None:
    """A letter that is discarded is a gap of its pod, and of every pod if nobody knows whose it was.

    Not of one whose links Baleen cannot look at: there the operator's word stands.
    """
    for name in ("one", "other", "relaying"):
        pods.pod(name)
    pods.api.db.execute("UPDATE pods SET linker = 'relay' WHERE name = 'relaying'")
    number = dead_letter(pods.api.db, pod, "no record", RECORD_CONTENT_TYPE)
    assert settle(pods, number, "retry") == 409
    assert settle(pods, number, "discard", json={"why": "it is of a test"}) == 200
    assert {name for name in ("one", "other", "relaying") if pods.told(name)["gaps"]["open"]} == gaps
