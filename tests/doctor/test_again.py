"""The scheduler's own visits: to which pods, when, and after a failure."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from coordinator.db.connection import Connections
from coordinator.doctor import table as findings
from coordinator.doctor.reexamination import FIRST_PAUSE_S, LONGEST_PAUSE_S, Reexamination, is_due, make_last_visit
from coordinator.doctor.visit import Instruments
from coordinator.domain.names import PodName
from coordinator.errors import BaleenError, ConflictError, UnavailableError
from coordinator.table import statements
from tests.doctor.test_table import POD, held, visit
from tests.table.harness import Table
from tests.table.processes import World

ONE, OTHER = frozenset({(1, 1)}), frozenset({(1, 2)})


def test_when_a_pod_is_visited_again() -> None:
    """Failed visits are repeated at growing intervals up to a bound; new processes wait for the first interval only."""
    assert is_due(None, ONE, 0.0)
    last = make_last_visit(None, ONE, 100.0)
    assert not is_due(last, ONE, 99.0 + FIRST_PAUSE_S)
    assert is_due(last, ONE, 100.0 + FIRST_PAUSE_S)
    pauses = [last.pause]
    for _ in range(6):
        last = make_last_visit(last, ONE, 100.0)
        pauses.append(last.pause)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert not is_due(last, ONE, 100.0 + FIRST_PAUSE_S)
    assert is_due(last, ONE, 100.0 + LONGEST_PAUSE_S)
    assert not is_due(last, OTHER, 99.0 + FIRST_PAUSE_S)
    assert is_due(last, OTHER, 100.0 + FIRST_PAUSE_S)
    assert make_last_visit(last, OTHER, 200.0).pause == FIRST_PAUSE_S


@pytest.fixture
def world(fresh: Table) -> World:
    return World(fresh)


def visits(world: World, error: Callable[[], BaleenError]) -> list[PodName]:
    """Return the pods to which two rounds go, each visit ending with this error."""
    visited: list[PodName] = []

    @contextmanager
    def opened(pod: PodName) -> Iterator[Instruments]:
        visited.append(pod)
        raise error()
        yield

    with closing(
        Connections(world.table.url, name="baleen-test", prepare=statements.prepare_connection)
    ) as connections:
        again = Reexamination(connections, opened, (), threading.Event())
        again.round()
        again.round()
    return visited


def test_a_visit_that_cannot_be_made(world: World) -> None:
    """If Kafka is away the hold says so, the next round waits, and no process counts as examined."""
    world.return_probe(world.probe(), "s")
    visit(world)
    assert visits(world, lambda: UnavailableError("Kafka is away.")) == []
    world.return_probe(world.probe(), "t")
    assert visits(world, lambda: UnavailableError("Kafka is away.")) == [POD]
    assert "UTC found: Kafka is away: run `baleen pods doctor" in held(world)[0]
    assert findings.read_unexamined(world.connection) != {}


def test_a_visit_while_an_operators_doctor_is_there(world: World) -> None:
    """If an operator's doctor visits the pod, the scheduler comes later, and that is no failure."""
    world.return_probe(world.probe(), "s")
    visit(world)
    world.return_probe(world.probe(), "t")
    assert visits(world, lambda: ConflictError("Another doctor is with the pod.")) == [POD]
    assert "has not examined this yet" in held(world)[0]
