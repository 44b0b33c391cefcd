"""What a worker does when the broker goes away, comes back, or comes back with another log."""

from __future__ import annotations

import shutil
import signal
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from coordinator.kafka.topics import EVENTS, ensure_topics
from schemas.records import RegistryEvent
from tests.oracle import Oracle
from tests.support.wait import eventually
from tests.workers.harness import (
    PODS,
    Child,
    InProcess,
    Log,
    Maker,
    Place,
    Table,
    assert_all_applied,
    digest_of,
    worker,
)
from tests.workers.services import Broker

#: The broker is stopped, killed and started, which takes its time.
pytestmark = pytest.mark.outage

REPLACED = "log-replaced"


def pushes(maker: Maker, name: str, count: int) -> list[RegistryEvent]:
    """Manifests of a repository of their own, each with a layer of its own and one that all share."""
    events = []
    for number in range(count):
        layers = [digest_of(f"{name} layer {number}"), digest_of("shared layer")]
        events.append(maker.manifest(f"pod-a/{name}", digest_of(f"{name} manifest {number}"), layers))
    return events


class Cut:
    """Makes the broker forget what was written after this: it is killed, and its log is an earlier one."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._log = broker.directory / "kafka.json"
        self._kept = broker.directory / "kept.json"
        broker.stop()  # saves everything
        shutil.copyfile(self._log, self._kept)
        broker.start()

    def restart(self) -> None:
        self._broker.kill()
        shutil.copyfile(self._kept, self._log)
        self._broker.start()


def gap_for_each_pod(reason: str, start: int, end: int | None = None) -> list[tuple[object, ...]]:
    return [(pod, EVENTS, 0, reason, start, end) for pod in PODS]


def test_a_broker_that_is_restarted(place: Place, table: Table, log: Log, broker: Broker, maker: Maker) -> None:
    """After a clean restart of the broker the worker continues, without a gap."""
    with worker(place):
        log.write_events(pushes(maker, "before", 5))
        table.applied(log)
        broker.stop()
        broker.start()
        log.forget()
        log.write_events(pushes(maker, "after", 5))
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.gaps() == []


@pytest.mark.parametrize("more", [2, 8])
def test_a_lost_tail_is_a_gap_to_a_worker_that_runs(
    place: Place, table: Table, log: Log, broker: Broker, maker: Maker, tmp_path: Path, more: int
) -> None:
    """Offsets that are given again to other records: a gap for each pod, and all of the new log is applied.

    The new log ends before or after the offset where the worker reads when it looks again.
    """
    log.write_events(pushes(maker, "kept", 4), partition=0)
    cut = Cut(broker)
    log.forget()
    with Child(place, tmp_path / "worker.log") as child:
        log.write_events(pushes(maker, "lost", 3), partition=0)
        table.applied(log, alive=lambda: child.status is None)
        child.send(signal.SIGSTOP)
        cut.restart()
        log.forget()
        log.write_events(pushes(maker, f"new-{more}", more), partition=0)
        child.send(signal.SIGCONT)
        eventually(lambda: table.gaps() != [], why="a gap")
        table.applied(log, alive=lambda: child.status is None)
        eventually(lambda: table.counts() == Oracle().take(maker.made).counts(), why="equality")
    # It may have read on in the new log before it looked.
    (stood,) = {gap[4] for gap in table.gaps()}
    assert 7 <= stood <= max(7, 4 + more)
    assert table.gaps() == gap_for_each_pod(REPLACED, stood)


def test_a_lost_tail_before_a_worker_starts(place: Place, table: Table, log: Log, broker: Broker, maker: Maker) -> None:
    """A log that grew beyond the known offset while nobody read it is still another log."""
    log.write_events(pushes(maker, "kept", 4), partition=0)
    cut = Cut(broker)
    log.forget()
    log.write_events(pushes(maker, "lost", 3), partition=0)
    with worker(place):
        table.applied(log)
    cut.restart()
    log.forget()
    log.write_events(pushes(maker, "new", 8), partition=0)
    with worker(place.but(worker_group="second")):
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.gaps() == gap_for_each_pod(REPLACED, 7)


@pytest.mark.parametrize("more", [2, 9])
def test_a_new_topic_while_a_worker_runs(place: Place, table: Table, log: Log, maker: Maker, more: int) -> None:
    """A topic that was deleted and created again is read from its beginning, whatever its length."""
    runs = [InProcess(place).start()]
    try:
        log.write_events(pushes(maker, "old", 5), partition=0)
        table.applied(log)
        runs[-1].do(runs[-1].worker.app.check_positions)
        log.make_anew(EVENTS, 4)
        log.write_events(pushes(maker, f"new-{more}", more), partition=0)

        def found() -> bool:
            if not runs[-1].alive:
                # A client may end over a topic that is gone; whoever started the worker starts it again.
                runs.append(InProcess(place.but(worker_group=f"run-{len(runs)}")).start())
            else:
                try:
                    runs[-1].do(runs[-1].worker.app.check_positions, 5)
                except (TimeoutError, CancelledError):
                    pass  # as its timer does, and where the client ends meanwhile
                except RuntimeError:  # of a loop that is being closed
                    if not runs[-1].has_ended():
                        raise
            return table.counts() == Oracle().take(maker.made).counts()

        eventually(found, why="equality")
    finally:
        runs[-1].stop()
    # Where the worker stood when it noticed depends on what it had read of the new log by then.
    assert {(gap[0], gap[3]) for gap in table.gaps()} >= {(pod, REPLACED) for pod in PODS}


def test_a_new_topic_before_a_worker_starts(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """A new topic of the same name is a gap to a worker that starts later."""
    log.write_events(pushes(maker, "old", 5), partition=0)
    with worker(place):
        table.applied(log)
    log.delete_topics()
    ensure_topics(place.settings())
    log.write_events(pushes(maker, "new", 9), partition=0)
    with worker(place.but(worker_group="second")):
        table.applied(log)
    assert_all_applied(table, maker)
    assert table.gaps() == gap_for_each_pod(REPLACED, 5)


def test_records_removed_before_a_worker_starts(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """Records that retention removed before they were applied are a gap with their offsets."""
    log.write_events(pushes(maker, "seen", 3), partition=0)
    with worker(place):
        table.applied(log)
    lost = pushes(maker, "removed", 4)
    log.write_events(lost, partition=0)
    log.write_events(pushes(maker, "rest", 2), partition=0)
    log.remove_before(EVENTS, 0, 7)
    with worker(place.but(worker_group="second")):
        table.applied(log)
    assert table.counts() == Oracle().take([event for event in maker.made if event not in lost]).counts()
    assert table.gaps() == gap_for_each_pod("records-removed", 3, 7)


def test_records_removed_while_a_worker_runs(
    place: Place, table: Table, log: Log, maker: Maker, tmp_path: Path
) -> None:
    """A paused worker that retention overtakes notices when it continues."""
    with Child(place, tmp_path / "worker.log") as child:
        log.write_events(pushes(maker, "seen", 3), partition=0)
        table.applied(log)
        child.send(signal.SIGSTOP)
        lost = pushes(maker, "removed", 4)
        log.write_events(lost, partition=0)
        log.write_events(pushes(maker, "rest", 2), partition=0)
        log.remove_before(EVENTS, 0, 7)
        child.send(signal.SIGCONT)
        table.applied(log, alive=lambda: child.status is None)
    # A fetch that the broker had answered already may have brought some of them.
    kept = table.counts()
    assert kept.items() >= Oracle().take([event for event in maker.made if event not in lost]).counts().items() or (
        kept == Oracle().take(maker.made).counts()
    )
    if table.gaps():
        assert table.gaps() == gap_for_each_pod("records-removed", 3, 7)
