"""A dead letter holds garbage collection for its pod until what it came to is applied, or it was given up."""

import datetime as dt
import json
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from coordinator.compose import store as compose_store
from coordinator.domain.names import RepositoryName
from coordinator.pods.view import DEAD_LETTERS_END
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.layout import repository_prefix
from schemas.records import RECORD_CONTENT_TYPE
from tests.api.harness import Served, dead_letter, served, settings_for
from tests.api.test_watermarks import Pods
from tests.support.wait import eventually

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
    alone.db.execute("DELETE FROM dead_letters; DELETE FROM endpoints; DELETE FROM processes; DELETE FROM findings")
    alone.db.execute("DELETE FROM gaps; DELETE FROM jobs; DELETE FROM pod_prefixes; DELETE FROM pods")
    return Pods(alone)


def dead_letters_block(pods: Pods, pod: str) -> list[str]:
    return [reason for reason in pods.show(pod)["blocked_by"] if "dead letter" in reason]


def report(pods: Pods, instance: str) -> None:
    """The process has reported everything up to now."""
    pods.api.db.execute(
        "UPDATE watermarks w SET at = clock_timestamp() FROM processes s"
        " WHERE s.id = w.process_id AND s.instance_id = %s",
        (instance,),
    )
    pods.api.db.execute("UPDATE endpoints SET echoed_at = clock_timestamp(), resolved_at = clock_timestamp()")


def body(repository: str) -> str:
    target = {"repository": repository, "digest": f"sha256:{'a' * 64}", "mediaType": "application/octet-stream"}
    event = {"id": "e1", "timestamp": "2026-01-01T00:00:00Z", "action": "push", "target": target}
    return json.dumps({"events": [event]})


def resolve(pods: Pods, number: int, how: str, **values: Any) -> int:
    return pods.api.ask("POST", f"/v1/dead-letters/{number}/{how}", **values).status_code


def lock_waits(pods: Pods) -> int:
    row = pods.api.db.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    assert row is not None
    return int(row[0])


def test_it_holds_its_own_pod_only(pods: Pods) -> None:
    """An open letter holds the pod that sent it, is told by the status, and holds no other pod."""
    for name in ("one", "other"):
        pods.pod(name)
        pods.process(name, f"p-{name}", 0)
    dead_letter(pods.api.db, "one", "{}", "text/plain")
    assert dead_letters_block(pods, "one") == [f"1 open dead letter: {DEAD_LETTERS_END}"]
    assert dead_letters_block(pods, "other") == []
    held = [reason for reason in pods.status()["gc"]["blocked_by"] if "dead letter" in reason]
    assert [reason.partition(":")[0] for reason in held] == ["pod one"]


def test_a_retry_that_is_refused_resolves_nothing(pods: Pods) -> None:
    """While it still cannot be understood, a retry leaves the letter open, and it holds as before."""
    pods.pod("one")
    pods.process("one", "p1", 0)
    for payload, content_type in ((body("elsewhere/app"), ENVELOPE), ("no json", ENVELOPE), ("{}", "text/plain")):
        number = dead_letter(pods.api.db, "one", payload, content_type)
        assert resolve(pods, number, "retry") == 409
    report(pods, "p1")
    assert dead_letters_block(pods, "one")[0].startswith("3 open dead letters")


def test_a_retry_holds_until_it_is_applied(pods: Pods) -> None:
    """Kafka's word for the events of a retry is not enough: the watermark of the pod has to pass it (scenario 25).

    They stand in the log behind all that the watermark is of, so that garbage collection could run between the two.
    """
    pods.pod("one")
    pods.process("one", "p1", 0)
    number = dead_letter(pods.api.db, "one", body("one/app"), ENVELOPE)
    report(pods, "p1")
    began = dt.datetime.now(dt.UTC)
    assert resolve(pods, number, "retry") == 200
    assert [reason.partition(":")[0] for reason in dead_letters_block(pods, "one")] == [
        "dead letter retried and perhaps not applied yet"
    ]
    resolved_at = dt.datetime.fromisoformat(pods.api.get(f"/v1/dead-letters/{number}").json()["resolved_at"])
    assert resolved_at > began - dt.timedelta(seconds=1)
    report(pods, "p1")
    assert dead_letters_block(pods, "one") == []


def test_the_time_of_a_retry_is_after_its_acknowledgement(pods: Pods) -> None:
    """A probe that was sent while a retry waited for Kafka proves nothing of it: its time is taken after the wait."""
    pods.pod("one")
    pods.process("one", "p1", 0)
    number = dead_letter(pods.api.db, "one", body("one/app"), ENVELOPE)
    with pods.api.db.transaction():
        # A lock stands for a slow broker: the retry has begun its transaction, and has not published yet.
        pods.api.db.execute("LOCK TABLE pod_prefixes IN ACCESS EXCLUSIVE MODE")
        waiting = threading.Thread(target=resolve, args=(pods, number, "retry"))
        waiting.start()
        eventually(lambda: lock_waits(pods), "the retry waits")
        row = pods.api.db.execute("SELECT clock_timestamp()").fetchone()
    waiting.join(20)
    assert row is not None
    resolved_at = pods.api.get(f"/v1/dead-letters/{number}").json()["resolved_at"]
    assert dt.datetime.fromisoformat(resolved_at) > row[0]


def test_a_discard_demands_a_reason(pods: Pods) -> None:
    """Without a reason nothing is discarded, and it holds; with one it is resolved at once, and the reason is kept."""
    pods.pod("one")
    pods.process("one", "p1", 0)
    number = dead_letter(pods.api.db, "one", "{}", "text/plain")
    for why in ("", "   ", "x" * 1001, "nul\0"):
        assert resolve(pods, number, "discard", json={"why": why}) == 400
    assert resolve(pods, number, "discard", json={}) == 400
    assert len(dead_letters_block(pods, "one")) == 1
    assert resolve(pods, number, "discard", json={"why": " it is of a test "}) == 200
    assert dead_letters_block(pods, "one") == []
    shown = pods.api.get(f"/v1/dead-letters/{number}").json()
    assert (shown["resolution"], shown["resolved_why"]) == ("discarded", "it is of a test")


ALL = {"one", "other", "relaying"}


def put(pods: Pods, repository: str) -> None:
    """A link of a repository in the bucket, and one of another registry, so that the root is known to be right."""
    store = compose_store.object_store(pods.api.settings)
    for name in (repository, "any-registry/app"):
        store.put(f"{repository_prefix(RepositoryName(name))}_manifests/tags/v1/current/link", b"x")


def remove(pods: Pods, repository: str) -> None:
    store = compose_store.object_store(pods.api.settings)
    for entry in list(store.walk(repository_prefix(RepositoryName(repository)))):
        store.delete(entry.key)


def three(pods: Pods) -> None:
    for name in ALL:
        pods.pod(name)
    pods.api.db.execute("UPDATE pods SET kind = 'relay' WHERE name = 'relaying'")


def gaps_of(pods: Pods) -> set[str]:
    return {name for name in ALL if pods.show(name)["gaps"]["open"]}


@pytest.mark.parametrize(
    ("pod", "payload", "content_type", "gaps"),
    [
        ("one", body("one/app"), ENVELOPE, {"one"}),
        ("one", body("other/app"), ENVELOPE, {"other"}),
        ("gone", body("other/app"), ENVELOPE, {"other"}),
        ("relaying", body("relaying/app"), ENVELOPE, {"relaying"}),
        # What it was about is not known: a registry may have written to any pod whose links are in the bucket.
        ("one", "no record", RECORD_CONTENT_TYPE, {"one", "other"}),
        ("gone", "no record", RECORD_CONTENT_TYPE, {"one", "other"}),
        ("relaying", "no record", RECORD_CONTENT_TYPE, ALL),
        ("", "no record", RECORD_CONTENT_TYPE, ALL),
    ],
)
def test_what_is_discarded_is_a_gap(pods: Pods, pod: str, payload: str, content_type: str, gaps: set[str]) -> None:
    """A letter that is discarded is a gap of the pod that owns what it was about, and of each if that is not known."""
    three(pods)
    put(pods, "one/app")
    number = dead_letter(pods.api.db, pod, payload, content_type, repositories=None)
    assert resolve(pods, number, "discard", json={"why": "it is of a test"}) == 200
    assert gaps_of(pods) == gaps
    again = dead_letter(pods.api.db, pod, payload, content_type)
    assert resolve(pods, again, "discard", json={"why": "it is of a test"}) == 200
    assert {pods.show(name)["gaps"]["open"] for name in gaps} == {1}


@pytest.mark.parametrize("sender", ["one", "gone", ""])
def test_what_storage_has_is_not_discarded(pods: Pods, sender: str) -> None:
    """Attempts 2 and 6: while storage has a repository that no pod owns, no letter about it is discarded, whoever sent
    it and for whatever reason; once storage has nothing of it, or a pod owns it, it is.
    """
    three(pods)
    put(pods, "elsewhere/app")
    for reason in ("not-owned", "malformed", "unappliable"):
        number = dead_letter(pods.api.db, sender, body("elsewhere/app"), ENVELOPE, reason=reason)
        answer = pods.api.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"})
        assert answer.status_code == 409
        for words in ("elsewhere/app", "baleen pods add", "retry", "remove"):
            assert words in answer.json()["detail"]
    assert gaps_of(pods) == set()
    remove(pods, "elsewhere/app")
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 200
    assert gaps_of(pods) == set()
    put(pods, "elsewhere/app")
    pods.api.db.execute("INSERT INTO pod_prefixes SELECT 'elsewhere', id FROM pods WHERE name = 'other'")
    assert resolve(pods, number - 1, "discard", json={"why": "a test"}) == 200
    assert gaps_of(pods) == {"other"}
    remove(pods, "elsewhere/app")


def test_below_another_repository(pods: Pods) -> None:
    """What is stored below a repository's name, of other repositories, does not keep letters about it."""
    three(pods)
    put(pods, "elsewhere/app/deep")
    number = dead_letter(pods.api.db, "one", body("elsewhere/app"), ENVELOPE)
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 200
    remove(pods, "elsewhere/app/deep")


def test_links_below_a_pod_that_keeps_its_own_elsewhere(pods: Pods) -> None:
    """Nobody lists what another registry has written below the prefix of a pod of kind `relay`."""
    three(pods)
    put(pods, "relaying/app")
    number = dead_letter(pods.api.db, "one", body("relaying/app"), ENVELOPE)
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 409
    remove(pods, "relaying/app")
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 200
    assert gaps_of(pods) == {"relaying"}


def test_a_root_without_any_registry(pods: Pods, alone: Served) -> None:
    """Where storage has nothing at all, what is absent proves nothing."""
    three(pods)
    number = dead_letter(alone.db, "one", body("elsewhere/app"), ENVELOPE)
    with served(msgspec.structs.replace(alone.settings, s3_root="wrong-root")) as lost:
        answer = lost.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"})
    assert (answer.status_code, "BALEEN_S3_BUCKET" in answer.json()["detail"]) == (409, True)


def test_a_store_that_does_not_answer(pods: Pods, alone: Served) -> None:
    """While storage does not answer nothing is discarded that it would have to be asked about; all else is."""
    three(pods)
    unowned = dead_letter(alone.db, "one", body("elsewhere/app"), ENVELOPE)
    owned = dead_letter(alone.db, "one", body("one/app"), ENVELOPE)
    settings = msgspec.structs.replace(alone.settings, s3_endpoint_url="http://127.0.0.1:9")
    with served(settings) as away:
        for number, status in ((unowned, 503), (owned, 200)):
            asked = away.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"})
            assert asked.status_code == status, asked.text
    assert alone.get(f"/v1/dead-letters/{unowned}").json()["resolved_at"] is None


def test_orphans_ask_to_register_the_pod(pods: Pods) -> None:
    """Attempt 6: no message about letters of a pod that is not registered tells an operator to discard them."""
    pods.pod("one")
    number = dead_letter(pods.api.db, "gone", body("gone/app"), ENVELOPE)
    (held,) = [reason for reason in pods.status()["gc"]["blocked_by"] if "dead letter" in reason]
    refused = pods.api.ask("POST", f"/v1/dead-letters/{number}/retry").json()["detail"]
    for message in (held, refused):
        assert message.index("baleen pods add") < message.index("retry")
    assert "discard" not in held
    assert "discard" not in DEAD_LETTERS_END


def test_dead_letters_beyond_the_limit_are_an_alarm(pods: Pods) -> None:
    """Attempt 20: what is not kept is counted in the status, the metrics and the pod, with what to do."""
    pods.pod("one")
    pods.api.db.execute(
        "INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, dead_letters)"
        " SELECT id, '', -1, 'dead-letters-over-limit', 0, 1234 FROM pods WHERE name = 'one'"
    )
    assert pods.status()["dead_letters_not_kept"] == 1234
    assert pods.show("one")["dead_letters_not_kept"] == 1234
    assert dead_letters_block(pods, "one")[0].startswith("1234 dead letters beyond the limit of the pod: ")
    assert 'baleen_open{what="dead_letters_not_kept"} 1234.0' in pods.api.get("/metrics").text
