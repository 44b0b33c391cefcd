"""An open dead letter blocks garbage collection for its pod until its events are applied, or it is discarded."""

import datetime as dt
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from coordinator.compose import store as compose_store
from coordinator.domain.names import RepositoryName
from coordinator.pods.view import DEAD_LETTERS_REMEDY
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.layout import repository_prefix
from schemas.records import RECORD_CONTENT_TYPE
from tests.api.harness import Served, dead_letter, envelope, served, settings_for
from tests.api.test_watermarks import Pods
from tests.support.tables import add_gap, id_of, insert, value
from tests.support.wait import eventually

ENVELOPE = "application/vnd.docker.distribution.events.v1+json"


@pytest.fixture(scope="module")
def alone(embedded_stack: StackEndpoints) -> Iterator[Served]:
    """An API with a database of its own, and one partition that nobody writes to."""
    with served(settings_for(embedded_stack)) as api:
        insert(api.db, "partition_progress", topic="registry.events", partition=0, next_offset=0)
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


def resolve(pods: Pods, number: int, how: str, **values: Any) -> int:
    return pods.api.ask("POST", f"/v1/dead-letters/{number}/{how}", **values).status_code


def test_it_holds_its_own_pod_only(pods: Pods) -> None:
    """An open dead letter blocks GC for the pod that sent it, is shown by the status, and blocks no other pod."""
    for name in ("one", "other"):
        pods.pod(name)
        pods.process(name, f"p-{name}", 0)
    dead_letter(pods.api.db, "one", "{}", "text/plain")
    assert dead_letters_block(pods, "one") == [f"1 open dead letter: {DEAD_LETTERS_REMEDY}"]
    assert dead_letters_block(pods, "other") == []
    held = [reason for reason in pods.status()["gc"]["blocked_by"] if "dead letter" in reason]
    assert [reason.partition(":")[0] for reason in held] == ["pod one"]


def test_a_retry_that_is_refused_resolves_nothing(pods: Pods) -> None:
    """A retry that is still not understood leaves the dead letter open, and it blocks GC as before."""
    pods.pod("one")
    pods.process("one", "p1", 0)
    for payload, content_type in ((envelope("elsewhere/app"), ENVELOPE), ("no json", ENVELOPE), ("{}", "text/plain")):
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
    number = dead_letter(pods.api.db, "one", envelope("one/app"), ENVELOPE)
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
    """A retry is resolved after Kafka's acknowledgement, since a probe from before that proves nothing of it."""
    pods.pod("one")
    pods.process("one", "p1", 0)
    number = dead_letter(pods.api.db, "one", envelope("one/app"), ENVELOPE)
    with pods.api.db.transaction():
        # A lock stands for a slow broker: the retry has begun its transaction, and has not published yet.
        pods.api.db.execute("LOCK TABLE pod_prefixes IN ACCESS EXCLUSIVE MODE")
        waiting = threading.Thread(target=resolve, args=(pods, number, "retry"))
        waiting.start()
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        eventually(lambda: value(pods.api.db, waits), "the retry waits")
        before = pods.now()
    waiting.join(20)
    resolved_at = pods.api.get(f"/v1/dead-letters/{number}").json()["resolved_at"]
    assert dt.datetime.fromisoformat(resolved_at) > before


def test_a_discard_demands_a_reason(pods: Pods) -> None:
    """A discard needs a reason, which is kept; with one it resolves the dead letter at once, and only once."""
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
    assert resolve(pods, number, "discard", json={"why": "again"}) == 409


ALL = {"one", "other", "relaying"}


def put(pods: Pods, repository: str) -> None:
    """A link of a repository in the bucket, and one of another registry, so that the root is known to be right."""
    store = compose_store.make_object_store(pods.api.settings)
    for name in (repository, "any-registry/app"):
        store.put(f"{repository_prefix(RepositoryName(name))}_manifests/tags/v1/current/link", b"x")


def remove(pods: Pods, repository: str) -> None:
    store = compose_store.make_object_store(pods.api.settings)
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
        ("one", envelope("one/app"), ENVELOPE, {"one"}),
        ("one", envelope("other/app"), ENVELOPE, {"other"}),
        ("gone", envelope("other/app"), ENVELOPE, {"other"}),
        ("relaying", envelope("relaying/app"), ENVELOPE, {"relaying"}),
        # What it was about is not known: a registry may have written to any pod whose links are in the bucket.
        ("one", "no record", RECORD_CONTENT_TYPE, {"one", "other"}),
        ("gone", "no record", RECORD_CONTENT_TYPE, {"one", "other"}),
        ("relaying", "no record", RECORD_CONTENT_TYPE, ALL),
        ("", "no record", RECORD_CONTENT_TYPE, ALL),
    ],
)
def test_what_is_discarded_is_a_gap(pods: Pods, pod: str, payload: str, content_type: str, gaps: set[str]) -> None:
    """A discarded dead letter is a gap of the pod that owns its repository, and of every pod if that is not known."""
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
    """Attempts 2 and 6: a dead letter about a repository that storage has and no pod owns is not discarded, whatever
    its sender and reason.
    """
    three(pods)
    put(pods, "elsewhere/app")
    for reason in ("not-owned", "malformed", "unappliable"):
        number = dead_letter(pods.api.db, sender, envelope("elsewhere/app"), ENVELOPE, reason=reason)
        answer = pods.api.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"})
        assert answer.status_code == 409
        for words in ("elsewhere/app", "baleen pods add", "retry", "remove"):
            assert words in answer.json()["detail"]
    assert gaps_of(pods) == set()
    remove(pods, "elsewhere/app")
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 200
    assert gaps_of(pods) == set()
    put(pods, "elsewhere/app")
    insert(pods.api.db, "pod_prefixes", prefix="elsewhere", pod_id=id_of("other"))
    assert resolve(pods, number - 1, "discard", json={"why": "a test"}) == 200
    assert gaps_of(pods) == {"other"}
    remove(pods, "elsewhere/app")


def test_below_another_repository(pods: Pods) -> None:
    """Repositories that are stored below a repository's name do not prevent the discard of its dead letters."""
    three(pods)
    put(pods, "elsewhere/app/deep")
    number = dead_letter(pods.api.db, "one", envelope("elsewhere/app"), ENVELOPE)
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 200
    remove(pods, "elsewhere/app/deep")


def test_links_below_a_pod_that_keeps_its_own_elsewhere(pods: Pods) -> None:
    """A dead letter about a repository of a pod of kind `relay` is not discarded while storage has links of it."""
    three(pods)
    put(pods, "relaying/app")
    number = dead_letter(pods.api.db, "one", envelope("relaying/app"), ENVELOPE)
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 409
    remove(pods, "relaying/app")
    assert resolve(pods, number, "discard", json={"why": "a test"}) == 200
    assert gaps_of(pods) == {"relaying"}


def test_a_root_without_any_registry(pods: Pods, alone: Served) -> None:
    """If storage has nothing at all, nothing is discarded: the root may be the wrong one."""
    three(pods)
    number = dead_letter(alone.db, "one", envelope("elsewhere/app"), ENVELOPE)
    with served(msgspec.structs.replace(alone.settings, s3_root="wrong-root")) as lost:
        answer = lost.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"})
    assert (answer.status_code, "BALEEN_S3_BUCKET" in answer.json()["detail"]) == (409, True)


def test_a_store_that_does_not_answer(pods: Pods, alone: Served) -> None:
    """While storage does not answer, only dead letters that need no look at storage are discarded."""
    three(pods)
    unowned = dead_letter(alone.db, "one", envelope("elsewhere/app"), ENVELOPE)
    owned = dead_letter(alone.db, "one", envelope("one/app"), ENVELOPE)
    settings = msgspec.structs.replace(alone.settings, s3_endpoint_url="http://127.0.0.1:9")
    with served(settings) as away:
        for number, status in ((unowned, 503), (owned, 200)):
            asked = away.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"})
            assert asked.status_code == status, asked.text
    assert alone.get(f"/v1/dead-letters/{unowned}").json()["resolved_at"] is None


def test_orphans_ask_to_register_the_pod(pods: Pods) -> None:
    """Attempt 6: messages about dead letters of an unregistered pod ask to register it, never to discard them."""
    pods.pod("one")
    number = dead_letter(pods.api.db, "gone", envelope("gone/app"), ENVELOPE)
    (held,) = [reason for reason in pods.status()["gc"]["blocked_by"] if "dead letter" in reason]
    refused = pods.api.ask("POST", f"/v1/dead-letters/{number}/retry").json()["detail"]
    for message in (held, refused):
        assert message.index("baleen pods add") < message.index("retry")
    assert "discard" not in held
    assert "discard" not in DEAD_LETTERS_REMEDY


def test_dead_letters_beyond_the_limit_are_an_alarm(pods: Pods) -> None:
    """Attempt 20: dead letters beyond the limit are counted in the status, the metrics and the pod, with what to do."""
    pods.pod("one")
    add_gap(pods.api.db, id_of("one"), reason="dead-letters-over-limit", dead_letters=1234)
    assert pods.status()["dead_letters_not_kept"] == 1234
    assert pods.show("one")["dead_letters_not_kept"] == 1234
    assert dead_letters_block(pods, "one")[0].startswith("1234 dead letters beyond the limit of the pod: ")
    assert 'baleen_open{what="dead_letters_not_kept"} 1234.0' in pods.api.get("/metrics").text
