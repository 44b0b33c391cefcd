"""Whether Kafka keeps what it acknowledged, on Apache Kafka."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from coordinator.doctor.kafka import check_kafka_durable
from coordinator.domain.findings import Finding, Result
from coordinator.kafka.log import LogInspector
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS, LIFECYCLE, ensure_topics
from coordinator.settings import Settings, make_settings
from tests.support.wait import eventually

pytestmark = pytest.mark.kafka


def examined(settings: Settings) -> Finding:
    with LogInspector(settings) as inspector:
        instruments = SimpleNamespace(settings=settings, inspector=inspector)
        return check_kafka_durable(cast("Any", SimpleNamespace(instruments=instruments, pod_facts=None)))


def delete_topics(admin: KafkaAdminClient) -> None:
    """Remove our topics from the broker."""

    def left() -> set[str]:
        return {EVENTS, DEAD_LETTERS, LIFECYCLE} & set(admin.list_topics())

    if topics := left():
        admin.delete_topics(list(topics))
    eventually(lambda: not left())


def test_apache_kafka(apache_kafka: str) -> None:
    """Topics as `topics create` makes them are proved; one with unclean leader election is refuted, with the fix."""
    settings = make_settings({"kafka_bootstrap": apache_kafka})
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka)
    name = "unclean.leader.election.enable"
    # Other tests on this broker make topics of their own kind.
    delete_topics(admin)
    try:
        ensure_topics(settings)
        assert examined(settings).result is Result.PROVED
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, EVENTS, {name: "true"})])
        # The broker is told of it after the controller.
        eventually(lambda: examined(settings).result is Result.REFUTED)
        found = examined(settings)
        assert f"--add-config {name}=false" in found.fix
    finally:
        delete_topics(admin)
        admin.close()
