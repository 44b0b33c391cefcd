"""Create Baleen's topics, and verify that the broker stores them as safely as Baleen needs.

Route: `ensure_topics(settings)` creates missing topics and reports wrong ones, each with the command that fixes it. It
changes no existing topic: a changed partition count would send a repository's later events to another partition than
its earlier ones, and the order between them would be lost.
Not here: reading a topic's records or offsets (log.py).
"""

from typing import Any, Final, NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import IncompatibleBrokerVersion, KafkaError, TopicAlreadyExistsError

from coordinator.errors import NotFoundError, UnavailableError
from coordinator.kafka.connection import client_arguments, security_hint
from coordinator.settings import Settings

EVENTS: Final = "registry.events"
DEAD_LETTERS: Final = "registry.dead-letters"
LIFECYCLE: Final = "blob.lifecycle"

#: A recorded event is a little longer than the posted one (names of fields, numbers written out), and so is each of
#: its references; this is more than the largest difference.
RECORD_MARGIN: Final = 1024 * 1024
#: A dead letter's payload is at most 64 KiB of text, which may be six times as long in JSON.
SMALL_RECORD: Final = 1024 * 1024
#: Operators resolve dead letters, and other systems consume lifecycle records: both may take long.
#: Records are removed by age, never compacted: each change matters, also if a later one undoes it.
LONG_RETENTION: Final = 30 * 24 * 3600.0
TIMEOUT_MS: Final = 10_000

#: For these a higher value is also right; for the others only the exact value is.
_AT_LEAST_SETTINGS: Final = frozenset({"retention.ms", "retention.bytes", "min.insync.replicas", "max.message.bytes"})


class TopicSpec(NamedTuple):
    """The specification of a topic."""

    name: str
    partitions: int
    configs: dict[str, str]


class TopicProblem(NamedTuple):
    """A problem of a topic: one sentence, and the fix."""

    problem: str
    fix: str


class TopicReport(NamedTuple):
    """What was found and done about one topic. `unverified` names what the broker does not report."""

    name: str
    created: bool
    partitions: int
    replication: int
    findings: tuple[TopicProblem, ...]
    unverified: tuple[str, ...] = ()


def largest_event_bytes(settings: Settings) -> int:
    """Bytes of the largest record that ingest writes to registry.events."""
    return settings.ingest_body_limit + RECORD_MARGIN


def safe_replication(brokers: int) -> tuple[int, int]:
    """Return the replication factor and `min.insync.replicas` for a number of brokers.

    With three brokers, one may fail and writing continues. With two, both must have each record: while one is away
    ingest answers 503 and registries wait. A `min.insync.replicas` of one would acknowledge a record that only a single
    disk holds, and losing an acknowledged record can cost a live blob.
    """
    replication = max(1, min(brokers, 3))
    return replication, min(replication, 2)


def topic_specs(settings: Settings, brokers: int) -> list[TopicSpec]:
    """Return every topic of Baleen, for a cluster of this many brokers."""
    retention = float(settings.kafka_retention)
    long_retention = max(LONG_RETENTION, 4 * retention)
    common = {
        "cleanup.policy": "delete",
        # Records are removed by age only: a bound on bytes would remove records that are not applied yet.
        "retention.bytes": "-1",
        "min.insync.replicas": str(safe_replication(brokers)[1]),
        # A lagging replica must not become the leader: it lacks acknowledged records.
        "unclean.leader.election.enable": "false",
    }
    return [
        TopicSpec(
            name,
            settings.kafka_partitions,
            common | {"retention.ms": str(round(kept * 1000)), "max.message.bytes": str(largest)},
        )
        for name, kept, largest in (
            (EVENTS, retention, largest_event_bytes(settings)),
            (DEAD_LETTERS, long_retention, SMALL_RECORD),
            (LIFECYCLE, long_retention, SMALL_RECORD),
        )
    ]


class _Cluster(NamedTuple):
    brokers: int
    server: str


def ensure_topics(settings: Settings, timeout_ms: int = TIMEOUT_MS) -> list[TopicReport]:
    """Create the topics that are missing and verify the others; raises UnavailableError."""
    return _report_topics(settings, timeout_ms, create=True)


def verify_topics(settings: Settings) -> list[TopicReport]:
    """Verify the topics without changing anything; raises NotFoundError if one is missing, and UnavailableError."""
    return _report_topics(settings, TIMEOUT_MS, create=False)


def _report_topics(settings: Settings, timeout_ms: int, *, create: bool) -> list[TopicReport]:
    try:
        admin = KafkaAdminClient(
            **client_arguments(settings), request_timeout_ms=timeout_ms, bootstrap_timeout_ms=timeout_ms
        )
    except KafkaError as error:
        raise UnavailableError(
            f"Kafka does not answer at {settings.kafka_bootstrap} ({type(error).__name__}): start it, or check "
            f"BALEEN_KAFKA_BOOTSTRAP.{security_hint(settings)}"
        ) from error
    try:
        cluster = _Cluster(_count_brokers(admin), (settings.kafka_bootstrap or "").partition(",")[0])
        specs = topic_specs(settings, cluster.brokers)
        existing = set(admin.list_topics())
        missing = [spec for spec in specs if spec.name not in existing]
        if missing and not create:
            raise NotFoundError(f"Kafka has no topic {missing[0].name}: create it with `baleen topics create`.")
        _create_topics(admin, missing, cluster.brokers)
        created = {spec.name for spec in missing}
        described = {topic["name"]: topic for topic in admin.describe_topics([spec.name for spec in specs])}
        return [_verify_topic(admin, spec, described[spec.name], created, cluster) for spec in specs]
    except KafkaError as error:
        raise UnavailableError(f"Kafka refused to create or describe the topics: {error}.") from error
    finally:
        admin.close()


def _count_brokers(admin: KafkaAdminClient) -> int:
    # The public describe_cluster() of kafka-python 3.0 fails on brokers that support only the first version of
    # that request (Apache Kafka before 3.7, the embedded broker), so the brokers are read from the metadata.
    return len(admin._manager.cluster.brokers())  # noqa: SLF001


def _create_topics(admin: KafkaAdminClient, missing: list[TopicSpec], brokers: int) -> None:
    for spec in missing:
        topic = {
            "num_partitions": spec.partitions,
            "replication_factor": safe_replication(brokers)[0],
            "configs": spec.configs,
        }
        try:
            admin.create_topics({spec.name: topic}, timeout_ms=TIMEOUT_MS)
        except TopicAlreadyExistsError:
            continue  # another process created it, with the same specification
    if missing:
        admin.wait_for_topics([spec.name for spec in missing], timeout_ms=TIMEOUT_MS)


def _verify_topic(
    admin: KafkaAdminClient, spec: TopicSpec, topic: dict[str, Any], created: set[str], cluster: _Cluster
) -> TopicReport:
    partitions = len(topic["partitions"])
    replication = min((len(partition["replica_nodes"]) for partition in topic["partitions"]), default=0)
    findings = []
    if partitions != spec.partitions:
        problem = f"{spec.name} has {partitions} partitions, and {spec.partitions} are configured."
        fix = (
            f"Set BALEEN_KAFKA_PARTITIONS={partitions}. Do not change the topic: that moves repositories between "
            "partitions, and later events could be applied before earlier ones."
        )
        findings.append(TopicProblem(problem, fix))
    if replication < safe_replication(cluster.brokers)[0]:
        problem = f"{spec.name} has {replication} replicas, and {cluster.brokers} brokers allow more."
        fix = (
            f"kafka-reassign-partitions.sh --bootstrap-server {cluster.server} --execute --reassignment-json-file FILE"
        )
        findings.append(TopicProblem(problem, fix))
    configs = _read_configs(admin, spec.name)
    unverified = tuple(name for name in spec.configs if name not in configs)
    for name, wanted in spec.configs.items():
        if name in configs and not _suffices(name, configs[name], wanted):
            problem = f"{spec.name} has {name}={configs[name]}, and {wanted} is needed."
            fix = (
                f"kafka-configs.sh --bootstrap-server {cluster.server} --alter --entity-type topics "
                f"--entity-name {spec.name} --add-config {name}={wanted}"
            )
            findings.append(TopicProblem(problem, fix))
    return TopicReport(spec.name, spec.name in created, partitions, replication, tuple(findings), unverified)


def _read_configs(admin: KafkaAdminClient, topic: str) -> dict[str, str]:
    """Return the topic's configuration; empty if the broker does not support the request."""
    try:
        answer = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    except (IncompatibleBrokerVersion, NotImplementedError):
        return {}
    values = answer.get("topic", {}).get(topic, {})
    return {name: value["value"] for name, value in values.items() if value["value"] is not None}


def _suffices(name: str, value: str, wanted: str) -> bool:
    if name not in _AT_LEAST_SETTINGS:
        return value == wanted
    # -1 means no limit, which is more than any number.
    return value == "-1" or (wanted != "-1" and int(value) >= int(wanted))
