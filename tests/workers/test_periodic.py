"""Periodic work is repeated, whatever other work does, until it is stopped."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from coordinator.errors import UnavailableError
from coordinator.jobs.leases import Leases
from workers.periodic import END_S, PeriodicThreads, PeriodicWork

DEADLINE = 20.0


class NoLeases(Leases):
    """Grants each lease as the test wants, without a database."""

    def __init__(self, ours: Callable[[str], bool] = lambda _: True) -> None:
        self._ours = ours

    def take(self, name: str) -> bool:
        return self._ours(name)

    def beat(self) -> None:
        pass


def run(works: Sequence[PeriodicWork], leases: Leases, until: threading.Event, end_s: float = END_S) -> None:
    """Do the work until the event is set."""
    stop = threading.Event()
    running = PeriodicThreads(works, leases, stop, end_s)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    reached = until.wait(DEADLINE)
    stop.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert reached


def counting(event: threading.Event, times: int, then: Callable[[], Any] = lambda: None) -> Callable[[], None]:
    """Work that sets the event at its n-th time."""
    left = [times]

    def work() -> None:
        left[0] -= 1
        if left[0] == 0:
            event.set()
        then()

    return work


@pytest.mark.parametrize("error", [UnavailableError("away"), ValueError("a bug")])
def test_failures_are_survived(error: Exception) -> None:
    """Work that fails is done again at its time."""

    def fail() -> None:
        raise error

    enough = threading.Event()
    run([PeriodicWork("fails", 0.01, counting(enough, 3, fail))], NoLeases(), enough)


def test_work_that_hangs_delays_no_other() -> None:
    """Each piece of work has a thread of its own."""
    enough, hanging = threading.Event(), threading.Event()
    works = [
        PeriodicWork("hangs", 0.01, lambda: hanging.wait(DEADLINE)),
        PeriodicWork("goes on", 0.01, counting(enough, 5)),
    ]
    threading.Thread(target=lambda: (enough.wait(DEADLINE), hanging.set()), daemon=True).start()
    run(works, NoLeases(), enough)


def test_work_that_hangs_does_not_hold_the_process() -> None:
    """When stopped, the process waits a moment for its work and no longer."""
    begun, hanging = threading.Event(), threading.Event()
    works = [PeriodicWork("hangs", 0.01, lambda: (begun.set(), hanging.wait(DEADLINE)))]
    run(works, NoLeases(), begun, end_s=0.1)
    hanging.set()


def test_without_the_lease_nothing_is_done() -> None:
    """Work of one process is done only with its lease; work of all is always done."""
    done: set[str] = set()
    enough = threading.Event()
    names = ("ours", "theirs", "shared")
    works = [PeriodicWork(name, 0.01, lambda n=name: done.add(n), alone=name != "shared") for name in names]
    left = 10

    def ours(name: str) -> bool:
        nonlocal left
        # One thread may be at its tenth turn before another has had its first.
        if name == "theirs":
            left -= 1
        if left <= 0 and done >= {"ours", "shared"}:
            enough.set()
        return name == "ours"

    run(works, NoLeases(ours), enough)
    assert done == {"ours", "shared"}


def test_leases_that_cannot_be_asked_for() -> None:
    """While the database is away no work that needs a lease is done, and leases are tried again."""
    enough = threading.Event()
    asked = counting(enough, 3)

    def away(_: str) -> bool:
        asked()
        raise UnavailableError("away")

    done: list[int] = []
    run([PeriodicWork("probes", 0.01, lambda: done.append(1))], NoLeases(away), enough)
    assert not done
