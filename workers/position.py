"""Where each partition goes on: from the table's progress, if the log is still the one that was applied.

Route: Faust assigns partitions -> `Positions.of` -> domain/progress.py decides -> progress and gaps are written before
the first record is read. Also asked again when a chunk does not begin where the progress stands, and at intervals.
Blocking: call it from a thread. Not here: Faust (transport.py).
"""

import structlog

from coordinator.db import progress
from coordinator.db.connection import Connections
from coordinator.domain.progress import LogState, Position, Progress, inspect
from coordinator.ingest.log import LogInspector, TopicState

log = structlog.get_logger()

Partition = tuple[str, int]

#: A hole longer than this is not looked through offset by offset, and so never passed over.
MARKERS_LIMIT = 64


class Positions:
    def __init__(self, connections: Connections, inspector: LogInspector) -> None:
        self._connections = connections
        self._inspector = inspector

    def of(self, partitions: list[Partition]) -> dict[Partition, int]:
        """Return the offset at which each partition goes on; a gap on the way there is recorded.

        Raises UnavailableError or NotFoundError: then nothing may be read.
        """
        states = {topic: self._inspector.state(topic) for topic in {topic for topic, _ in partitions}}
        return {partition: self._of(partition, states[partition[0]]) for partition in partitions}

    def nothing_between(self, partition: Partition, start: int, end: int) -> bool:
        """Whether no record has an offset from start to before end: transaction markers take offsets too."""
        topic, number = partition
        return end - start <= MARKERS_LIMIT and all(
            self._inspector.fingerprint(topic, number, offset) is None for offset in range(start, end)
        )

    def _of(self, partition: Partition, state: TopicState) -> int:
        while True:
            with self._connections.use() as connection:
                known = progress.read(connection, [partition]).get(partition)
            position = inspect(known, self._log_state(partition, state, known))
            if position.gap is None and position.progress == known:
                return position.progress.next_offset
            with self._connections.use() as connection:
                if progress.move(connection, partition, known, position):
                    self._tell(partition, position)
                    return position.progress.next_offset
            # Another worker moved it between the reading and the writing.
            state = self._inspector.state(partition[0])

    def _log_state(self, partition: Partition, state: TopicState, known: Progress | None) -> LogState:
        topic, number = partition
        offsets = state.partitions[number]
        fingerprint = None
        if known is not None and known.fingerprint is not None and known.next_offset > offsets.earliest:
            fingerprint = self._inspector.fingerprint(topic, number, known.next_offset - 1)
        topic_id = None if state.topic_id is None else str(state.topic_id)
        return LogState(offsets.earliest, offsets.latest, topic_id, fingerprint)

    def _tell(self, partition: Partition, position: Position) -> None:
        topic, number = partition
        if position.gap is not None:
            log.error(
                "gap",
                topic=topic,
                partition=number,
                reason=position.gap.reason.value,
                from_offset=position.gap.from_offset,
                to_offset=position.gap.to_offset,
                action="events may be lost: reconcile the pods; garbage collection holds until then",
            )
