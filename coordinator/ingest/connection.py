"""How Baleen connects to Kafka: addresses, TLS and SASL, once for both client libraries.

Not here: timeouts and what the clients do (topics.py, log.py, producer.py), Faust's connection (workers).
"""

import ssl
from typing import Any

from coordinator.errors import SettingsError
from coordinator.settings import Settings

PROTOCOLS = frozenset({"PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"})
MECHANISMS = frozenset({"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"})


class _HiddenText(str):
    """Clients log their configuration at debug level, by `repr`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(…)"


def bootstrap_servers(settings: Settings) -> list[str]:
    """Return the brokers to ask first; raises SettingsError where none is configured."""
    servers = [server.strip() for server in (settings.kafka_bootstrap or "").split(",") if server.strip()]
    if not servers:
        raise SettingsError("BALEEN_KAFKA_BOOTSTRAP is not set: name the Kafka brokers as host:port,host:port.")
    return servers


def client_arguments(settings: Settings) -> dict[str, Any]:
    """Keyword arguments that kafka-python and aiokafka both take, under the same names."""
    protocol = settings.kafka_security_protocol.upper()
    if protocol not in PROTOCOLS:
        raise SettingsError(f"BALEEN_KAFKA_SECURITY_PROTOCOL is not one of {', '.join(sorted(PROTOCOLS))}.")
    arguments: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(settings),
        "security_protocol": protocol,
        "client_id": "baleen",
    }
    if protocol.endswith("SSL"):
        arguments["ssl_context"] = _tls(settings.kafka_ca_file)
    if protocol.startswith("SASL"):
        arguments |= _sasl(settings)
    return arguments


def security_hint(settings: Settings) -> str:
    """What else to look at when brokers do not answer: clients do not always tell refusal from absence."""
    names = {
        "SSL": ("KAFKA_CA_FILE",),
        "SASL_SSL": ("KAFKA_CA_FILE", "KAFKA_SASL_…"),
        "SASL_PLAINTEXT": ("KAFKA_SASL_…",),
    }
    wanted = names.get(settings.kafka_security_protocol.upper())
    return f" Check {' and '.join(f'BALEEN_{name}' for name in wanted)}, too." if wanted else ""


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"BALEEN_KAFKA_CA_FILE {ca_file!r} cannot be read as certificates: {error}.") from error


def _sasl(settings: Settings) -> dict[str, Any]:
    mechanism = settings.kafka_sasl_mechanism.upper()
    if mechanism not in MECHANISMS:
        raise SettingsError(f"BALEEN_KAFKA_SASL_MECHANISM is not one of {', '.join(sorted(MECHANISMS))}.")
    if settings.kafka_sasl_username is None or settings.kafka_sasl_password is None:
        raise SettingsError("BALEEN_KAFKA_SASL_USERNAME and BALEEN_KAFKA_SASL_PASSWORD are both needed for SASL.")
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": _HiddenText(settings.kafka_sasl_password.reveal()),
    }
