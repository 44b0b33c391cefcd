"""Bytes that vanish under a real registry are found and reported as missing until a push restores them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from coordinator.audit.audit import Audit, Report
from coordinator.compose import scheduler as compose_scheduler
from coordinator.domain.names import parse_digest
from coordinator.kafka.topics import LIFECYCLE
from coordinator.registry.client import RegistryClient, RegistryNotFoundError
from coordinator.registry.images import make_image, make_layer
from coordinator.stack.distribution import DistributionRegistry
from coordinator.storage.layout import blob_key
from tests.audit.harness import AGES
from tests.conftest import temporary_directory
from tests.registries.harness import Baleen
from tests.support.wait import eventually

pytestmark = pytest.mark.registry


@pytest.fixture
def baleen() -> Iterator[Baleen]:
    with temporary_directory() as directory, Baleen.started(directory) as running:
        yield running


def audit(baleen: Baleen) -> Report:
    with compose_scheduler.open_audit(baleen.settings) as parts:
        return Audit(parts.connections, parts.store, parts.presence, AGES).run()


def missing(baleen: Baleen) -> float:
    """NaN while it is not known."""
    lines = baleen.api.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith("baleen_blobs_missing "))


def changes(baleen: Baleen, digest: str) -> list[str]:
    """What blob.lifecycle says of a blob, in order."""
    consumer = KafkaConsumer(bootstrap_servers=baleen.settings.kafka_bootstrap, enable_auto_commit=False)
    try:
        partitions = [TopicPartition(LIFECYCLE, number) for number in consumer.partitions_for_topic(LIFECYCLE) or ()]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        found: list[Any] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=200).values():
                found += [json.loads(record.value) for record in records]
    finally:
        consumer.close()
    return [record["change"] for record in found if record["digest"] == digest]


def test_bytes_that_vanish(baleen: Baleen) -> None:
    """A layer whose bytes are gone is missing until it is pushed again; other layers are not."""
    pod = baleen.add_pod("vanish")
    layer, other = make_layer("lost", 20_000), make_layer("kept", 20_000)
    image = make_image("image", [layer, other])
    app = f"{pod.name}/app"
    with RegistryClient(baleen.registry(DistributionRegistry, pod).url, timeout=20) as client:
        client.push_image(app, image, "v1")
        baleen.agree()
        whole = audit(baleen)
        assert whole.is_healthy
        assert whole.orphans.count == whole.odd_keys.count == 0
        baleen.store.delete(blob_key(parse_digest(layer.digest)))
        with pytest.raises(RegistryNotFoundError):
            client.get_blob(app, layer.digest)
        report = audit(baleen)
        assert [example["digest"] for example in report.missing.examples] == [layer.digest]
        assert not report.is_healthy
        assert baleen.blob(layer.digest)["state"] == "missing"
        assert baleen.blob(other.digest)["state"] == "live"
        eventually(lambda: missing(baleen) == 1)
        client.push_image(app, image, "v2")
        assert client.get_blob(app, layer.digest) == layer.content
        # The scheduler sees the bytes again by itself.
        eventually(lambda: baleen.blob(layer.digest)["state"] == "live")
        eventually(lambda: missing(baleen) == 0)
        eventually(lambda: changes(baleen, layer.digest) == ["missing", "live"], lambda: changes(baleen, layer.digest))
        assert changes(baleen, other.digest) == []
        assert audit(baleen).is_healthy
        baleen.agree()
