"""A Kafka topic that is deleted and made anew, for a pod whose links cannot be listed (not tried before)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from coordinator.compose import database as compose_database
from coordinator.compose import scheduler as compose_scheduler
from coordinator.domain.gc import block_reasons
from coordinator.domain.names import PodName
from coordinator.jobs import table as jobs
from coordinator.kafka.topics import ensure_topics
from coordinator.pods import table as pods
from tests.support.wait import eventually
from tests.workers.conftest import kafka_place  # noqa: F401
from tests.workers.harness import PODS, Log, Maker, Place, Table, digest_of, worker

pytestmark = pytest.mark.kafka


@pytest.fixture
def log(kafka_place: Place) -> Iterator[Log]:  # noqa: F811
    with Log(kafka_place.values["kafka_bootstrap"]) as log:
        yield log


def blocks(place: Place) -> list[str]:
    """What blocks GC because of gaps."""
    facts = compose_scheduler.make_collection_facts_reader(place.settings())()
    return [each for each in block_reasons(facts) if "gap" in each]


def resolve(place: Place, pod: str) -> None:
    with compose_database.open_database(place.settings(), name="test") as database:
        pods.resolve_gaps(database, PodName(pod), "every image was pulled and pushed again")


def test_gc_is_blocked_until_an_operator_resolves_it(kafka_place: Place, log: Log) -> None:  # noqa: F811
    """Events that were not applied are lost with the topic: a gap of each pod, which blocks GC. Neither a reconcile nor
    later events resolve it: an operator has to, pod by pod.
    """
    place, maker = kafka_place, Maker()
    table = Table(place.values["database_url"])
    log.write_events([maker.blob("pod-a/app", digest_of("applied"))], partition=0)
    with worker(place):
        table.applied(log)
    # What they held before their first event.
    for pod in PODS:
        resolve(place, pod)
    assert blocks(place) == []
    # Acknowledged, and read by nobody.
    log.write_events([Maker().blob("pod-a/app", digest_of("lost"))], partition=0)
    log.delete_topics()
    ensure_topics(place.settings())
    with worker(place):
        log.write_events([maker.blob("pod-a/app", digest_of("later"))], partition=0)
        eventually(lambda: len(blocks(place)) == 2, why="both pods hold")
        table.applied(log)
    assert [each.partition(":")[0] for each in blocks(place)] == ["pod pod-a", "pod pod-b"]
    with psycopg.connect(table.url, autocommit=True) as connection:
        assert jobs.request_needed_reconciles(connection, timedelta(days=1), timedelta(0)) == []
    resolve(place, "pod-a")
    assert [each.partition(":")[0] for each in blocks(place)] == ["pod pod-b"]
    resolve(place, "pod-b")
    assert blocks(place) == []
