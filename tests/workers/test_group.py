"""Several workers on Apache Kafka: partitions move between them, and nothing is applied twice or lost."""

from __future__ import annotations

import datetime as dt
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from coordinator.kafka.topics import EVENTS, ensure_topics
from schemas.records import RegistryEvent, partition_key_of
from tests.oracle import Oracle
from tests.support.wait import eventually
from tests.workers.harness import (
    DEADLINE,
    PODS,
    Child,
    Log,
    Maker,
    Place,
    Table,
    assert_all_applied,
    digest_of,
    encoded,
    shares,
    worker,
)

pytestmark = pytest.mark.kafka


@pytest.fixture
def place(kafka_place: Place) -> Place:
    return kafka_place


def blobs(maker: Maker, name: str, count: int) -> list[RegistryEvent]:
    return [maker.blob(f"pod-a/{name}-{number % 40}", digest_of(f"{name} {number}")) for number in range(count)]


def shared_by(place: Place, members: int) -> bool:
    found = shares(place)
    return len(found) == members and sum(found.values()) == 8 and all(found.values())


def test_a_paused_worker_of_two(place: Place, table: Table, log: Log, maker: Maker, tmp_path: Path) -> None:
    """A worker that is paused until its partitions have moved changes nothing when it continues."""
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(Child(place.but(worker_batch="50"), tmp_path / f"{number}.log")) for number in (1, 2)
        )
        eventually(lambda: shared_by(place, 2), why="sharing")
        # Before they are written: all may be applied before anybody looks.
        started = sum(table.progress().values())
        log.write_events(blobs(maker, "shared", 2000))
        eventually(lambda: sum(table.progress().values()) > started, why="a first batch")
        first.send(signal.SIGSTOP)
        log.write_events(blobs(maker, "paused", 2000))
        eventually(lambda: shared_by(place, 1), why="the move of the partitions")
        table.applied(log, alive=lambda: second.status is None)
        first.send(signal.SIGCONT)
        log.write_events(blobs(maker, "again", 1000))
        eventually(lambda: shared_by(place, 2), why="sharing again")
        log.write_events(blobs(maker, "last", 1000))
        table.applied(log, alive=lambda: first.status is None and second.status is None)
    assert_all_applied(table, maker)
    assert table.gaps() == []
    assert table.dead_letters() == []


def test_markers_of_transactions_are_no_gap(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """The markers of transactions take offsets without being records, and are no gap."""
    producer = KafkaProducer(bootstrap_servers=place.values["kafka_bootstrap"], transactional_id="pod-a")
    try:
        producer.init_transactions()
        with worker(place):
            for number in range(8):
                producer.begin_transaction()
                for event in blobs(maker, f"transaction-{number}", 3):
                    producer.send(EVENTS, key=partition_key_of(event), value=encoded(event), partition=0)
                producer.commit_transaction()
                time.sleep(0.05)  # so that fetches begin behind a marker too
            table.applied(log, markers=1)
    finally:
        producer.close(timeout=DEADLINE)
    with worker(place):  # it starts behind a marker
        log.write_events(blobs(maker, "after", 3), partition=0)
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.gaps() == []


def test_what_a_transaction_aborted_was_never_published(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """A delete of a transaction that was aborted removes nothing, and its offsets stop nothing."""
    pushed = blobs(maker, "kept", 3)
    producer = KafkaProducer(bootstrap_servers=place.values["kafka_bootstrap"], transactional_id="aborting")
    try:
        with worker(place):
            log.write_events(pushed, partition=0)
            table.applied(log)
            producer.init_transactions()
            producer.begin_transaction()
            for event in pushed * 30:
                aborted = msgspec.structs.replace(
                    event, action="delete", timestamp=event.timestamp + dt.timedelta(hours=1)
                )
                producer.send(EVENTS, key=partition_key_of(aborted), value=encoded(aborted), partition=0)
            producer.flush()
            producer.abort_transaction()
            log.write_events(blobs(maker, "later", 3), partition=0)
            table.applied(log)
    finally:
        producer.close(timeout=DEADLINE)
    assert_all_applied(table, maker)
    assert table.gaps() == []


@pytest.mark.parametrize("more", [2, 9])
def test_a_new_topic_while_a_worker_runs(
    place: Place, table: Table, log: Log, maker: Maker, tmp_path: Path, more: int
) -> None:
    """A new topic of the same name is a gap to a running worker, whatever its length."""
    log.write_events(blobs(maker, "old", 5), partition=0)
    children = [Child(place, tmp_path / "worker.log")]
    try:
        table.applied(log, alive=lambda: children[-1].status is None)
        log.delete_topics()
        ensure_topics(place.settings())
        log.write_events(blobs(maker, f"new-{more}", more), partition=0)

        def found() -> bool:
            # A worker may end over a topic that is gone; whoever started it starts it again.
            if children[-1].status is not None:
                children.append(Child(place, tmp_path / "worker.log"))
            return table.gaps() != []

        eventually(found, why="a gap")
        eventually(lambda: table.counts() == Oracle().take(maker.made).counts(), why="equality")
    finally:
        for child in children:
            child.kill()
    # A worker that did not ask while there was no topic may have read on in the new log before it looked.
    stood = {gap[4] for gap in table.gaps() if gap[3] == "log-replaced" and gap[2] == 0 and gap[1] == EVENTS}
    assert len(stood) == 1
    assert stood <= set(range(5, max(5, more) + 1))
    assert {(pod, EVENTS, 0, "log-replaced", *stood, None) for pod in PODS} <= set(table.gaps())


def test_a_new_topic_before_a_worker_starts(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """A new topic of the same name is a gap to a worker that starts later."""
    log.write_events(blobs(maker, "old", 5), partition=0)
    with worker(place):
        table.applied(log)
    log.delete_topics()
    ensure_topics(place.settings())
    log.write_events(blobs(maker, "new", 9), partition=0)
    with worker(place):
        table.applied(log)
        eventually(lambda: table.counts() == Oracle().take(maker.made).counts(), why="equality")
    assert {(pod, EVENTS, 0, "log-replaced", 5, None) for pod in PODS} <= set(table.gaps())


def test_records_removed_before_a_worker_starts(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """Records that retention removed before they were applied are a gap with their offsets."""
    log.write_events(blobs(maker, "seen", 3), partition=0)
    with worker(place):
        table.applied(log)
    lost = blobs(maker, "removed", 4)
    log.write_events(lost, partition=0)
    log.write_events(blobs(maker, "rest", 2), partition=0)
    log.remove_before(EVENTS, 0, 7)
    with worker(place):
        table.applied(log)
    assert table.counts() == Oracle().take([event for event in maker.made if event not in lost]).counts()
    assert table.gaps() == [(pod, EVENTS, 0, "records-removed", 3, 7) for pod in PODS]
