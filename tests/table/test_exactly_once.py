"""A slice is applied exactly once: repeated, by two workers at once, out of order, or interrupted anywhere."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from coordinator.db.connection import Connections
from coordinator.errors import UnavailableError
from coordinator.table import statements
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import DeadLetterFound, Item, OutOfStepError, Slice
from tests.table.harness import NO_MARGIN, Row, Table, before_statements

TABLES = (
    "blobs",
    "manifests",
    "repositories",
    "repository_manifests",
    "repository_blobs",
    "removals",
    "partition_progress",
    "dead_letters",
)
DEAD_LETTER = DeadLetterFound("pod-a", "malformed", "detail", 5, "payload", 7, "text/plain")


def dump(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the database that a batch can change."""
    with psycopg.connect(url) as connection:
        return {name: connection.execute(f"SELECT * FROM {name} t ORDER BY t").fetchall() for name in TABLES}


def everything(table: Table) -> Slice:
    """A slice in which everything happens: all kinds of facts, a list that grows, dead letters."""
    table.apply(
        table.push("a", "m", ["c", "l"], 1),
        table.push("a", "gone", ["c"], 2),
        table.link("a", "l", 3),
        table.push("old", "m", ["c", "l"], 4),
        table.link("emptied", "l", 5),
        table.push("new", "m", None, 6),
    )
    piece = table.slice(
        [
            table.push("b", "m", ["c", "l", "more"], 10),
            table.push("b", "n", ["c", "x"], 11),
            table.removed("a", "gone", 12),
            table.removed("a", "l", 13),
            table.removed("a", "never", 14),
            table.renamed("old", "new", 15),
            table.link("b", "x", 16),
            table.emptied("emptied", 17),
            table.link("b", "y", 18),
            None,
        ]
    )
    dead = Item(piece.next_offset - 1, 5, 0, None, DEAD_LETTER)
    return piece._replace(items=[*piece.items[:-1], dead])


def test_the_same_slice_again(fresh: Table) -> None:
    """A slice that is applied already is refused with the partition's offset, and changes nothing."""
    piece = everything(fresh)
    fresh.apply_slices([piece])
    before = dump(fresh.url)
    with pytest.raises(OutOfStepError) as refused:
        fresh.apply_slices([piece])
    assert refused.value.expected == piece.next_offset
    assert refused.value.piece is piece
    assert dump(fresh.url) == before
    assert fresh.check().is_healthy


def test_a_slice_that_is_ahead(fresh: Table) -> None:
    """A slice that leaves out records, or is of a partition that was never begun, is refused and changes nothing."""
    piece = everything(fresh)
    before = dump(fresh.url)
    with pytest.raises(OutOfStepError) as refused:
        fresh.apply_slices([piece._replace(first_offset=piece.first_offset + 1)])
    assert refused.value.expected == piece.first_offset
    with pytest.raises(OutOfStepError) as refused:
        fresh.apply_slices([piece._replace(partition=99)])
    assert refused.value.expected is None
    assert dump(fresh.url) == before


def test_one_slice_out_of_step_stops_all(fresh: Table) -> None:
    """Slices that come together are applied together or not at all."""
    good = everything(fresh)
    bad = fresh.slice([fresh.link("c", "z", 20)], 1)
    before = dump(fresh.url)
    with pytest.raises(OutOfStepError):
        fresh.apply_slices([good, bad._replace(first_offset=5)])
    assert dump(fresh.url) == before
    fresh.apply_slices([good, bad])


def test_progress_moves_with_the_effect(table: Table) -> None:
    """The offset after a slice and its last record's fingerprint are stored, also of an empty slice."""
    table.apply(table.link("a", "l"))
    piece = table.slice([None, None])
    table.apply_slices([piece])
    statement = "SELECT next_offset, fingerprint FROM partition_progress WHERE topic = %s"
    assert table.rows(statement, (table.space,)) == [(3, piece.fingerprint)]


def test_offsets_with_holes(table: Table) -> None:
    """A slice moves past offsets without a record, as compaction and transactions leave them."""
    piece = table.slice([table.link("a", "l"), table.link("b", "l")])
    items = [piece.items[0], piece.items[1]._replace(offset=40)]
    table.apply_slices([piece._replace(items=items, next_offset=41)])
    assert table.rows("SELECT next_offset FROM partition_progress WHERE topic = %s", (table.space,)) == [(41,)]
    assert table.row("l").links == 2


def test_two_at_the_same_slice(table: Table) -> None:
    """Of two workers that apply the same slice at the same time exactly one succeeds."""
    connections = [table.connect() for _ in range(2)]
    together = threading.Barrier(2)

    def attempt(connection: psycopg.Connection[Any], piece: Slice) -> bool:
        together.wait(10)
        try:
            BatchApplier(connection, NO_MARGIN).apply([piece])
        except OutOfStepError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for turn in range(15):
            piece = table.slice([table.push(f"r{turn}", "m", ["c", "l"]), table.link(f"r{turn}", "l")])
            won = [pool.submit(attempt, connection, piece) for connection in connections]
            assert sorted(each.result(30) for each in won) == [False, True]
            table.set_applied(piece)
    for connection in connections:
        connection.close()
    row = table.row("l")
    assert (row.references, row.links) == (15, 15)
    assert table.check().is_healthy


class Nth:
    """Does something before the statement with a number."""

    def __init__(self, before: int, what: Callable[[], None]) -> None:
        self._left = before
        self._what = what

    def __call__(self, _: str) -> None:
        self._left -= 1
        if self._left == -1:
            self._what()


class PowerCutError(Exception):
    pass


@pytest.mark.lengthy
def test_an_error_at_any_statement(fresh: Table) -> None:
    """An exception between any two statements leaves nothing half done, and the slice can be applied afterwards."""
    piece = everything(fresh)
    before = dump(fresh.url)

    def cut() -> None:
        raise PowerCutError

    for statement in range(500):
        try:
            with before_statements(fresh.connection, Nth(statement, cut)):
                BatchApplier(fresh.connection, NO_MARGIN).apply([piece])
        except PowerCutError:
            assert dump(fresh.url) == before, f"statement {statement}"
        else:
            break
    assert statement > 30
    assert fresh.blob("l") == Row(3, 0, 0, False, 7)  # type: ignore[arg-type]
    assert fresh.check().is_healthy


@pytest.mark.lengthy
def test_a_connection_killed_at_any_statement(fresh: Table) -> None:
    """A connection that dies between any two statements leaves nothing half done; the next one goes on."""
    piece = everything(fresh)
    before = dump(fresh.url)
    connections = Connections(fresh.url, name="killed", prepare=statements.prepare_connection)

    def kill() -> None:
        with connections.use() as connection:
            pid = connection.info.backend_pid

        def terminate() -> None:
            with psycopg.connect(fresh.url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))

        thread = threading.Thread(target=terminate)
        thread.start()
        thread.join()

    with connections.use():
        pass
    for statement in range(0, 500, 5):
        try:
            with connections.use() as connection, before_statements(connection, Nth(statement, kill)):
                BatchApplier(connection, NO_MARGIN).apply([piece])
        except UnavailableError:
            with connections.use():
                pass
            assert dump(fresh.url) == before, f"statement {statement}"
        else:
            break
    connections.close()
    assert statement > 30
    assert fresh.check().is_healthy
