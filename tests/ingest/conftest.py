from collections.abc import Iterator

import httpx
import pytest

from coordinator.kafka.topics import ensure_topics
from coordinator.settings import Settings, build
from tests.ingest.harness import Tape, sending_as_pod_a, serving


@pytest.fixture(scope="session")
def settings(broker: str) -> Settings:
    # Ingest gives a busy machine the time that it needs, before its sender gives up.
    settings = build({"kafka_bootstrap": broker, "kafka_partitions": 4, "ingest_timeout": "60s"})
    ensure_topics(settings)
    return settings


@pytest.fixture
def tape(broker: str, settings: Settings) -> Iterator[Tape]:
    del settings  # it made the topics
    with Tape(broker) as tape:
        yield tape


@pytest.fixture(scope="session")
def url(settings: Settings) -> Iterator[str]:
    with serving(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with sending_as_pod_a(url) as client:
        yield client
