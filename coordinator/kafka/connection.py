"""Connection arguments for Kafka: addresses, TLS and SASL, the same for both client libraries.

Not here: timeouts and use of the clients (topics.py, log.py, producer.py), Faust's connection (workers).
"""

import ssl
from typing import Any

from kafka import KafkaConsumer

from coordinator.errors import SettingsError, UnconfiguredError
from coordinator.settings import Settings


class _HiddenText(str):
    """A string without a `repr`: clients log their configuration at debug level."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(…)"


def bootstrap_servers(settings: Settings) -> list[str]:
    """Return the bootstrap brokers; raises UnconfiguredError without any."""
    servers = [server.strip() for server in (settings.kafka_bootstrap or "").split(",") if server.strip()]
    if not servers:
        raise UnconfiguredError(
            "No Kafka is configured: start `baleen up` in this directory, or set BALEEN_KAFKA_BOOTSTRAP to host:port."
        )
    return servers


def client_arguments(settings: Settings) -> dict[str, Any]:
    """Return keyword arguments that kafka-python and aiokafka both take, under the same names."""
    protocol = settings.kafka_security_protocol
    arguments: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(settings),
        "security_protocol": protocol,
        "client_id": "baleen",
    }
    if protocol.endswith("SSL"):
        arguments["ssl_context"] = _tls_context(settings.kafka_ca_file)
    if protocol.startswith("SASL"):
        arguments |= _sasl_arguments(settings)
    return arguments


def make_consumer(arguments: dict[str, Any], timeout: float, **more: Any) -> KafkaConsumer:
    """Return a consumer in no group, which commits nothing and creates no topic. `timeout` in seconds."""
    consumer = KafkaConsumer(
        **arguments,
        **timeout_arguments(timeout),
        group_id=None,
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        **more,
    )
    # kafka-python 3.0 does not pass this argument on: the consumer's next metadata request would create a deleted topic
    # again, with one partition.
    consumer._client.cluster.config["allow_auto_create_topics"] = False  # noqa: SLF001
    return consumer


def timeout_arguments(timeout: float) -> dict[str, int]:
    milliseconds = round(timeout * 1000)
    return {"request_timeout_ms": milliseconds, "bootstrap_timeout_ms": milliseconds}


def security_hint(settings: Settings) -> str:
    """Return which settings to check when brokers do not answer: a refusal may look like silence."""
    names = {
        "SSL": ("KAFKA_CA_FILE",),
        "SASL_SSL": ("KAFKA_CA_FILE", "KAFKA_SASL_…"),
        "SASL_PLAINTEXT": ("KAFKA_SASL_…",),
    }
    wanted = names.get(settings.kafka_security_protocol)
    return f" Check {' and '.join(f'BALEEN_{name}' for name in wanted)}, too." if wanted else ""


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"BALEEN_KAFKA_CA_FILE {ca_file!r} cannot be read as certificates: {error}.") from error


def _sasl_arguments(settings: Settings) -> dict[str, Any]:
    if settings.kafka_sasl_username is None or settings.kafka_sasl_password is None:
        raise SettingsError("BALEEN_KAFKA_SASL_USERNAME and BALEEN_KAFKA_SASL_PASSWORD are both needed for SASL.")
    return {
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": _HiddenText(settings.kafka_sasl_password.reveal()),
    }
