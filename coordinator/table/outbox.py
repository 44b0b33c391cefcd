"""Publish changes of blobs' states from the outbox in the database to the topic blob.lifecycle.

Route: the scheduler (workers/scheduler.py), every second -> `publish_outbox` -> the oldest changes -> Kafka
acknowledges them, and they are deleted. The changes of a digest are published in order, and once: if a process ends
between the acknowledgement and the delete, the next one finds the records in Kafka (kafka/lifecycle.py).
"""

from coordinator.db.connection import Connections
from coordinator.domain.names import format_digest
from coordinator.kafka.lifecycle import TAIL_RECORDS, LifecycleProducer
from coordinator.table import lifecycle
from coordinator.table.lifecycle import UnpublishedChange
from schemas.records import BlobLifecycle

#: Changes that one transaction publishes.
BATCH_SIZE = TAIL_RECORDS


def publish_outbox(connections: Connections, producer: LifecycleProducer, batch: int = BATCH_SIZE) -> int:
    """Publish all changes in the outbox; return how many. Raises UnavailableError, and the rest stays there."""
    published = 0
    while True:
        with connections.use() as connection, lifecycle.take_from_outbox(connection, batch) as changes:
            if changes:
                producer.publish([_make_record(change) for change in changes])
        published += len(changes)
        if len(changes) < batch:
            return published


def _make_record(change: UnpublishedChange) -> BlobLifecycle:
    return BlobLifecycle(
        id=change.id,
        digest=format_digest(change.digest),
        change=change.change,  # type: ignore[arg-type]  # the writers know the names
        at=change.at,
        reference_count=change.reference_count,
        link_count=change.link_count,
    )
