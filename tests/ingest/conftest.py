from collections.abc import Iterator

import httpx
import pytest

from coordinator.kafka.topics import ensure_topics
from coordinator.settings import Settings, make_settings
from tests.ingest.harness import Tape, open_client_of_pod_a, serve_ingest


@pytest.fixture(scope="session")
def settings(broker: str) -> Settings:
    # Ingest gives a busy machine the time that it needs, before its sender gives up.
    settings = make_settings({"kafka_bootstrap": broker, "kafka_partitions": 4, "ingest_timeout": "60s"})
    ensure_topics(settings)
    return settings


@pytest.fixture
def tape(broker: str, settings: Settings) -> Iterator[Tape]:
    del settings  # it made the topics
    with Tape(broker) as tape:
        yield tape


@pytest.fixture(scope="session")
def url(settings: Settings) -> Iterator[str]:
    with serve_ingest(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with open_client_of_pod_a(url) as client:
        yield client
