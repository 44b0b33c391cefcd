"""Which topics there are, and whether the broker keeps them as safely as Baleen needs.

Route: `ensure_topics(settings)` creates what is missing, and reports, with the command that mends it, what is
not as it should be. It changes nothing that exists: a changed partition count would send a repository's
later events to another partition than its earlier ones, and the order between them would be lost.
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

#: A recorded event is a little longer than as it was sent (names of fields, numbers written out), for each
#: of its references too; this is more than the largest difference.
RECORD_MARGIN: Final = 1024 * 1024
#: A dead letter's payload is at most 64 KiB of text, which JSON may write six times as long.
SMALL_RECORD: Final = 1024 * 1024
#: People settle dead letters, and consumers of lifecycle records belong to others: both may be away for long.
#: Records are removed by age, never compacted: each change is news, also when a later one undoes it.
LONG_RETENTION: Final = 30 * 24 * 3600.0
TIMEOUT_MS: Final = 10_000

#: More of these is as good; of the others only the value itself is.
_AT_LEAST: Final = frozenset({"retention.ms", "retention.bytes", "min.insync.replicas", "max.message.bytes"})


class TopicSpec(NamedTuple):
    """A topic as Baleen wants it."""

    name: str
    partitions: int
    configs: dict[str, str]


class Finding(NamedTuple):
    """Something about a topic that is not as it should be: one sentence, and what mends it."""

    problem: str
    mend: str


class TopicReport(NamedTuple):
    """What was found and done about one topic. `unverified` names what the broker did not tell."""

    name: str
    created: bool
    partitions: int
    replication: int
    findings: tuple[Finding, ...]
    unverified: tuple[str, ...] = ()


def largest_event(settings: Settings) -> int:
    """Bytes of the largest record that ingest writes to registry.events."""
    return settings.ingest_body_limit + RECORD_MARGIN


def safe_replication(brokers: int) -> tuple[int, int]:
    """Return the replication factor and `min.insync.replicas` for so many brokers.

    With three, one may be lost and writing goes on. With two, both must have each record: while one is away
    ingest answers 503 and registries wait, where `min.insync.replicas` of one would acknowledge a record
    that a single disk holds, and an acknowledged record that is lost can cost a live blob.
    """
    replication = max(1, min(brokers, 3))
    return replication, min(replication, 2)


def topic_specs(settings: Settings, brokers: int) -> list[TopicSpec]:
    """Every topic of Baleen, for a cluster of so many brokers."""
    retention = float(settings.kafka_retention)
    long_retention = max(LONG_RETENTION, 4 * retention)
    common = {
        "cleanup.policy": "delete",
        # Records go by age alone: a bound on bytes would remove records that are not applied yet.
        "retention.bytes": "-1",
        "min.insync.replicas": str(safe_replication(brokers)[1]),
        # A replica that lags may not become the leader: it lacks acknowledged records.
        "unclean.leader.election.enable": "false",
    }
    return [
        TopicSpec(
            name,
            settings.kafka_partitions,
            common | {"retention.ms": str(round(kept * 1000)), "max.message.bytes": str(largest)},
        )
        for name, kept, largest in (
            (EVENTS, retention, largest_event(settings)),
            (DEAD_LETTERS, long_retention, SMALL_RECORD),
            (LIFECYCLE, long_retention, SMALL_RECORD),
        )
    ]


class _Cluster(NamedTuple):
    brokers: int
    server: str


def ensure_topics(settings: Settings) -> list[TopicReport]:
    """Create the topics that are missing and verify the others; raises UnavailableError."""
    return _reports(settings, create=True)


def verify_topics(settings: Settings) -> list[TopicReport]:
    """Verify the topics, and change nothing; raises NotFoundError if one is missing, and UnavailableError."""
    return _reports(settings, create=False)


def _reports(settings: Settings, *, create: bool) -> list[TopicReport]:
    try:
        admin = KafkaAdminClient(
            **client_arguments(settings), request_timeout_ms=TIMEOUT_MS, bootstrap_timeout_ms=TIMEOUT_MS
        )
    except KafkaError as error:
        raise UnavailableError(
            f"Kafka does not answer at {settings.kafka_bootstrap} ({type(error).__name__}): start it, or check "
            f"BALEEN_KAFKA_BOOTSTRAP.{security_hint(settings)}"
        ) from error
    try:
        cluster = _Cluster(_broker_count(admin), (settings.kafka_bootstrap or "").partition(",")[0])
        specs = topic_specs(settings, cluster.brokers)
        created = _create_missing(admin, specs, cluster.brokers) if create else _demand(admin, specs)
        described = {topic["name"]: topic for topic in admin.describe_topics([spec.name for spec in specs])}
        return [_verify(admin, spec, described[spec.name], created, cluster) for spec in specs]
    except KafkaError as error:
        raise UnavailableError(f"Kafka refused to create or describe the topics: {error}.") from error
    finally:
        admin.close()


def _broker_count(admin: KafkaAdminClient) -> int:
    # The public describe_cluster() of kafka-python 3.0 fails on brokers that speak only the first version of
    # that request (Apache Kafka before 3.7, the embedded broker); these brokers are from its metadata.
    return len(admin._manager.cluster.brokers())  # noqa: SLF001


def _create_missing(admin: KafkaAdminClient, specs: list[TopicSpec], brokers: int) -> set[str]:
    existing = set(admin.list_topics())
    missing = [spec for spec in specs if spec.name not in existing]
    for spec in missing:
        topic = {
            "num_partitions": spec.partitions,
            "replication_factor": safe_replication(brokers)[0],
            "configs": spec.configs,
        }
        try:
            admin.create_topics({spec.name: topic}, timeout_ms=TIMEOUT_MS)
        except TopicAlreadyExistsError:
            continue  # another process was faster, with the same specification
    if missing:
        admin.wait_for_topics([spec.name for spec in missing], timeout_ms=TIMEOUT_MS)
    return {spec.name for spec in missing}


def _demand(admin: KafkaAdminClient, specs: list[TopicSpec]) -> set[str]:
    """Raise NotFoundError if a topic is missing; none was created."""
    existing = set(admin.list_topics())
    for spec in specs:
        if spec.name not in existing:
            raise NotFoundError(f"Kafka has no topic {spec.name}: create it with `baleen topics create`.")
    return set()


def _verify(
    admin: KafkaAdminClient, spec: TopicSpec, topic: dict[str, Any], created: set[str], cluster: _Cluster
) -> TopicReport:
    partitions = len(topic["partitions"])
    replication = min((len(partition["replica_nodes"]) for partition in topic["partitions"]), default=0)
    findings = []
    if partitions != spec.partitions:
        problem = f"{spec.name} has {partitions} partitions, and {spec.partitions} are configured."
        mend = (
            f"Set BALEEN_KAFKA_PARTITIONS={partitions}: to change the topic instead would move repositories "
            "between partitions, and their later events could be applied before their earlier ones."
        )
        findings.append(Finding(problem, mend))
    if replication < safe_replication(cluster.brokers)[0]:
        problem = f"{spec.name} has {replication} replicas, and {cluster.brokers} brokers can keep more."
        mend = (
            f"kafka-reassign-partitions.sh --bootstrap-server {cluster.server} --execute --reassignment-json-file FILE"
        )
        findings.append(Finding(problem, mend))
    configs = _configs(admin, spec.name)
    unverified = tuple(name for name in spec.configs if name not in configs)
    for name, wanted in spec.configs.items():
        if name in configs and not _suffices(name, configs[name], wanted):
            problem = f"{spec.name} has {name}={configs[name]}, and {wanted} is needed."
            mend = (
                f"kafka-configs.sh --bootstrap-server {cluster.server} --alter --entity-type topics "
                f"--entity-name {spec.name} --add-config {name}={wanted}"
            )
            findings.append(Finding(problem, mend))
    return TopicReport(spec.name, spec.name in created, partitions, replication, tuple(findings), unverified)


def _configs(admin: KafkaAdminClient, topic: str) -> dict[str, str]:
    """What the broker says of the topic's configuration; nothing where it does not know the question."""
    try:
        answer = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    except (IncompatibleBrokerVersion, NotImplementedError):
        return {}
    values = answer.get("topic", {}).get(topic, {})
    return {name: value["value"] for name, value in values.items() if value["value"] is not None}


def _suffices(name: str, value: str, wanted: str) -> bool:
    if name not in _AT_LEAST:
        return value == wanted
    # -1 stands for without limit, which is more than any number.
    return value == "-1" or (wanted != "-1" and int(value) >= int(wanted))
