"""Check that Kafka keeps what it has acknowledged."""

from collections.abc import Sequence

from coordinator.doctor.results import Part, make_finding, proved, refuted, unproved
from coordinator.doctor.visit import Visit
from coordinator.domain.findings import Check, Finding
from coordinator.kafka.topics import EVENTS, TopicReport, verify_topics

EMBEDDED = (
    "This broker is only for trying Baleen: it acknowledges events before it stores them, and may lose them without a "
    "trace. Baleen would never learn of the references in them, and would collect their blobs."
)
APACHE = (
    "Set BALEEN_KAFKA_BOOTSTRAP to an Apache Kafka, version 3 or 4, of three brokers, and run `baleen topics create`."
)


def check_kafka_durable(visit: Visit) -> Finding:
    """Check the topics' configuration, and that the broker would show a replaced log."""
    if visit.instruments.inspector.read_state(EVENTS).topic_id is None:
        part = refuted(
            "", "the broker gives topics no ids: it is Baleen's embedded broker, or an Apache Kafka before 2.8"
        )
        return make_finding(Check.KAFKA_DURABLE, [part], visit.pod_facts, meaning=EMBEDDED, fix=APACHE)
    reports = verify_topics(visit.instruments.settings)
    return make_finding(
        Check.KAFKA_DURABLE, [topic_part(report) for report in reports], visit.pod_facts, fix=join_fixes(reports)
    )


def topic_part(report: TopicReport) -> Part:
    if report.findings:
        return refuted("", " ".join(found.problem for found in report.findings))
    if report.unverified:
        return unproved(report.name, f"the broker does not show {', '.join(report.unverified)}")
    if report.replication == 1:
        return proved(report.name, "1 replica: acknowledged events are on one broker's disk, and lost with it")
    return proved(report.name, f"{report.replication} replicas, and the configuration that `baleen topics create` sets")


def join_fixes(reports: Sequence[TopicReport]) -> str | None:
    return "\n".join(found.fix for report in reports for found in report.findings) or None
