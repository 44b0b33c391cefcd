"""Tell the world what happened to blobs: from the outbox in the database to the topic blob.lifecycle.

Route: the scheduler (workers/scheduler.py), every second -> `publish_waiting` -> the oldest changes -> Kafka has them,
and they are deleted. In the order in which they happened for each digest, and once: what a process told that ended
between the acknowledgement and the delete is found in Kafka by the next (kafka/lifecycle.py).
"""

from coordinator.db.connection import Connections
from coordinator.domain.names import format_digest
from coordinator.kafka.lifecycle import TAIL, LifecycleProducer
from coordinator.table import lifecycle
from coordinator.table.lifecycle import Change
from schemas.records import BlobLifecycle

#: Changes that one transaction tells.
BATCH = TAIL


def publish_waiting(connections: Connections, producer: LifecycleProducer) -> int:
    """Tell all that waits; return how many changes that were. Raises UnavailableError, with the rest waiting."""
    told = 0
    while True:
        with connections.use() as connection, lifecycle.outbox(connection, BATCH) as changes:
            if changes:
                producer.publish([_record(change) for change in changes])
        told += len(changes)
        if len(changes) < BATCH:
            return told


def _record(change: Change) -> BlobLifecycle:
    return BlobLifecycle(
        id=change.id,
        digest=format_digest(change.digest),
        change=change.change,  # type: ignore[arg-type]  # the writers know the names
        at=change.at,
        reference_count=change.reference_count,
        link_count=change.link_count,
    )
