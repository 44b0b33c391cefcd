"""Whatever way events come, the table's counts are those of plain sets, digest by digest."""

from __future__ import annotations

import random
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Self

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coordinator.audit.check import check_counts
from coordinator.db.engine import temporary_engine
from coordinator.domain.names import RepositoryName, parse_digest
from coordinator.ingest.normalise import Outcome
from coordinator.kafka.topics import ensure_topics
from coordinator.storage.layout import layer_link_key, revision_link_key
from schemas.records import RegistryEvent
from tests.oracle import Oracle
from tests.services.databases import Databases
from tests.workers.harness import Log, Place, Table, accepted, captured, publish, worker

#: Of the captured notifications: pod-b once speaks of a repository of pod-a.
DEAD_LETTERS = [("pod-b", "not-owned")]


def assert_agrees(table: Table, oracle: Oracle) -> None:
    assert table.counts() == oracle.counts()
    with temporary_engine(table.url, name="test") as engine:
        report = check_counts(engine)
    assert report.is_healthy, report.differences


def interleaved(outcomes: Sequence[Outcome], chance: random.Random) -> list[Outcome]:
    """The same outcomes with repositories mixed at random, each one's own in order."""
    queues: dict[str, deque[Outcome]] = defaultdict(deque)
    for outcome in outcomes:
        event = accepted([outcome])
        queues[event[0].repository if event else "-"].append(outcome)
    mixed: list[Outcome] = []
    while queues:
        name = chance.choice(sorted(queues))
        mixed.append(queues[name].popleft())
        if not queues[name]:
            del queues[name]
    return mixed


def test_captured_notifications_come_to_the_oracles_counts(place: Place, table: Table, log: Log) -> None:
    """All captured notifications, through ingest and the broker, give the counts of plain sets."""
    outcomes = captured()
    with worker(place):
        publish(place.settings(), outcomes)
        table.applied(log)
    assert_agrees(table, Oracle().take(accepted(outcomes)))
    assert table.dead_letters() == DEAD_LETTERS
    assert table.gaps() == []


def test_events_that_come_twice_change_nothing(place: Place, table: Table, log: Log) -> None:
    """A registry that repeats every event is counted once."""
    outcomes = captured()
    with worker(place):
        publish(place.settings(), [each for outcome in outcomes for each in (outcome, outcome)])
        table.applied(log)
    assert_agrees(table, Oracle().take(accepted(outcomes)))


@pytest.mark.lengthy
@settings(
    max_examples=4,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms(use_true_random=False))
def test_repositories_in_any_order(place: Place, log: Log, databases: Databases, chance: random.Random) -> None:
    """Repositories interleaved at random come to the same counts."""
    log.delete_topics()
    log.forget()
    table = Table(databases.migrated())
    table.add_pods()
    place = place.but(database_url=table.url, worker_group=table.url.rpartition("/")[2])
    ensure_topics(place.settings())
    outcomes = captured()
    with worker(place):
        publish(place.settings(), interleaved(outcomes, chance))
        table.applied(log)
    assert_agrees(table, Oracle().take(accepted(outcomes)))


class Reader:
    """Reads the counts repeatedly while something else happens."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.lowest: dict[str, int] = {}
        self.checks = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            for digest, counts in self._table.counts().items():
                self.lowest[digest] = min(counts.reference_count, self.lowest.get(digest, counts.reference_count))
            self.checks += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.lengthy
def test_a_replay_never_shows_a_smaller_count(place: Place, table: Table, log: Log, databases: Databases) -> None:
    """Reading everything again from the first offset ends at the same counts, with none smaller on the way."""
    outcomes = captured()
    oracle = Oracle().take(accepted(outcomes))
    with worker(place):
        publish(place.settings(), outcomes)
        table.applied(log)
    before = table.counts()
    table.do("UPDATE partition_progress SET next_offset = 0, fingerprint = NULL")
    with Reader(table) as reader, worker(place.but(worker_group="replay", worker_batch="5")):
        table.applied(log)
    assert reader.checks > 1
    smaller = {digest for digest, low in reader.lowest.items() if low < before[digest].reference_count}
    assert smaller == set()
    assert_agrees(table, oracle)
    # A second database on the same topics comes to the same.
    other = Table(databases.migrated())
    other.add_pods()
    with worker(place.but(worker_group="other", database_url=other.url)):
        other.applied(log)
    assert_agrees(other, oracle)


def links_of(events: Sequence[RegistryEvent]) -> list[str]:
    """The keys of the links that registries have after these events."""
    state = Oracle().take(events)
    return [revision_link_key(RepositoryName(name), parse_digest(digest)) for name, digest in state.holdings] + [
        layer_link_key(RepositoryName(name), parse_digest(digest)) for name, digest in state.links
    ]


def test_doubtful_deletes_are_resolved_from_storage(place: Place, table: Table, log: Log) -> None:
    """Deletes are believed because the pod's links are gone, whenever they came."""
    table.do("UPDATE pods SET kind = 'link'")
    place = place.but(safety_clock_skew="5m")
    outcomes = captured()
    store = place.store()
    for key in links_of(accepted(outcomes)):
        store.put(key, b"")
    with worker(place) as running:
        publish(place.settings(), outcomes)
        table.applied(log)
        running.worker.resolver.resolve_all()
    assert table.rows("SELECT count(*) FROM removals WHERE doubtful_since IS NOT NULL") == [(0,)]
    assert_agrees(table, Oracle().take(accepted(outcomes)))
