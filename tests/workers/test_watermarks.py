"""From a registry's events to its watermark: ingest's rules, a real broker, workers, a real database."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from coordinator.db.engine import connect, temporary_engine
from coordinator.db.session import read_connection
from coordinator.doctor import table as findings
from coordinator.domain.watermarks import PodWatermark, ProcessState
from coordinator.ingest.normalise import Origin, Outcome, normalise_body
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.pods.watermarks import read_watermarks
from coordinator.table import processes
from tests.support.wait import eventually
from tests.workers.harness import Log, Maker, Place, Table, digest_of, publish, worker
from tests.workers.test_records import refuse
from workers.metrics import ECHOES

V2 = "application/vnd.docker.distribution.events.v2+json"
URL = "http://r1:5000"
HERE = "10.0.0.1"
PARTITIONS = 4


class Registry:
    """A pod's registry, as ingest and the prober meet it."""

    def __init__(self, place: Place, table: Table) -> None:
        self.place, self.table = place, table
        ((self.pod,),) = table.rows("SELECT id FROM pods WHERE name = 'pod-a'")
        table.do("UPDATE pods SET registries = %s WHERE id = %s", [URL], self.pod)
        self.look_up()
        self.numbers = iter(range(10**6))

    def look_up(self) -> None:
        self.do(processes.record_endpoints, self.pod, {URL: [HERE]}, self.do(findings.read_clock))

    def do(self, work: Any, *arguments: Any, **more: Any) -> Any:
        with connect(self.table.url, name="test") as connection:
            return work(connection, *arguments, **more)

    def event(self, action: str, instance: str = "s1", **changes: Any) -> dict[str, Any]:
        number = next(self.numbers)
        target = {"repository": f"pod-a/{number % 7}", "digest": digest_of(str(number)), "size": 7}
        target["mediaType"] = "application/octet-stream"
        event = {"id": f"e{number}", "timestamp": "2026-11-24T12:00:00Z", "action": action, "target": target}
        return event | {"source": {"instanceID": instance}} | changes

    def probe(self) -> str:
        nonce: str = self.do(processes.insert_probe, self.pod, URL, HERE)
        return nonce

    def echo(self, nonce: str, instance: str = "s1") -> dict[str, Any]:
        return self.event("pull", instance, request={"useragent": f"baleen-probe/{nonce}", "method": "HEAD"})

    def sent_at(self, nonce: str) -> dt.datetime:
        ((at,),) = self.table.rows("SELECT sent_at FROM probes WHERE nonce = %s::uuid", nonce)
        return at  # type: ignore[no-any-return]

    def outcomes(self, *events: dict[str, Any]) -> list[Outcome]:
        origin = Origin("pod-a", {"pod-a"}, dt.datetime.now(dt.UTC), V2)
        return normalise_body(json.dumps({"events": events}).encode(), origin)

    def post(self, *events: dict[str, Any]) -> None:
        publish(self.place.settings(), self.outcomes(*events))

    def view(self) -> PodWatermark:
        # As the prober does all the time.
        self.look_up()

        with temporary_engine(self.table.url, name="test") as engine, read_connection(engine) as connection:
            return read_watermarks(connection, dt.timedelta(seconds=60))["pod-a"]


@pytest.fixture
def registry(place: Place, table: Table) -> Registry:
    return Registry(place, table)


def test_a_pod_reports(registry: Registry, table: Table, log: Log) -> None:
    """When the watermark reaches a probe, everything that the process pushed before the probe is applied."""
    nonce = registry.probe()
    pushed = [registry.event("push") for _ in range(30)]
    with worker(registry.place):
        registry.post(*pushed[:10])
        registry.post(*pushed[10:], registry.event("renew"), registry.echo(nonce))
        table.applied(log)
        view = registry.view()
        assert (view.at, view.waits_for) == (registry.sent_at(nonce), [])
        (shown,) = view.processes
        assert (shown.instance_id, shown.state) == ("s1", ProcessState.LIVE)
        assert set(shown.partitions) == set(range(PARTITIONS))
        assert set(shown.dead_letters) == set(range(PARTITIONS))
        assert set(table.dead_letters()) == {("pod-a", "unknown-action")}
        assert len(table.counts()) == 30
        later = registry.probe()
        registry.post(registry.echo(later))
        table.applied(log)
        assert registry.view().at == registry.sent_at(later)
        registry.post(registry.echo(later, "s2"), registry.event("push", "s3"))
        table.applied(log)
    (endpoint,) = registry.view().endpoints
    assert endpoint.shared
    assert registry.view().at is None
    assert {shown.instance_id for shown in registry.view().processes} == {"s1", "s2", "s3"}


def test_replayed(registry: Registry, table: Table, log: Log) -> None:
    """A log that is applied again from its beginning leaves the processes' rows unchanged (scenario 25)."""
    first, second = registry.probe(), registry.probe()
    known = "SELECT instance_id, dead_since, dead_why, retired_at, echoed_at FROM processes ORDER BY 1"
    with worker(registry.place):
        registry.post(registry.event("push"), registry.echo(first), registry.echo(second, "s2"))
        registry.post(registry.event("push", "s2"), registry.echo(second, "s2"), registry.echo(first))
        table.applied(log)
    before = table.rows(known), table.rows("SELECT * FROM watermarks ORDER BY 1, 2, 3"), registry.view().endpoints
    assert [(row[0], row[2]) for row in table.rows(known)] == [("s1", "replaced"), ("s2", None)]
    assert table.rows(known)[1][1] is None
    table.do("UPDATE partition_progress SET next_offset = 0, fingerprint = NULL")
    with worker(registry.place):
        table.applied(log)
    after = table.rows(known), table.rows("SELECT * FROM watermarks ORDER BY 1, 2, 3"), registry.view().endpoints
    assert before == after


def raw(**changes: Any) -> bytes:
    values = {"action": "watermark", "pod": "pod-a", "process": "s1", "nonce": "ab" * 16} | changes
    return json.dumps({name: value for name, value in values.items() if value is not ...}).encode()


MALFORMED: Sequence[dict[str, Any]] = (
    {"nonce": "AB" * 16},
    {"nonce": "ab" * 15},
    {"nonce": ...},
    {"process": ""},
    {"process": "x" * 256},
    {"process": "a\0b"},
    {"process": ...},
    {"pod": ...},
    {"pod": "Not A Name"},
    {"partitions": 0},
    {"partitions": 10**6},
)


def test_watermarks_that_cannot_be_read(registry: Registry, table: Table, log: Log) -> None:
    """A malformed watermark is a dead letter, in either topic; that of an unknown nonce or pod is only counted."""
    unknown = ECHOES.labels("unknown")._value.get()
    with worker(registry.place):
        for topic in (EVENTS, DEAD_LETTERS):
            log.write(topic, [raw(**changes) for changes in MALFORMED], partition=0)
            log.write(
                topic, [raw(), raw(pod="pod-away"), raw(a_later_field=7, dead_letters_partition=None)], partition=0
            )
        table.applied(log)
        # They are counted after the commit, by a worker that is not told to stop.
        eventually(lambda: ECHOES.labels("unknown")._value.get() >= unknown + 6, why="the count")
    assert [reason for _, reason in table.dead_letters()] == ["malformed"] * 2 * len(MALFORMED)
    assert {pod for pod, _ in table.dead_letters()} <= {"pod-a", ""}
    assert ECHOES.labels("unknown")._value.get() == unknown + 6
    assert table.rows("SELECT instance_id FROM processes") == [("s1",)]
    assert table.rows("SELECT * FROM watermarks") == []


def test_a_source_that_no_table_can_hold(registry: Registry, table: Table, log: Log, maker: Maker) -> None:
    """An event whose process has an impossible name is a dead letter, and its neighbours are applied."""
    good = [maker.blob("pod-a/app", digest_of(f"{number}")) for number in range(3)]
    bad = json.loads(
        raw(action="push", repository="pod-a/app", digest=digest_of("bad"), timestamp="2026-11-24T12:00:00Z")
    )
    with worker(registry.place):
        log.write_events(good[:2], partition=0)
        for name in ("x" * 256, "a\0b"):
            log.write(EVENTS, [json.dumps(bad | {"id": "x", "process": name}).encode()], partition=0)
        log.write_events(good[2:], partition=0)
        table.applied(log)
    assert table.dead_letters() == [("pod-a", "malformed")] * 2
    assert len(table.counts()) == 3


def test_in_step_when_taken_apart(registry: Registry, table: Table, log: Log) -> None:
    """A batch that is split moves a partition's watermark with the records before it, not ahead of them."""
    refuse(table, digest_of("poison"), "RAISE EXCEPTION 'bad' USING ERRCODE = 'check_violation'")
    # Notes how far each partition was applied, as the same transaction sees it, whenever its W moves.
    table.do("CREATE TABLE moves (topic text, partition int, mark timestamptz, next_offset bigint)")
    table.do(
        """
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO moves SELECT NEW.topic, NEW.partition, NEW.at, p.next_offset FROM partition_progress p
            WHERE p.topic = NEW.topic AND p.partition = NEW.partition;
            RETURN NULL;
        END $$
        """
    )
    table.do("CREATE TRIGGER note AFTER INSERT OR UPDATE ON watermarks FOR EACH ROW EXECUTE FUNCTION note()")
    nonces = [registry.probe() for _ in range(3)]
    poison = registry.event("push")
    poison["target"] = {**poison["target"], "digest": digest_of("poison")}
    events = [registry.event("push") for _ in range(20)]
    registry.post(*events[:8], registry.echo(nonces[0]))
    registry.post(*events[8:14], poison, registry.echo(nonces[1]))
    registry.post(*events[14:], registry.echo(nonces[2]))
    marks: dict[tuple[int, dt.datetime], int] = {}
    poisoned = -1
    for number in range(PARTITIONS):
        for record in log.read(EVENTS, number, log.ends()[EVENTS, number]):
            value = json.loads(record.value)
            if value["action"] == "watermark":
                marks[number, registry.sent_at(value["nonce"])] = record.offset
            elif value["digest"] == digest_of("poison"):
                poisoned = number
    with worker(registry.place):
        table.applied(log)
    assert table.dead_letters() == [("pod-a", "unappliable")]
    moves = table.rows("SELECT partition, mark, next_offset FROM moves WHERE topic = %s AND mark > '-infinity'", EVENTS)
    assert {number for number, _, _ in moves} == set(range(PARTITIONS))
    assert all(next_offset > marks[number, mark] for number, mark, next_offset in moves)
    # Taken apart, each watermark had a transaction of its own.
    assert [next_offset for number, _, next_offset in moves if number == poisoned] == sorted(
        offset + 1 for (number, _), offset in marks.items() if number == poisoned
    )
    assert registry.view().at == registry.sent_at(nonces[2])


def test_no_watermark_without_its_batch(registry: Registry, table: Table, log: Log) -> None:
    """While the records before a watermark cannot be applied, it does not move."""
    nonce = registry.probe()
    with psycopg.connect(table.url) as other:
        other.execute("LOCK TABLE blobs IN EXCLUSIVE MODE")
        with worker(registry.place):
            registry.post(registry.event("push"), registry.echo(nonce))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while table.rows(waiting) == [(0,)]:
                pass
            assert registry.view().at is None
            other.rollback()
            table.applied(log)
    assert registry.view().at == registry.sent_at(nonce)
