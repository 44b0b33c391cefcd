"""Of several processes one has a lease, and another when that one is gone."""

import time
from collections.abc import Callable, Iterator

import pytest

from coordinator.db.leases import LEASES, Leases
from coordinator.errors import UnavailableError
from tests.db.harness import Table

DEADLINE = 20.0


def until(held: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not held():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def two(table: Table) -> Iterator[tuple[Leases, Leases]]:
    one, other = Leases(table.url), Leases(table.url)
    yield one, other
    one.close()
    other.close()


def test_one_has_it(two: tuple[Leases, Leases]) -> None:
    """A lease is had by the first who asks, however often anybody asks; another lease may be had by another."""
    one, other = two
    assert [one.hold("a"), other.hold("a"), one.hold("a"), other.hold("a")] == [True, False, True, False]
    assert other.hold("b")
    assert not one.hold("b")


def test_it_is_given_up(two: tuple[Leases, Leases]) -> None:
    """Whoever closes gives up all of his leases, and may ask again."""
    one, other = two
    assert one.hold("a")
    one.close()
    until(lambda: other.hold("a"))
    assert not one.hold("a")


def test_it_is_lost_with_the_connection(table: Table, two: tuple[Leases, Leases]) -> None:
    """A lease ends with its connection: who has lost it finds out, and does not hold it beside another."""
    one, other = two
    assert one.hold("a")
    table.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s", [LEASES]
    )
    assert other.hold("a")
    assert not one.hold("a")


def test_who_says_nothing_loses_it(table: Table) -> None:
    """A process that is stopped keeps its connection open: the server ends it, and another goes on."""
    stopped, other = Leases(table.url, silence=0.3), Leases(table.url)
    try:
        assert stopped.hold("a")
        until(lambda: other.hold("a"))
        assert not stopped.hold("a")
    finally:
        stopped.close()
        other.close()


def test_who_beats_keeps_it(table: Table) -> None:
    """A process that says now and then that it is there keeps its leases."""
    one, other = Leases(table.url, silence=1), Leases(table.url)
    try:
        assert one.hold("a")
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            one.beat()
            time.sleep(0.05)
        assert not other.hold("a")
    finally:
        one.close()
        other.close()


def test_without_a_database() -> None:
    """While the database is away nobody has a lease, and it is told as that."""
    leases = Leases("postgresql://127.0.0.1:9/nowhere")
    with pytest.raises(UnavailableError):
        leases.hold("a")
    with pytest.raises(UnavailableError):
        leases.beat()
