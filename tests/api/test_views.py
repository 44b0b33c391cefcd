"""Repositories, pods, dead letters, status, readiness and metrics show what is there."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from coordinator.compose import store as compose_store
from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestKind
from coordinator.kafka.topics import EVENTS
from coordinator.lookup.sizes import Sizes
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.layout import link_key
from tests.api.harness import Facts, Served, dead_letter, envelope, served, settings_for
from tests.support.tables import add_gap, id_of, insert
from tests.support.wait import eventually
from tests.workers.harness import Log

ENVELOPE = "application/vnd.docker.distribution.events.v2+json"
HEADERS = {"Content-Type": ENVELOPE}


def shared_layers(facts: Facts) -> tuple[str, str]:
    """Two repositories that share layer 12: manifest 0 of both, manifest 1 of the first; blob 13 is only linked.

    Blob 11 is needed by the first alone, and linked by the second.
    """
    first, second = facts.repository(0, "team/one"), facts.repository(1, "two")
    facts.manifest(0, ManifestKind.IMAGE, [10, 12])
    facts.manifest(1, ManifestKind.IMAGE, [11, 12])
    facts.hold(first, 0)
    facts.hold(first, 1)
    facts.hold(second, 0)
    facts.link(first, 13)
    facts.link(second, 11)
    return first, second


def test_a_repository(api: Served, facts: Facts) -> None:
    """Logical bytes sum a repository's distinct blobs, unique bytes those that no other repository needs or links."""
    first, second = shared_layers(facts)
    sizes = facts.sizes
    assert api.get(f"/v1/repositories/{first}").json() == {
        "name": first,
        "pod": facts.pods[0],
        "manifests": 2,
        "blobs": 6,
        "logical_bytes": sum(sizes[blob] for blob in (0, 1, 10, 11, 12, 13)),
        "unique_bytes": sum(sizes[blob] for blob in (1, 13)),
    }
    shown = api.get(f"/v1/repositories/{second}").json()
    assert (shown["manifests"], shown["blobs"], shown["unique_bytes"]) == (1, 4, 0)
    empty = facts.repository(0, "empty")
    assert api.get(f"/v1/repositories/{empty}").json() == {
        "name": empty, "pod": facts.pods[0], "manifests": 0, "blobs": 0, "logical_bytes": 0, "unique_bytes": 0,
    }  # fmt: skip
    assert api.get(f"/v1/repositories/{facts.mark}/none").status_code == 404


def test_what_baleen_has_made_is_not_listed(api: Served, facts: Facts) -> None:
    """Repositories of the doctor and of probes directly below a pod's prefix are left out of lists, and no others."""
    pod, mark = facts.pods[0], facts.mark
    (prefix,) = api.get(f"/v1/pods/{pod}").json()["prefixes"]
    scratch = f"baleen-doctor-{'0a' * 8}"
    own = [f"{prefix}/{name}" for name in ("baleen-probe", scratch, f"{scratch}-other")]
    theirs = [f"{prefix}/baleen-doctor-notes", f"{prefix}/deeper/{scratch}", f"{prefix}/zebra"]
    for name in (*own, *theirs):
        insert(api.db, "repositories", pod_id=id_of(pod), name=name)
    for limit in (1, 100):
        assert [item["name"] for item in api.pages("/v1/repositories", pod=pod, limit=limit)] == theirs
    assert {item["name"] for item in api.pages("/v1/repositories", prefix=mark)} & set(own) == set()
    assert api.get(f"/v1/repositories/{own[0]}").json()["name"] == own[0]


def test_a_list_gives_figures_as_far_as_they_are_cheap(
    api: Served, api_of: Callable[[Sizes], Served], facts: Facts
) -> None:
    """A list has the figures of single calls, or null for a repository that holds too much."""
    first, second = shared_layers(facts)
    wanted = [api.get(f"/v1/repositories/{name}").json() for name in (first, second)]
    listed = [item for pod in facts.pods for item in api.pages("/v1/repositories", pod=pod)]
    assert listed == wanted
    frugal = api_of(Sizes(list_manifests=1))
    listed = [item for pod in facts.pods for item in frugal.pages("/v1/repositories", pod=pod)]
    assert listed == [wanted[0] | {"blobs": None, "logical_bytes": None, "unique_bytes": None}, wanted[1]]


def test_what_holds_a_pod(api: Served, facts: Facts) -> None:
    """A pod counts what is open for it, and gives each as a reason that blocks GC for this pod alone."""
    pod, other = facts.pods
    repository = facts.repository(0, "app")
    facts.removal(repository, doubtful=True)
    facts.removal(repository, doubtful=False)
    facts.manifest(0, ManifestKind.IMAGE, None)
    facts.hold(repository, 0)
    number = dead_letter(api.db, pod, "{}", "text/plain")
    add_gap(api.db, id_of(pod), topic="registry.events", partition=0, reason="records-removed", to_offset=5)
    shown = api.get(f"/v1/pods/{pod}").json()
    counts = ("repositories", "dead_letters", "doubtful_removals", "unread_manifests")
    assert [shown[name] for name in counts] == [1, 1, 1, 1]
    assert shown["gaps"]["open"] == 1
    assert shown["gaps"]["oldest"] is not None
    # Of both it is not known what they held before, nor how far they have reported (test_watermarks.py), and so on.
    unknown = api.get(f"/v1/pods/{other}").json()["blocked_by"]
    assert len(shown["blocked_by"]) == 4 + len(unknown)
    held = api.get("/v1/status").json()["gc"]["blocked_by"]
    assert sum(reason.startswith(f"pod {pod}:") for reason in held) == 4 + len(unknown)
    assert sum(reason.startswith(f"pod {other}:") for reason in held) == len(unknown)
    assert api.ask("DELETE", f"/v1/pods/{pod}").status_code == 409
    assert api.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"}).status_code == 200


def test_false_reports_of_a_pod(api: Served, facts: Facts) -> None:
    """A pod and the metrics count its reports that stored bytes contradict; that blocks nothing."""
    pod, other = facts.pods
    before = api.get(f"/v1/pods/{pod}").json()
    assert before["false_reports"] == 0
    insert(api.db, "false_reports", pod_id=id_of(pod), count=1234, manifest=b"m" * 32)
    shown = api.get(f"/v1/pods/{pod}").json()
    assert (shown["false_reports"], shown["blocked_by"]) == (1234, before["blocked_by"])
    assert [api.metric(f'baleen_false_reports{{pod="{name}"}}') for name in (pod, other)] == [1234, 0]


def test_a_pods_life(api: Served, facts: Facts) -> None:
    """A pod is added with a token that posts events, refused where it overlaps, rotated, and removed when empty."""
    name = f"{facts.mark}-new"
    body = {"name": name, "prefixes": [f"{facts.mark}/new"], "registries": ["http://127.0.0.1:5001"]}
    added = api.ask("POST", "/v1/pods", json=body)
    assert added.status_code == 201
    first = added.json()["event_token"]
    assert f"/v1/events/{name}" in added.json()["registry_config"]
    assert first in added.json()["registry_config"]
    shown = api.get(f"/v1/pods/{name}").json()
    assert (shown["prefixes"], shown["mode"], shown["kind"]) == (body["prefixes"], "manifest", "link")
    assert api.ask("POST", "/v1/pods", json=body).status_code == 409
    for prefix in (f"{facts.mark}", f"{facts.mark}/new/below"):
        answer = api.ask("POST", "/v1/pods", json={"name": f"{name}-2", "prefixes": [prefix]})
        assert answer.status_code == 409
        assert "overlaps" in answer.json()["detail"]
    assert api.ask("POST", "/v1/pods", json=body | {"prefixes": ["Team"]}).status_code == 400
    eventually(lambda: post_events(api, name, first) == 202, "the pod is known")
    second = api.ask("POST", f"/v1/pods/{name}/token").json()["event_token"]
    eventually(lambda: post_events(api, name, second) == 202, "the new token is known")
    assert second not in json.dumps([api.get(f"/v1/pods/{name}").json(), api.get("/v1/pods").json()])
    assert api.ask("DELETE", f"/v1/pods/{name}").status_code == 204
    assert api.get(f"/v1/pods/{name}").status_code == 404
    assert api.ask("DELETE", f"/v1/pods/{name}").status_code == 404


def post_events(api: Served, pod: str, token: str) -> int:
    return api.ask("POST", f"/v1/events/{pod}", token, content=b'{"events": []}', headers=HEADERS).status_code


def test_a_pod_that_holds_something_stays(api: Served, facts: Facts) -> None:
    """A pod whose repositories hold or link anything is not removed; one with empty repositories is."""
    held, linked = facts.repository(0, "held"), facts.repository(1, "linked")
    facts.manifest(0, ManifestKind.IMAGE, [10])
    facts.hold(held, 0)
    facts.link(linked, 10)
    for pod in facts.pods:
        answer = api.ask("DELETE", f"/v1/pods/{pod}")
        assert answer.status_code == 409
        assert "still has" in answer.json()["detail"]
    empty = Facts(api.db, pods=1)
    empty.removal(empty.repository(0, "gone"), doubtful=False)
    assert api.ask("DELETE", f"/v1/pods/{empty.pods[0]}").status_code == 204


def test_retry_publishes_what_is_understood_now(api: Served, facts: Facts) -> None:
    """A retry is refused with its reason until a pod owns the repository, and then publishes the events."""
    pod, repository = facts.pods[0], f"{facts.mark}/later"
    number = dead_letter(api.db, pod, envelope(repository), ENVELOPE)
    refused = api.ask("POST", f"/v1/dead-letters/{number}/retry")
    assert refused.status_code == 409
    assert "not-owned" in refused.json()["detail"]
    assert api.get(f"/v1/dead-letters/{number}").json()["resolution"] is None
    prefixes = {"prefixes": [f"{facts.mark}/later"]}
    assert api.ask("POST", f"/v1/pods/{pod}/prefixes", json=prefixes).status_code == 200
    done = api.ask("POST", f"/v1/dead-letters/{number}/retry")
    assert (done.status_code, done.json()) == (200, {"events": 1})
    assert api.get(f"/v1/dead-letters/{number}").json()["resolution"] == "retried"
    assert f"{pod}/{repository}" in published(api)
    assert api.ask("POST", f"/v1/dead-letters/{number}/retry").status_code == 409


def test_a_pod_is_given_prefixes(api_of: Callable[[Sizes], Served], facts: Facts) -> None:
    """A pod owns added prefixes at once, also at ingest; overlaps are refused, and GC waits for a reconcile."""
    # That it is known by and by, as all that is read again every few seconds, would prove nothing.
    api = api_of(Sizes(pods_s=math.inf))
    made = [
        api.ask("POST", "/v1/pods", json={"name": f"{facts.mark}-{name}", "prefixes": [f"{facts.mark}/{name}"]}).json()
        for name in ("one", "two")
    ]
    pod, path = made[0]["pod"], f"/v1/pods/{made[0]['pod']}/prefixes"

    def ask(*prefixes: str) -> int:
        return api.ask("POST", path, json={"prefixes": prefixes}).status_code

    def posted() -> Any:
        body = envelope(f"{facts.mark}/new/app")
        return api.ask("POST", f"/v1/events/{pod}", made[0]["event_token"], content=body, headers=HEADERS).json()

    eventually(lambda: posted().get("dead_lettered") == 1, "ingest knows the pod")
    added = api.ask("POST", path, json={"prefixes": [f"{facts.mark}/new", f"{facts.mark}/one"]})
    assert (added.status_code, added.json()["prefixes"]) == (200, [f"{facts.mark}/new", f"{facts.mark}/one"])
    assert added.json()["gaps"]["open"] == 1
    assert any("reconcile" in reason for reason in added.json()["blocked_by"])
    eventually(lambda: posted().get("accepted") == 1, "ingest knows it")
    assert ask(f"{facts.mark}/new") == 200
    assert api.get(f"/v1/pods/{pod}").json()["gaps"]["open"] == 1
    for overlapping in (f"{facts.mark}/two", f"{facts.mark}/two/below", facts.mark, f"{facts.mark}/one/below"):
        assert ask(overlapping) == 409
    assert ask(f"{facts.mark}/x", f"{facts.mark}/x/y") == 409
    assert ask("Team") == 400
    assert ask() == 400
    assert len(api.get(f"/v1/pods/{pod}").json()["prefixes"]) == 2
    assert api.ask("POST", "/v1/pods/nobody/prefixes", json={"prefixes": ["a"]}).status_code == 404


def test_whose_links_are_elsewhere_is_given_prefixes_with_a_gap(api: Served, facts: Facts) -> None:
    """A prefix that is added to a pod of kind relay makes a gap, which an operator resolves."""
    name = f"{facts.mark}-relay"
    api.ask("POST", "/v1/pods", json={"name": name, "prefixes": [name], "kind": "relay"})
    answer = api.ask("POST", f"/v1/pods/{name}/prefixes", json={"prefixes": [f"{name}-more"]})
    assert answer.json()["gaps"]["open"] == 1
    answer = api.ask("POST", f"/v1/pods/{name}/gaps/resolve", json={"why": "its database was compared"})
    assert answer.json()["gaps"]["open"] == 0


@pytest.mark.parametrize(
    ("mode", "kind", "stored", "status"),
    [
        ("manifest", "link", None, 204),
        ("manifest", "link", LinkKind.LAYER, 204),
        ("manifest", "link", LinkKind.REVISION, 409),
        ("link", "link", LinkKind.LAYER, 409),
        ("manifest", "relay", LinkKind.REVISION, 204),
    ],
)
def test_removal_of_a_pod_with_gaps(
    api: Served, facts: Facts, mode: str, kind: str, stored: LinkKind | None, status: int
) -> None:
    """A pod with gaps is removed only if storage has nothing of it, since a gap may hide links."""
    name = f"{facts.mark}-gaps"
    body = {"name": name, "prefixes": [name], "mode": mode, "kind": kind}
    assert api.ask("POST", "/v1/pods", json=body).is_success
    add_gap(api.db, id_of(name))
    if stored is not None:
        digest = Digest(bytes(32))
        compose_store.make_object_store(api.settings).put(
            link_key(RepositoryName(f"{name}/app"), stored, digest), b"a link"
        )
    answer = api.ask("DELETE", f"/v1/pods/{name}")
    assert answer.status_code == status, answer.text
    if status == 409:
        assert "reconcile it first" in answer.json()["detail"]
        assert api.get(f"/v1/pods/{name}").json()["gaps"]["open"] == 1


def test_dead_letters_of_a_pod_that_is_not_there(api: Served, facts: Facts) -> None:
    """Dead letters of an unregistered pod are listed; a pod that never had any is 404."""
    assert api.get("/v1/dead-letters", pod=f"{facts.mark}-none").status_code == 404
    assert api.get("/v1/dead-letters", pod=facts.pods[0]).json() == {"items": [], "next": None}
    number = dead_letter(api.db, f"{facts.mark}-gone", "{}", "text/plain")
    assert len(api.get("/v1/dead-letters", pod=f"{facts.mark}-gone").json()["items"]) == 1
    api.ask("POST", f"/v1/dead-letters/{number}/discard", json={"why": "a test"})
    assert api.get("/v1/dead-letters", pod=f"{facts.mark}-gone").json()["items"] == []


def test_retry_of_a_record_publishes_it_as_it_is(api: Served, facts: Facts) -> None:
    """A record that could not be applied is published again unchanged, unless it is cut or of another pod."""
    pod, repository = facts.pods[0], f"{facts.pods[0]}/record"
    record = {
        "id": "e", "action": "push", "pod": pod, "repository": repository, "timestamp": "2026-01-01T00:00:00Z",
        "digest": f"sha256:{'b' * 64}",
    }  # fmt: skip
    kind = "application/json; schema=registry.event/1"
    good = dead_letter(api.db, pod, json.dumps(record), kind)
    cut = dead_letter(api.db, pod, json.dumps(record)[:-9], kind)
    foreign = dead_letter(api.db, pod, json.dumps(record | {"pod": "somebody"}), kind)
    assert api.ask("POST", f"/v1/dead-letters/{good}/retry").json() == {"events": 1}
    assert f"{pod}/{repository}" in published(api)
    for number in (cut, foreign):
        assert api.ask("POST", f"/v1/dead-letters/{number}/retry").status_code == 409


def published(api: Served) -> set[str]:
    """The keys of all records in registry.events."""
    consumer = KafkaConsumer(bootstrap_servers=api.settings.kafka_bootstrap, enable_auto_commit=False)
    try:
        partitions = [TopicPartition(EVENTS, number) for number in consumer.partitions_for_topic(EVENTS)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        keys: set[str] = set()

        def read() -> bool:
            for records in consumer.poll(timeout_ms=200).values():
                keys.update(record.key.decode() for record in records)
            return all(consumer.position(partition) >= ends[partition] for partition in partitions)

        eventually(read, "all records are read")
        return keys
    finally:
        consumer.close()


def test_a_status_covers_what_was_acknowledged_before_it(embedded_stack: StackEndpoints) -> None:
    """A status counts everything that Kafka acknowledged before it, also right after one that was caught up."""
    with served(settings_for(embedded_stack)) as api, Log(str(api.settings.kafka_bootstrap)) as log:
        facts = Facts(api.db)

        def apply_all() -> None:
            for (topic, partition), end in log.ends().items():
                api.db.execute(
                    "INSERT INTO partition_progress (topic, partition, next_offset) VALUES (%s, %s, %s)"
                    " ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
                    (topic, partition, end),
                )

        for _ in range(3):
            apply_all()
            assert api.get("/v1/status").json()["caught_up"]
            number = dead_letter(api.db, facts.pods[0], envelope(f"{facts.pods[0]}/app"), ENVELOPE)
            # Answered once Kafka has acknowledged the event.
            assert api.ask("POST", f"/v1/dead-letters/{number}/retry").status_code == 200
            shown = api.get("/v1/status").json()
            assert not shown["caught_up"]
            assert sum(shown["lag"].values()) == 1


def test_lag_follows_the_log(embedded_stack: StackEndpoints) -> None:
    """Lag is the records that are not applied; caught up means none on any partition."""
    with served(settings_for(embedded_stack)) as api:
        facts = Facts(api.db)
        number = dead_letter(api.db, facts.pods[0], envelope(f"{facts.pods[0]}/app"), ENVELOPE)
        assert api.ask("POST", f"/v1/dead-letters/{number}/retry").status_code == 200
        before = api.get("/v1/status").json()
        assert not before["caught_up"]
        with Log(str(api.settings.kafka_bootstrap)) as log:
            ends = log.ends()
        for (topic, partition), end in ends.items():
            insert(api.db, "partition_progress", topic=topic, partition=partition, next_offset=end)
        eventually(lambda: api.get("/v1/status").json()["caught_up"], "the status has caught up")
        end, partition = max((end, partition) for (topic, partition), end in ends.items() if topic == EVENTS)

        def lag_at(applied: int) -> tuple[int | None, bool]:
            """The partition's lag, and whether what is applied is said to be beyond the log's end."""
            api.db.execute(
                "UPDATE partition_progress SET next_offset = %s WHERE topic = %s AND partition = %s",
                (applied, EVENTS, partition),
            )
            shown = eventually(lambda: known(api.get("/v1/status").json()), "Kafka tells")
            assert not shown["caught_up"]
            resolves = any("the worker has yet to resolve that" in each for each in shown["gc"]["blocked_by"])
            return shown["lag"][str(partition)], resolves

        assert lag_at(end - 1) == (1, False)
        # An offset beyond the log's end is not a lag of zero: the log was cut or replaced.
        assert lag_at(end + 1) == (None, True)


def known(status: dict[str, Any]) -> dict[str, Any] | None:
    """A status in which Kafka has answered."""
    return None if any("lag is not known" in each for each in status["gc"]["blocked_by"]) else status


def test_readiness_names_what_is_away(api: Served, embedded_stack: StackEndpoints) -> None:
    """Readiness is 200 if every service answers, and otherwise 503 with a result for each; health stays 200."""
    names = ("database", "migrations", "kafka", "store")
    # A service that is busy may take longer once than is waited for it.
    ready = eventually(lambda: answer if (answer := api.get("/readyz", token=None)).is_success else None, "all answer")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    assert {name for name, result in ready.json()["checks"].items() if result["ok"]} == set(names)
    away = settings_for(embedded_stack, s3_bucket="no-such-bucket")
    with served(away) as broken:
        broken.db.execute("UPDATE alembic_version SET version_num = 'older'")

        def as_it_is() -> bool:
            answer = broken.get("/readyz", token=None)
            checks = answer.json()["checks"]
            assert answer.status_code == 503
            oks = [checks[name]["ok"] for name in names]
            return oks == [True, False, True, False] and "baleen db migrate" in checks["migrations"]["detail"]

        eventually(as_it_is, "just these two are away, and what mends it is said")
        assert broken.get("/healthz", token=None).status_code == 200


def test_metrics_are_prometheus(api: Served, facts: Facts) -> None:
    """Metrics need no token, have our names, count by route, and contain no digest."""
    digest = facts.digest(1)
    api.get(f"/v1/blobs/{digest}")
    lag = 'baleen_lag_records{partition="0"}'
    # It is left out while Kafka does not answer.
    answer = eventually(
        lambda: shown if lag in (shown := api.get("/metrics", token=None)).text else None, "the lag is known"
    )
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'baleen_http_requests_total{method="GET",route="/v1/blobs/{digest}",status="200"}' in answer.text
    assert digest not in answer.text
