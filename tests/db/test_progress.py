"""Where partitions stand, and the gaps that are recorded on the way."""

from coordinator.db import progress
from coordinator.domain.progress import GapFound, GapReason, Position, Progress
from tests.db.harness import Table

GAP = GapFound(GapReason.LOG_REPLACED, 10, None)


def gaps(table: Table) -> list[tuple[object, ...]]:
    return table.rows(
        "SELECT p.name, g.reason, g.from_offset, g.to_offset, g.settled_at FROM gaps g JOIN pods p ON p.id = g.pod_id"
        " WHERE topic = %s ORDER BY 1",
        (table.space,),
    )


def test_begun_and_moved(table: Table) -> None:
    """A partition is begun where it was decided, and moved on from where it was seen."""
    partition = (table.space, 3)
    begun, moved = Progress(4, None, "a"), Progress(9, 77, "b")
    assert progress.read(table.connection, [partition]) == {}
    assert progress.move(table.connection, partition, None, Position(begun, None))
    assert progress.move(table.connection, partition, begun, Position(moved, None))
    assert progress.read(table.connection, [partition, (table.space, 4)]) == {partition: moved}
    assert gaps(table) == []


def test_gaps_concern_every_pod(table: Table) -> None:
    """A gap is recorded for every pod, open."""
    assert progress.move(table.connection, (table.space, 0), None, Position(Progress(0, None, None), GAP))
    assert gaps(table) == [(name, "log-replaced", 10, None, None) for name in ("pod-a", "pod-b", "pod-l")]


def test_moved_meanwhile(table: Table) -> None:
    """What was decided on a position that is no more changes nothing: no position, no gap, no row."""
    partition, stands = (table.space, 0), Progress(10, 5, "a")
    target = Position(Progress(0, None, "b"), GAP)
    assert not progress.move(table.connection, partition, stands, target)
    assert progress.read(table.connection, [partition]) == {}
    assert progress.move(table.connection, partition, None, Position(stands, None))
    for seen in (None, stands._replace(next_offset=11), stands._replace(fingerprint=6), stands._replace(topic_id=None)):
        assert not progress.move(table.connection, partition, seen, target)
    assert progress.read(table.connection, [partition]) == {partition: stands}
    assert gaps(table) == []
