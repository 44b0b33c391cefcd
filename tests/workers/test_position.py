"""The moments in which a partition's position is decided, each with a real log and a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest

from coordinator.db.connection import Connections
from coordinator.kafka.log import LogInspector, TopicState
from coordinator.kafka.topics import EVENTS
from tests.workers.harness import PODS, Log, Maker, Place, Table, digest_of, worker
from workers.position import Positions

PARTITION = (EVENTS, 0)


class Inspector(LogInspector):
    """Does something after each question for a topic's state."""

    then: Callable[[], None] | None = None

    def read_state(self, topic: str) -> TopicState:
        answer = super().read_state(topic)
        if self.then is not None:
            self.then()
        return answer


@pytest.fixture
def inspector(place: Place) -> Iterator[Inspector]:
    with Inspector(place.settings()) as inspector:
        yield inspector


@pytest.fixture
def positions(place: Place, inspector: LogInspector) -> Iterator[Positions]:
    with closing(Connections(place.values["database_url"], name="test")) as connections:
        yield Positions(connections, inspector)


def write(log: Log, name: str, count: int) -> None:
    maker = Maker()
    log.write_events([maker.blob("pod-a/app", digest_of(f"{name} {number}")) for number in range(count)], partition=0)


def stand_at(table: Table, inspector: LogInspector, offset: int) -> None:
    """Set the partition's progress as a worker that read on would have left it."""
    table.do(
        "UPDATE partition_progress SET next_offset = %s, fingerprint = %s WHERE topic = %s AND partition = %s",
        offset,
        inspector.read_fingerprint(EVENTS, 0, offset - 1),
        *PARTITION,
    )


def test_records_applied_during_a_check_do_not_make_the_log_seem_shorter(
    table: Table, log: Log, inspector: Inspector, positions: Positions
) -> None:
    """Records that a worker applies after the log's end was read are no proof of another log."""
    write(log, "first", 3)
    positions.find_offsets([PARTITION])
    stand_at(table, inspector, 3)

    def apply_more() -> None:
        write(log, "meanwhile", 2)
        stand_at(table, inspector, 5)

    inspector.then = apply_more
    positions.find_offsets([PARTITION])
    assert table.gaps() == []
    assert table.progress()[PARTITION] == 5


def test_another_log_of_the_same_length(table: Table, log: Log, inspector: LogInspector, positions: Positions) -> None:
    """A new topic that grew past the known offset before the next check is still another log."""
    write(log, "old", 5)
    positions.find_offsets([PARTITION])
    stand_at(table, inspector, 5)
    positions.find_offsets([PARTITION])
    log.make_anew(EVENTS, 4)
    write(log, "new", 9)
    stand_at(table, inspector, 9)
    assert positions.find_offsets([PARTITION]) == {PARTITION: 0}
    assert table.gaps() == [(pod, EVENTS, 0, "log-replaced", 9, None) for pod in PODS]


def test_applied_records_that_are_removed(
    table: Table, log: Log, inspector: LogInspector, positions: Positions
) -> None:
    """Neither the last applied record nor that of the last check has to be kept."""
    write(log, "all", 6)
    positions.find_offsets([PARTITION])
    for stands, kept in ((2, 0), (4, 3), (6, 6)):
        stand_at(table, inspector, stands)
        if kept:
            log.remove_before(EVENTS, 0, kept)
        assert positions.find_offsets([PARTITION]) == {PARTITION: stands}
    assert table.gaps() == []


def test_an_operator_may_set_progress_back(place: Place, table: Table, log: Log) -> None:
    """A running worker whose progress is set back reads everything again with the next record, without a gap."""
    write(log, "one", 200)
    with worker(place):
        table.applied(log)
        with psycopg.connect(table.url) as connection:
            connection.execute("UPDATE partition_progress SET next_offset = 0, fingerprint = NULL")
            connection.execute("DELETE FROM repository_blobs")
            connection.execute("UPDATE blobs SET link_count = 0, state = 1, unreferenced_since = now()")
        write(log, "two", 1)
        table.applied(log)
    assert len(table.rows("SELECT FROM blobs WHERE link_count = 1")) == 201
    assert table.gaps() == []
