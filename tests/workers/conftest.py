"""A broker and a database of its own for each test of the worker; PostgreSQL and S3 are everybody's.

Topics have fixed names, and the embedded broker starts in a moment, so that each test gets an empty one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing

import pytest

from coordinator.db import migrate
from coordinator.kafka.topics import ensure_topics
from coordinator.stack.guard import Guard
from coordinator.stack.supervisor import StackEndpoints
from tests.conftest import temporary_directory
from tests.services.apache_kafka import ApacheKafka
from tests.services.databases import Databases
from tests.services.s3 import s3_settings
from tests.workers.harness import Log, Maker, Place, Table
from tests.workers.services import Broker, Database

_numbers = itertools.count(1)


@pytest.fixture
def guard() -> Iterator[Guard]:
    with closing(Guard()) as guard:
        yield guard


@pytest.fixture
def broker(guard: Guard) -> Iterator[Broker]:
    with temporary_directory() as directory, Broker(guard, directory) as broker:
        yield broker


@pytest.fixture
def database(guard: Guard) -> Iterator[Database]:
    with temporary_directory() as directory, Database(guard, directory) as database:
        migrate.upgrade(database.url)
        Table(database.url).add_pods()
        yield database


def place_of(services: StackEndpoints, database: str, bootstrap: str) -> Place:
    """Settings under which every delete that is newer than its push is certain."""
    return Place(
        {
            "database_url": database,
            "kafka_bootstrap": bootstrap,
            "kafka_partitions": "4",
            # A test publishes once, however busy the machine is.
            "ingest_timeout": "60s",
            "s3_root": f"root-{next(_numbers)}",
            "safety_clock_skew": "0s",
            "unsafe_times": "true",
        }
        | s3_settings(services)
    )


@pytest.fixture
def place(embedded_stack: StackEndpoints, databases: Databases, broker: Broker) -> Place:
    """Topics and pods are there; nothing was written."""
    place = place_of(embedded_stack, databases.migrated(), broker.bootstrap)
    ensure_topics(place.settings())
    Table(place.values["database_url"]).add_pods()
    return place


@pytest.fixture
def table(place: Place) -> Table:
    return Table(place.values["database_url"])


@pytest.fixture
def log(place: Place) -> Iterator[Log]:
    with Log(place.values["kafka_bootstrap"]) as log:
        yield log


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def kafka_place(
    embedded_stack: StackEndpoints, databases: Databases, apache_kafka_server: ApacheKafka
) -> Iterator[Place]:
    """As `place`, with new topics on Apache Kafka."""
    place = place_of(embedded_stack, databases.migrated(), apache_kafka_server.bootstrap)
    place = place.but(worker_group=f"workers-{next(_numbers)}")
    with Log(apache_kafka_server.bootstrap) as log:
        log.delete_topics()
        ensure_topics(place.settings())
        Table(place.values["database_url"]).add_pods()
        yield place
