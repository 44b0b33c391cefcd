"""A database's clock that was ahead for a while and is set back: what was recorded meanwhile is voided.

The tests cannot set the clock of the machine. They move the rows into the future instead.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from coordinator.db.engine import connect
from coordinator.db.session import read_connection
from coordinator.doctor import table as findings
from coordinator.domain.gc import PodFacts, Times
from coordinator.domain.names import PodName
from coordinator.domain.watermarks import ProcessState
from coordinator.gc.conditions import read_facts
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job, TakenOverError
from coordinator.pods import clock
from coordinator.pods import table as pods
from coordinator.reconcile import table as reconcile
from coordinator.table import processes, progress
from tests.support.tables import add_dead_letter, ago
from tests.table.harness import Table
from tests.table.processes import SILENCE, World

BOUND = timedelta(hours=1)
DAY = timedelta(days=1)
#: The times of each table.
TIMES = {
    "probes": ("sent_at", "known_until", "answered_at"),
    "watermarks": ("at",),
    "endpoints": ("first_seen", "resolved_at", "answered_at", "failing_since", "refused_at", "echoed_at"),
    "processes": ("first_seen", "echoed_at", "dead_since", "retired_at"),
    "jobs": ("asked_at", "began_at", "alive_at", "finished_at"),
    "gaps": ("noticed_at", "resolved_at", "resolves_from"),
    "findings": ("found_at",),
}


@pytest.fixture
def world(fresh: Table) -> World:
    return World(fresh)


def set_back(world: World, by: timedelta = DAY, *tables: str) -> None:
    """Move everything that was recorded until now into the future, as by a clock that was so far ahead."""
    for table in tables or TIMES:
        moved = ", ".join(f"{column} = {column} + %(by)s" for column in TIMES[table])
        world.connection.execute(f"UPDATE {table} SET {moved}", {"by": by})


def began_ahead(world: World) -> Job:
    """A reconcile that a scheduler took while the clock was a day ahead."""
    job = world.take_reconcile()
    set_back(world, DAY, "jobs")
    return job._replace(began_at=job.began_at + DAY)


def facts(world: World) -> PodFacts:
    found: list[PodFacts] = []

    def ask(engine: Any) -> None:
        with read_connection(engine) as connection:
            shown = read_facts(connection, Times(timedelta(), timedelta(), timedelta(seconds=1)), SILENCE).facts
        found.extend(pod for pod in shown.pods if pod.name == "pod-a")

    world.by_engine(ask)
    return found[0]


def needed(world: World) -> list[str]:
    asked = jobs.request_needed_reconciles(world.connection, DAY * 7, BOUND)
    return [
        row[0]
        for row in world.table.rows("SELECT why FROM jobs WHERE id = ANY(%s) AND pod_id = %s", (asked, world.pod))
    ]


def dump(world: World) -> list[list[tuple[Any, ...]]]:
    # As text: -infinity is no time of Python's.
    return [world.table.rows(f"SELECT x::text FROM {table} x ORDER BY 1") for table in TIMES]


def gaps(world: World, what: str) -> list[tuple[Any, ...]]:
    """Of the pod's gaps, by reason."""
    return world.table.rows(f"SELECT {what} FROM gaps WHERE pod_id = %s ORDER BY reason", (world.pod,))


def by_the_scheduler(world: World) -> None:
    assert clock.void_if_ahead(world.connection)


def by_reading_w(world: World) -> None:
    assert world.view().at is None


@pytest.mark.parametrize("notice", [by_the_scheduler, by_reading_w])
def test_not_waited_out(world: World, notice: Callable[[World], None]) -> None:
    """Once the clock has passed a watermark from the future, the watermark is unknown until a probe comes back."""
    world.return_probe(world.probe())
    set_back(world, timedelta(seconds=30))
    notice(world)
    # The process hangs: probes come back no more. The clock goes on, for less than SILENCE.
    set_back(world, timedelta(seconds=-31))
    mark = world.view()
    assert mark.at is None
    assert any("no probe of process s" in sentence for sentence in mark.waits_for)
    world.return_probe(nonce := world.probe())
    assert world.view().at == world.sent_at(nonce)


def test_nothing_is_ahead(world: World) -> None:
    """While the clock goes on as it should, nothing is voided."""
    world.return_probe(world.probe())
    before = dump(world)
    assert not clock.void_if_ahead(world.connection)
    world.connection.execute(clock.VOID_SQL)
    assert dump(world) == before
    assert world.view().at is not None


def test_again_and_by_several(world: World) -> None:
    """Several processes that notice it, at once or later, void nothing that was recorded since."""
    world.return_probe(world.probe())
    set_back(world)

    def notice() -> None:
        with connect(world.table.url, name="test") as connection:
            clock.void_if_ahead(connection)

    several = [threading.Thread(target=notice) for _ in range(4)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    world.return_probe(nonce := world.probe())
    before = dump(world)
    world.connection.execute(clock.VOID_SQL)
    assert dump(world) == before
    assert world.view().at == world.sent_at(nonce)


def test_echoes_of_probes_from_the_future(world: World) -> None:
    """A probe from the future proves nothing when it comes back, noticed or not."""
    world.return_probe(world.probe())
    nonce, late = world.probe(), world.probe()
    set_back(world, DAY, "probes")
    before = world.marks()
    world.return_probe(nonce)
    assert world.marks() == before
    assert clock.void_if_ahead(world.connection)
    world.return_probe(late)
    assert set(world.marks().values()) == {None}


def test_a_process_that_answered_while_it_was_ahead(world: World) -> None:
    """A silent process that answered in the future keeps the watermark unknown until a reconcile that begins the
    bound later.
    """
    world.linked("link")
    world.return_probe(world.probe())
    world.answered()
    set_back(world)
    assert clock.void_if_ahead(world.connection)
    world.return_probe(world.probe())
    assert world.view().at is None
    processes.delete_unechoed_probes(world.connection, world.pod, world.take_reconcile().began_at, BOUND)
    assert world.view().at is None
    world.connection.execute(
        "UPDATE probes SET sent_at = sent_at - interval '61 minutes',"
        " answered_at = answered_at - interval '61 minutes' WHERE NOT echoed"
    )
    processes.delete_unechoed_probes(world.connection, world.pod, taken_again(world).began_at, BOUND)
    world.return_probe(nonce := world.probe())
    assert world.view().at == world.sent_at(nonce)


def taken_again(world: World) -> Job:
    world.connection.execute("UPDATE jobs SET state = 'failed', finished_at = now() WHERE state = 'running'")
    return world.take_reconcile()


def test_where_names_led_while_it_was_ahead(world: World) -> None:
    """A look-up of names from the future does not count; an address that several processes share stays shared."""
    world.return_probe(world.probe(), "s")
    world.connection.execute("UPDATE endpoints SET shared = true")
    set_back(world)
    assert clock.void_if_ahead(world.connection)
    world.return_probe(world.probe(), "s")
    shown = world.view(looked_up=False)
    assert shown.at is None
    assert [each for each in shown.waits_for if "was not looked up" in each]
    assert world.endpoint()[2]
    world.looked_up()
    assert world.view().at is not None


def test_dead_and_retired_while_it_was_ahead(world: World) -> None:
    """A process that died in the future is dead since now, and counts again if a reconcile had retired it."""
    world.linked("link")
    world.return_probe(world.probe(), "s")
    world.return_probe(world.probe(), "t")
    world.run_reconcile()
    assert world.process("s").state is ProcessState.RETIRED
    set_back(world)
    assert clock.void_if_ahead(world.connection)
    s = world.process("s")
    assert s.state is ProcessState.DEAD
    assert s.dead_since is not None
    assert s.dead_since - findings.read_clock(world.connection) < timedelta()
    world.return_probe(world.probe(), "s")
    assert world.process("s").state is ProcessState.LIVE


# Reconciles


def test_a_reconcile_from_the_future_is_none(world: World) -> None:
    """A reconcile that began later than now does not count, and another is requested."""
    world.linked("link")
    world.return_probe(world.probe())
    world.run_reconcile()
    assert facts(world).reconciled_at is not None
    assert needed(world) == []
    set_back(world, DAY, "jobs")
    assert facts(world).reconciled_at is None
    world.connection.execute("UPDATE jobs SET finished_at = now() - interval '1 hour'")
    assert needed(world) == ["it was never reconciled"]


def test_nor_once_the_clock_has_passed_it(world: World) -> None:
    """A reconcile that is noticed to be from the future has failed, and the gaps that it resolved are open again."""
    world.linked("link")
    world.return_probe(world.probe())
    progress.record_log_cut(world.connection, "registry.events")
    world.run_reconcile()
    assert gaps(world, "resolved_at IS NULL") == [(False,)]
    set_back(world)
    assert clock.void_if_ahead(world.connection)
    ((state, began_at, error),) = world.table.rows("SELECT state, began_at <= now(), error FROM jobs")
    assert (state, began_at) == ("failed", True)
    assert "set back" in error
    assert facts(world).reconciled_at is None
    assert gaps(world, "resolved_at IS NULL, resolved_why, resolves_from <= now()") == [(True, None, True)]
    world.run_reconcile()
    assert facts(world).reconciled_at is not None
    assert gaps(world, "resolved_at IS NULL") == [(False,)]


def test_one_from_before_stays(world: World) -> None:
    """A reconcile from before the clock was ahead stays as it was."""
    world.linked("link")
    world.return_probe(world.probe())
    world.run_reconcile()
    before = facts(world).reconciled_at
    began_ahead(world)
    world.connection.execute("UPDATE jobs SET began_at = %s, finished_at = now() WHERE state = 'done'", (before,))
    assert clock.void_if_ahead(world.connection)
    assert facts(world).reconciled_at == before


def test_it_resolves_nothing(world: World) -> None:
    """A reconcile that began in the future fails: it resolves no gap and retires no process."""
    world.linked("link")
    world.return_probe(world.probe(), "s")
    job = began_ahead(world)
    # Its listing has been read; then the log is cut, and the process dies.
    progress.record_log_cut(world.connection, "registry.events")
    assert processes.record_probe_failure(world.connection, world.probe(), "refused", refused=True) == "s"
    with pytest.raises(clock.ClockSetBackError, match="set back"):
        reconcile.write_result(world.connection, job, BOUND)
    assert gaps(world, "resolved_at") == [(None,)]
    assert world.process("s").state is ProcessState.DEAD


def test_nor_does_one_that_runs(world: World) -> None:
    """A reconcile that runs as the clock is set back fails, whenever it seems to have begun."""
    world.linked("link")
    world.return_probe(world.probe())
    job = world.take_reconcile()
    set_back(world, DAY, "probes", "watermarks")
    with pytest.raises(clock.ClockSetBackError):
        reconcile.write_result(world.connection, job, BOUND)
    assert clock.void_if_ahead(world.connection)
    with pytest.raises(TakenOverError):
        jobs.record_beat(world.connection, job, {})
    assert jobs.take_job(world.connection, ["reconcile"]) is None


# What else holds collection


def test_an_operators_word_from_the_future(world: World) -> None:
    """An operator's confirmation from the future does not count, and is needed again."""
    world.linked("relay")

    def resolve(engine: Any) -> None:
        pods.resolve_gaps(engine, PodName("pod-a"), "compared by hand")

    def compared() -> bool:
        return not any(reason.startswith("never reconciled") for reason in facts(world).blocked_by)

    world.by_engine(resolve)
    world.return_probe(world.probe())
    assert compared()
    set_back(world, DAY, "gaps")
    assert not compared()
    set_back(world, DAY, "probes")
    assert clock.void_if_ahead(world.connection)
    assert not compared()
    world.by_engine(resolve)
    assert compared()


def test_gaps_keep_their_time(world: World) -> None:
    """A gap that only a later reconcile resolves waits for the same time again, counted from now."""
    world.linked("link")
    world.return_probe(world.probe())
    world.retire("s", bound=BOUND)
    progress.record_log_cut(world.connection, "registry.events")
    set_back(world)
    assert clock.void_if_ahead(world.connection)
    given = "resolves_from - now() BETWEEN '59 min' AND '61 min'"
    assert gaps(world, f"reason, noticed_at <= now(), {given}, resolves_from <= now()") == [
        ("log-cut", True, False, True),
        ("retired", True, True, False),
    ]


def test_dead_letters_from_the_future(world: World) -> None:
    """A dead letter that was resolved in the future counts as resolved now."""
    add_dead_letter(world.connection, "pod-a", resolved_at=ago(-DAY), resolution="retried", resolved_why="w")
    world.return_probe(world.probe())
    set_back(world, DAY, "probes")
    assert clock.void_if_ahead(world.connection)
    assert world.table.rows("SELECT resolved_at <= now() FROM dead_letters") == [(True,)]
