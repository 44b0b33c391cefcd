"""All clients of Kafka use TLS with a password, and report if that is wrong."""

from __future__ import annotations

import pytest

from coordinator.errors import BaleenError
from coordinator.ingest.normalise import Accepted
from coordinator.kafka.topics import ensure_topics
from tests.services.apache_kafka import PASSWORD, USER, ApacheKafka
from tests.workers.harness import Log, Maker, Place, Table, assert_all_applied, digest_of, publish, worker

pytestmark = pytest.mark.kafka

MECHANISMS = ("PLAIN", "SCRAM-SHA-512")


def secured(place: Place, server: ApacheKafka, mechanism: str, password: str = PASSWORD) -> Place:
    return place.but(
        kafka_bootstrap=server.secured_address,
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism=mechanism,
        kafka_sasl_username=USER,
        kafka_sasl_password=password,
        kafka_ca_file=str(server.ca_file),
    )


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_whole_path_is_secured(kafka_place: Place, apache_kafka_server: ApacheKafka, mechanism: str) -> None:
    """Topics are verified, events published and applied, by TLS with either mechanism."""
    place = secured(kafka_place, apache_kafka_server, mechanism)
    assert all(not report.created for report in ensure_topics(place.settings()))
    maker, table = Maker(), Table(place.values["database_url"])
    publish(place.settings(), [Accepted(maker.manifest("pod-a/x", digest_of("m"), [digest_of("l")]))])
    with worker(place), Log(apache_kafka_server.bootstrap) as log:
        table.applied(log)
    assert_all_applied(table, maker)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_reported(kafka_place: Place, apache_kafka_server: ApacheKafka, mechanism: str) -> None:
    """The error names the settings to check, and does not contain the password."""
    place = secured(kafka_place, apache_kafka_server, mechanism, password="not-the-password")
    with pytest.raises(BaleenError) as refused:
        ensure_topics(place.settings())
    assert "not-the-password" not in str(refused.value)
    assert "KAFKA_SASL" in str(refused.value)


def test_a_certificate_that_nobody_vouches_for_is_refused(kafka_place: Place, apache_kafka_server: ApacheKafka) -> None:
    """Without the CA's file the broker's certificate is refused."""
    place = secured(kafka_place, apache_kafka_server, "PLAIN")
    values = {name: value for name, value in place.values.items() if name != "kafka_ca_file"}
    with pytest.raises(BaleenError):
        ensure_topics(Place(values).settings())
