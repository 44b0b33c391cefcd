"""Topics and their logs, on the embedded broker and on Apache Kafka."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from coordinator.errors import NotFoundError, UnavailableError
from coordinator.kafka.connection import client_arguments
from coordinator.kafka.log import LogInspector, Offsets, fingerprint_of
from coordinator.kafka.topics import EVENTS, ensure_topics, safe_replication, topic_specs
from coordinator.settings import Settings, make_settings
from tests.support.wait import eventually

SPECIMEN = "log-of-test-topics"


@pytest.fixture(params=["broker", pytest.param("apache_kafka", marks=pytest.mark.kafka)])
def bootstrap(request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def admin(bootstrap: str) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    yield admin
    if SPECIMEN in admin.list_topics():
        admin.delete_topics([SPECIMEN])
        eventually(lambda: SPECIMEN not in admin.list_topics())
    admin.close()


@pytest.fixture
def inspector(bootstrap: str) -> Iterator[LogInspector]:
    with LogInspector(make_settings({"kafka_bootstrap": bootstrap})) as inspector:
        yield inspector


def make(admin: KafkaAdminClient, partitions: int = 1) -> None:
    admin.create_topics({SPECIMEN: {"num_partitions": partitions, "replication_factor": 1}})
    admin.wait_for_topics([SPECIMEN])


def write(bootstrap: str, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        producer.send(SPECIMEN, value, key=b"k", partition=0).get(20)
    producer.close()


def settings_of(bootstrap: str, **values: object) -> Settings:
    return make_settings({"kafka_bootstrap": bootstrap, "kafka_partitions": 4, **values})


def test_topics_are_made_once(bootstrap: str) -> None:
    """Topics are created as specified, and found in order the next time."""
    ensure_topics(settings_of(bootstrap))
    reports = ensure_topics(settings_of(bootstrap))
    names = ["registry.events", "registry.dead-letters", "blob.lifecycle"]
    assert [report.name for report in reports] == names
    for report in reports:
        assert (report.created, report.partitions, report.replication) == (False, 4, 1)
        assert (report.findings, report.unverified) == ((), ())


def test_differences_are_reported_and_not_changed(bootstrap: str) -> None:
    """Another partition count, retention or record size is a finding; nothing is changed."""
    ensure_topics(settings_of(bootstrap))
    other = settings_of(bootstrap, kafka_partitions=8, kafka_retention="90d", ingest_body_limit=16 * 1024 * 1024)
    for _ in range(2):
        report = ensure_topics(other)[0]
        assert (report.name, report.partitions) == (EVENTS, 4)
        problems = " ".join(finding.problem for finding in report.findings)
        assert len(report.findings) == 3
        for name in ("partitions", "retention.ms", "max.message.bytes"):
            assert name in problems
        assert "BALEEN_KAFKA_PARTITIONS=4" in report.findings[0].fix
        assert "--add-config retention.ms=7776000000" in report.findings[1].fix
    shorter = settings_of(bootstrap, kafka_retention="1d")
    assert ensure_topics(shorter)[0].findings == ()


def test_replication_never_acknowledges_what_one_disk_holds() -> None:
    """With more than one broker two must have a record before it is acknowledged."""
    assert [safe_replication(brokers) for brokers in (1, 2, 3, 9)] == [(1, 1), (2, 2), (3, 2), (3, 2)]
    specs = topic_specs(make_settings({"kafka_bootstrap": "x:1"}), brokers=3)
    assert {spec.configs["min.insync.replicas"] for spec in specs} == {"2"}
    assert {spec.configs["cleanup.policy"] for spec in specs} == {"delete"}


def test_offsets_and_fingerprints(bootstrap: str, admin: KafkaAdminClient, inspector: LogInspector) -> None:
    """Offsets are those of the log; a record has a fingerprint of its own; beyond the log there is none."""
    make(admin, partitions=2)
    write(bootstrap, b"a", b"b" * 200_000, b"a")
    assert inspector.read_state(SPECIMEN).partitions == {0: Offsets(0, 3), 1: Offsets(0, 0)}
    prints = [inspector.read_fingerprint(SPECIMEN, 0, offset) for offset in range(-1, 5)]
    assert prints[0] is prints[4] is prints[5] is None
    there = [found for found in prints[1:4] if found is not None]
    assert len(there) == 3
    assert there[0] != there[1] != there[2]
    assert all(-(2**63) <= found < 2**63 for found in there)
    assert inspector.read_fingerprint(SPECIMEN, 0, 1) == there[1]
    assert inspector.read_fingerprint(SPECIMEN, 1, 0) is None


def test_recreated_topic_is_recognised(bootstrap: str, admin: KafkaAdminClient, inspector: LogInspector) -> None:
    """A new topic with as many records has another id or at least other fingerprints."""
    make(admin)
    write(bootstrap, b"a", b"b")
    before = inspector.read_state(SPECIMEN), inspector.read_fingerprint(SPECIMEN, 0, 1)
    admin.delete_topics([SPECIMEN])
    eventually(lambda: SPECIMEN not in admin.list_topics())
    make(admin)
    time.sleep(0.002)  # not to wait for anything: a fingerprint tells records apart by their millisecond
    write(bootstrap, b"a", b"b")
    eventually(lambda: inspector.read_state(SPECIMEN).partitions == {0: Offsets(0, 2)})
    after = inspector.read_state(SPECIMEN)
    assert inspector.read_fingerprint(SPECIMEN, 0, 1) != before[1]
    assert (after.topic_id is None) == (before[0].topic_id is None)
    assert after.topic_id is None or after.topic_id != before[0].topic_id


def test_removed_records(bootstrap: str, admin: KafkaAdminClient, inspector: LogInspector) -> None:
    """What was removed from the log's beginning has no fingerprint, and shows in the earliest offset."""
    make(admin)
    write(bootstrap, b"a", b"b", b"c")
    kept = inspector.read_fingerprint(SPECIMEN, 0, 2)
    admin.delete_records({TopicPartition(SPECIMEN, 0): 2})
    eventually(lambda: inspector.read_state(SPECIMEN).partitions == {0: Offsets(2, 3)})
    assert inspector.read_fingerprint(SPECIMEN, 0, 1) is None
    assert inspector.read_fingerprint(SPECIMEN, 0, 2) == kept


def test_threads_share_an_inspector(bootstrap: str, admin: KafkaAdminClient, inspector: LogInspector) -> None:
    """An inspector that several threads use at once gives each its own answer."""
    make(admin)
    write(bootstrap, *(b"%d" % n for n in range(20)))
    alone = [inspector.read_fingerprint(SPECIMEN, 0, offset) for offset in range(20)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda offset: inspector.read_fingerprint(SPECIMEN, 0, offset), range(20)))
    assert together == alone
    assert len(set(alone)) == 20


def test_no_such_topic(inspector: LogInspector) -> None:
    """A missing topic is not found, and a look-up does not create it."""
    for _ in range(2):
        with pytest.raises(NotFoundError):
            inspector.read_state("never-made")


def test_kafka_away() -> None:
    """Without a broker every call ends in time, and reports that Kafka does not answer."""
    settings = make_settings({"kafka_bootstrap": "127.0.0.1:9"})
    with LogInspector(settings, timeout=0.3) as inspector:
        for ask in (lambda: inspector.read_state("t"), lambda: inspector.read_fingerprint("t", 0, 0)):
            with pytest.raises(UnavailableError):
                ask()


def test_topics_without_a_broker() -> None:
    """Without a broker no topic is created, and the error names what to check."""
    with pytest.raises(UnavailableError, match="start it, or check BALEEN_KAFKA_BOOTSTRAP"):
        ensure_topics(make_settings({"kafka_bootstrap": "127.0.0.1:9"}), timeout_ms=200)


def test_fingerprint_covers_all_of_a_record() -> None:
    """Time, key and value each change the fingerprint."""
    records = [(1, b"k", b"v"), (2, b"k", b"v"), (1, b"kv", b""), (1, b"", b"kv"), (1, None, b"kv"), (1, b"kv", None)]
    assert len({fingerprint_of(*record) for record in records}) == len(records)


def test_password_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Clients log their arguments at debug level, and the password is not among them."""
    login = {"kafka_sasl_username": "baleen", "kafka_sasl_password": "hunter2"}
    place = {"kafka_bootstrap": "127.0.0.1:9", "kafka_security_protocol": "SASL_PLAINTEXT"}
    arguments = client_arguments(make_settings(place | login))
    assert arguments["sasl_plain_password"] == "hunter2"
    with caplog.at_level("DEBUG"), pytest.raises(KafkaError):
        KafkaAdminClient(**arguments, bootstrap_timeout_ms=50)
    assert "sasl_plain_password" in caplog.text
    assert "hunter2" not in caplog.text


def test_asking_makes_no_topic(bootstrap: str, admin: KafkaAdminClient) -> None:
    """A deleted topic stays deleted, whatever an inspector knows about it."""
    make(admin)
    write(bootstrap, b"a")
    with LogInspector(make_settings({"kafka_bootstrap": bootstrap}), timeout=5) as inspector:
        assert inspector.read_fingerprint(SPECIMEN, 0, 0) is not None
        admin.delete_topics([SPECIMEN])
        eventually(lambda: SPECIMEN not in admin.list_topics())
        # What happens by itself now and then: the consumer looks at the cluster anew.
        assert inspector._consumer is not None
        cluster = inspector._consumer._client.cluster
        cluster.request_update()
        eventually(lambda: not cluster.partitions_for_topic(SPECIMEN))
        with pytest.raises(UnavailableError):
            inspector.read_fingerprint(SPECIMEN, 0, 0)
        with pytest.raises(NotFoundError):
            inspector.read_state(SPECIMEN)
    assert SPECIMEN not in admin.list_topics()
