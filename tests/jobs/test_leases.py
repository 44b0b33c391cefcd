"""One of several processes has a lease, and another once that process is gone."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from coordinator.errors import UnavailableError
from coordinator.jobs.leases import LEASE_LOCK, Leases
from tests.support.wait import eventually
from tests.table.harness import Table


@pytest.fixture
def two(table: Table) -> Iterator[tuple[Leases, Leases]]:
    with closing(Leases(table.url)) as one, closing(Leases(table.url)) as other:
        yield one, other


def test_one_has_it(two: tuple[Leases, Leases]) -> None:
    """A lease belongs to the first process that takes it; another lease may belong to another process."""
    one, other = two
    assert [one.take("a"), other.take("a"), one.take("a"), other.take("a")] == [True, False, True, False]
    assert other.take("b")
    assert not one.take("b")


def test_it_is_given_up(two: tuple[Leases, Leases]) -> None:
    """A process that closes releases all of its leases, and can take them again."""
    one, other = two
    assert one.take("a")
    one.close()
    eventually(lambda: other.take("a"))
    assert not one.take("a")


def test_it_is_lost_with_the_connection(table: Table, two: tuple[Leases, Leases]) -> None:
    """A lease ends with its connection, and its holder notices."""
    one, other = two
    assert one.take("a")
    table.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s",
        [LEASE_LOCK],
    )
    assert other.take("a")
    assert not one.take("a")


def test_who_says_nothing_loses_it(table: Table) -> None:
    """A stopped process keeps its connection open; the server ends it, and another takes over."""
    with closing(Leases(table.url, silence=0.3)) as stopped, closing(Leases(table.url)) as other:

        def held() -> bool:
            """Whether the stopped process has the lease; between two statements it may lose its connection."""
            try:
                return stopped.take("a")
            except UnavailableError:
                return False

        eventually(held)
        eventually(lambda: other.take("a"))
        assert not held()


def test_who_beats_keeps_it(table: Table) -> None:
    """A process that sends its pulse keeps its leases."""
    silence = 1.0
    one, other = Leases(table.url, silence=silence), Leases(table.url)

    def beaten() -> bool:
        """Send pulses for longer than the silence, and let the other try. False if a pause in that was as long."""
        began = last = time.monotonic()
        if not one.take("a"):
            return False
        while last < began + 1.5 * silence:
            time.sleep(0.05)
            before, last = last, time.monotonic()
            one.beat()
            if time.monotonic() > before + silence:
                return False
        taken = other.take("a")
        if time.monotonic() > last + silence:
            other.close()
            return False
        assert not taken
        return True

    try:
        eventually(beaten)
    finally:
        one.close()
        other.close()


def test_without_a_database() -> None:
    """While the database is away no lease is taken, and the error says so."""
    leases = Leases("postgresql://127.0.0.1:9/nowhere")
    with pytest.raises(UnavailableError):
        leases.take("a")
    with pytest.raises(UnavailableError):
        leases.beat()
