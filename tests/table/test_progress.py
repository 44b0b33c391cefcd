"""Where partitions stand, and the gaps that are recorded on the way."""

from coordinator.domain.progress import GapFound, GapReason, Position, Progress
from coordinator.table import progress
from tests.table.harness import Table

GAP = GapFound(GapReason.LOG_REPLACED, 10, None)


def gaps(table: Table) -> list[tuple[object, ...]]:
    return table.rows(
        "SELECT p.name, g.reason, g.from_offset, g.to_offset, g.resolved_at FROM gaps g JOIN pods p ON p.id = g.pod_id"
        " WHERE topic = %s ORDER BY 1",
        (table.space,),
    )


def test_begun_and_moved(table: Table) -> None:
    """A partition begins at the decided position, and moves on from the position that was read."""
    partition = (table.space, 3)
    begun, moved = Progress(4, None, "a"), Progress(9, 77, "b")
    assert progress.read_progress(table.connection, [partition]) == {}
    assert progress.set_position(table.connection, partition, None, Position(begun, None))
    assert progress.set_position(table.connection, partition, begun, Position(moved, None))
    assert progress.read_progress(table.connection, [partition, (table.space, 4)]) == {partition: moved}
    assert gaps(table) == []


def test_gaps_concern_every_pod(table: Table) -> None:
    """A gap is recorded for every pod, open."""
    assert progress.set_position(table.connection, (table.space, 0), None, Position(Progress(0, None, None), GAP))
    assert gaps(table) == [(name, "log-replaced", 10, None, None) for name in ("pod-a", "pod-b", "pod-l")]


def test_moved_meanwhile(table: Table) -> None:
    """A decision on an outdated position changes nothing."""
    partition, stands = (table.space, 0), Progress(10, 5, "a")
    target = Position(Progress(0, None, "b"), GAP)
    assert not progress.set_position(table.connection, partition, stands, target)
    assert progress.read_progress(table.connection, [partition]) == {}
    assert progress.set_position(table.connection, partition, None, Position(stands, None))
    for seen in (None, stands._replace(next_offset=11), stands._replace(fingerprint=6), stands._replace(topic_id=None)):
        assert not progress.set_position(table.connection, partition, seen, target)
    assert progress.read_progress(table.connection, [partition]) == {partition: stands}
    assert gaps(table) == []


def test_a_second_cut_is_as_open_as_the_first(table: Table) -> None:
    """A second cut adds no gap to a pod with an open one; only a reconcile that begins later resolves that."""
    assert progress.record_log_cut(table.connection, table.space) == 3
    before = resolved_from(table)
    between = table.rows("SELECT clock_timestamp()")[0]
    assert progress.record_log_cut(table.connection, table.space) == 3
    after = resolved_from(table)
    assert len(before) == len(after) == 3
    assert max(before) < between < min(after)


def test_a_gap_that_is_resolved_later_stays_so(table: Table) -> None:
    """Another cut does not make a gap resolvable earlier."""
    table.connection.execute("DELETE FROM gaps")
    progress.record_log_cut(table.connection, table.space)
    table.connection.execute("UPDATE gaps SET resolves_from = now() + interval '1 hour'")
    before = resolved_from(table)
    progress.record_log_cut(table.connection, table.space)
    assert resolved_from(table) == before


def resolved_from(table: Table) -> list[tuple[object, ...]]:
    return table.rows("SELECT resolves_from FROM gaps WHERE topic = %s ORDER BY pod_id", (table.space,))
