"""A process that comes, or comes back, after a doctor's visit blocks GC until the next visit."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import event

from coordinator.db.engine import temporary_engine
from coordinator.db.session import read_connection
from coordinator.doctor import table as findings
from coordinator.doctor.table import ExaminedPod
from coordinator.domain.findings import KEY_CHECKS, Check, Finding, Result, repeated_checks
from coordinator.domain.names import PodName
from coordinator.domain.pods import PodKind
from coordinator.domain.watermarks import ProcessState
from coordinator.pods import view as pods
from coordinator.pods.of_kind import read_pods_of_kinds
from coordinator.table import processes
from tests.support.tables import add_process
from tests.table.harness import Table
from tests.table.processes import SILENCE, THERE, World

POD = PodName("pod-a")


@pytest.fixture
def world(fresh: Table) -> World:
    return World(fresh)


def visit(world: World, meanwhile: Callable[[], None] = lambda: None, result: Result = Result.PROVED) -> set[str]:
    """Visit the pod and find this result of every check; return the processes that were visited."""
    pod: ExaminedPod = findings.read_pod(world.connection, POD)
    meanwhile()
    with findings.lock_processes(world.connection, pod) as counting:
        findings.write_findings(world.connection, pod, [Finding(str(check), result, "", "") for check in Check])
    return counting


def held(world: World, after: Callable[[str], None] = lambda statement: None) -> list[str]:
    """The reasons of the doctor that block GC for the pod."""
    with temporary_engine(world.table.url, name="test") as engine, read_connection(engine) as connection:
        event.listen(connection, "after_cursor_execute", lambda _, __, statement, *more: after(statement))
        state = pods.read_pod_states(connection, SILENCE, timedelta(hours=1))[POD]
    return [reason for reason in state.describe_blocks(POD) if reason.startswith("doctor")]


def refuse(world: World, instance: str = "s") -> None:
    """Let the pod's address refuse a connection, so that its process is dead."""
    assert processes.record_probe_failure(world.connection, world.probe(), "refused", refused=True) == instance


def test_first_echo_after_the_visit(world: World) -> None:
    """A process that is first heard after a visit blocks GC until the next visit, whatever clocks show."""
    world.return_probe(world.probe(), "s")
    assert visit(world) == {"s"}
    world.connection.execute("UPDATE findings SET found_at = found_at + interval '1 hour'")
    assert held(world) == []
    world.return_probe(world.probe(), "t")
    (entry,) = held(world)
    assert "1 process of its registry began or came back after the visit" in entry
    assert visit(world) == {"t"}
    assert held(world) == []


def test_taken_for_dead_at_the_visit(world: World) -> None:
    """A process that took turns with another, and passed for replaced during a visit, was not examined by it."""
    world.return_probe(world.probe(), "s")
    world.return_probe(world.probe(), "t")
    assert world.process("s").state is ProcessState.DEAD
    assert visit(world) == {"t"}
    assert held(world) == []
    world.return_probe(world.probe(), "s")
    assert world.process("s").state is ProcessState.LIVE
    assert held(world) != []
    assert visit(world) == {"s", "t"}
    assert held(world) == []


def test_retired_at_the_visit(world: World) -> None:
    """A retired process that is alive after all was not examined, though one visit was of it before."""
    world.return_probe(world.probe(), "s")
    assert visit(world) == {"s"}
    world.return_probe(world.probe(), "t")
    world.run_reconcile()
    assert world.process("s").state is ProcessState.RETIRED
    assert visit(world) == {"t"}
    assert held(world) == []
    world.return_probe(world.probe(), "s")
    assert world.process("s").state is ProcessState.LIVE
    assert held(world) != []


def test_restarted_under_the_same_name(world: World) -> None:
    """A process that refused connections and is back may have another configuration than at the visit."""
    world.return_probe(world.probe(), "s")
    assert visit(world) == {"s"}
    refuse(world)
    assert held(world) == []
    world.return_probe(world.probe(), "s")
    assert world.process("s").state is ProcessState.LIVE
    assert held(world) != []


def test_restarted_during_the_visit(world: World) -> None:
    """A process that ended during a visit and is there again was perhaps met only before that."""

    def restart() -> None:
        refuse(world)
        world.return_probe(world.probe(), "s")

    world.return_probe(world.probe(), "s")
    assert visit(world, restart) == {"s"}
    assert held(world) != []
    assert visit(world) == {"s"}
    assert held(world) == []
    # The same of one that was not there when the visit began.
    refuse(world)
    assert visit(world, lambda: world.return_probe(world.probe(), "s")) == {"s"}
    assert held(world) != []


def test_found_during_the_visit(world: World) -> None:
    """The first visit of a pod finds its processes, and is of those; a restart of one before its end is noticed."""

    def begin() -> None:
        world.return_probe(world.probe(), "s")

    def begin_twice() -> None:
        world.return_probe(world.probe(), "t")
        refuse(world, "t")
        world.return_probe(world.probe(), "t")

    assert visit(world, begin) == {"s"}
    assert held(world) == []
    assert visit(world, begin_twice) == {"t"}
    assert held(world) != []


def test_still_there(world: World) -> None:
    """Echoes, a death and a retirement of visited processes block nothing."""
    world.return_probe(world.probe(), "s")
    assert visit(world) == {"s"}
    world.return_probe(world.probe(), "s")
    assert held(world) == []
    refuse(world)
    world.retire("s")
    assert held(world) == []


def test_a_visit_that_ends_while_it_is_asked(world: World) -> None:
    """An earlier visit's proof does not count for a process that only the next one visited."""
    ended = []

    def visit_ends(statement: str) -> None:
        if "FROM findings" in statement:
            ended.append(visit(world, result=Result.REFUTED))

    world.return_probe(world.probe(), "s")
    assert visit(world) == {"s"}
    assert held(world) == []
    world.return_probe(world.probe(THERE), "t")
    assert held(world, visit_ends) != []
    assert ended == [{"s", "t"}]


def test_who_is_examined_without_an_operator(world: World) -> None:
    """Processes that no visit was of are examined again once a probe has come back from each; never those of a pod that
    no operator's doctor has visited.
    """
    world.return_probe(world.probe(), "s")
    assert findings.read_unexamined(world.connection) == {}
    visit(world)
    assert findings.read_unexamined(world.connection) == {}
    add_process(world.connection, world.pod, "t")
    assert held(world) != []
    assert findings.read_unexamined(world.connection) == {}
    world.return_probe(world.probe(), "t")
    (processes,) = findings.read_unexamined(world.connection).values()
    assert len(processes) == 1
    # It takes turns with another: each is another life.
    visit(world)
    world.return_probe(world.probe(), "s")
    assert findings.read_unexamined(world.connection)[POD] != processes


def test_a_visit_without_an_operator(world: World) -> None:
    """A scheduler's visit that proves too little changes no finding; otherwise its findings count, and those of the
    key stay.
    """
    world.return_probe(world.probe(), "s")
    visit(world)
    world.connection.execute("UPDATE findings SET proof = 'earlier'")
    world.return_probe(world.probe(), "t")
    assert "has not examined this yet" in held(world)[0]
    findings.write_failed_visit(world.connection, POD, ["clocks is unproved"])
    findings.write_failed_visit(world.connection, POD, ["no-descriptor-cache is refuted"])
    assert "UTC found: no-descriptor-cache is refuted" in held(world)[0]
    assert findings.read_unexamined(world.connection) != {}
    pod = findings.read_pod(world.connection, POD)
    made = repeated_checks(PodKind.LINK, managed=True)
    with findings.lock_processes(world.connection, pod):
        found = [Finding(str(check), Result.PROVED, "", "later") for check in made]
        findings.write_findings(world.connection, pod, found, kept=KEY_CHECKS)
    assert held(world) == []
    proofs = dict(world.connection.execute('SELECT "check", proof FROM findings').fetchall())
    assert proofs == dict.fromkeys(KEY_CHECKS, "earlier") | dict.fromkeys(made, "later")
    world.return_probe(world.probe(), "u")
    assert "has not examined this yet" in held(world)[0]


def test_the_database_that_was_proved_last(world: World) -> None:
    """Which database was proved stays known when a later visit proves none: only that one may answer for a removal."""
    world.connection.execute("UPDATE pods SET kind = 'gitlab' WHERE name = %s", (POD,))
    pod = findings.read_pod(world.connection, POD)
    databases = []
    for result, subject in ((Result.PROVED, "one"), (Result.REFUTED, "two"), (Result.PROVED, "three")):
        with findings.lock_processes(world.connection, pod):
            found = Finding(Check.REGISTRY_DATABASE, result, "", "", subject=subject)
            findings.write_findings(world.connection, pod, [found])
        (known,) = [each for each in read_pods_of_kinds(world.connection) if each.name == POD]
        databases.append((known.database, known.last_database))
    assert databases == [("one", "one"), ("", "one"), ("three", "three")]
