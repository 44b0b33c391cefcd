"""Find the offset at which each partition continues: the table's progress, if the log is still the applied one.

Route: Faust assigns partitions -> `Positions.find_offsets` -> domain/progress.py decides -> progress and gaps are
written before the first record is read. Repeated when a chunk does not begin at the progress, and at intervals.
Blocking: call it from a thread. Not here: Faust (transport.py).
"""

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.progress import LogState, Position, Progress, decide_position
from coordinator.errors import NotFoundError
from coordinator.kafka.log import LogInspector, TopicState
from coordinator.table import progress

log = structlog.get_logger()

Partition = tuple[str, int]


class Positions:
    def __init__(self, connections: Connections, inspector: LogInspector) -> None:
        self._connections = connections
        self._inspector = inspector
        #: Offset and fingerprint of an applied record of each partition at the last check. They reveal a log that was
        #: replaced and then read on from the old one's offset.
        self._anchors: dict[Partition, tuple[int, int]] = {}

    def find_offsets(self, partitions: list[Partition]) -> dict[Partition, int]:
        """Return the offset at which each partition continues; records a gap if events may be lost.

        Raises UnavailableError or NotFoundError: then nothing may be read.
        """
        # The log is read last: records that are applied meanwhile only make it longer than the known progress.
        with self._connections.use() as connection:
            known = progress.read_progress(connection, partitions)
        states = {topic: self._inspector.read_state(topic) for topic in {topic for topic, _ in partitions}}
        return {at: self._find_offset(at, known.get(at), states[at[0]]) for at in partitions}

    def has_none_between(self, partition: Partition, start: int, end: int) -> bool:
        """Whether no record has an offset from start to before end: transactions leave offsets without one."""
        topic, number = partition
        return self._inspector.first_offset(topic, number, start) == end

    def _find_offset(self, partition: Partition, known: Progress | None, state: TopicState) -> int:
        while True:
            position = decide_position(known, self._read_log_state(partition, state, known))
            if position.gap is None and position.progress == known:
                break
            with self._connections.use() as connection:
                if progress.set_position(connection, partition, known, position):
                    self._report_step(partition, position)
                    break
                # Another worker changed the progress between reading and writing.
                known = progress.read_progress(connection, [partition]).get(partition)
            state = self._inspector.read_state(partition[0])
        self._remember(partition, position.progress)
        return position.progress.next_offset

    def _remember(self, partition: Partition, stands: Progress) -> None:
        if stands.fingerprint is None:
            self._anchors.pop(partition, None)
        else:
            self._anchors[partition] = (stands.next_offset - 1, stands.fingerprint)

    def _read_log_state(self, partition: Partition, state: TopicState, known: Progress | None) -> LogState:
        topic, number = partition
        if number not in state.partitions:
            raise NotFoundError(
                f"Kafka no longer has partition {number} of {topic}: check whether the topic was created again."
            )
        offsets = state.partitions[number]
        fingerprint = None
        if known is not None and known.fingerprint is not None:
            last = known.next_offset - 1
            fingerprint = self._inspector.read_fingerprint(topic, number, last)
            anchor, mark = self._anchors.get(partition, (last, fingerprint))
            if anchor != last and self._inspector.read_fingerprint(topic, number, anchor) != mark:
                fingerprint = None
            if fingerprint is None:
                # Retention may have removed records since: missing records prove nothing.
                offsets = self._inspector.read_state(topic).partitions[number]
                if anchor < offsets.earliest <= last:
                    fingerprint = self._inspector.read_fingerprint(topic, number, last)
        topic_id = None if state.topic_id is None else str(state.topic_id)
        return LogState(offsets.earliest, offsets.latest, topic_id, fingerprint)

    def _report_step(self, partition: Partition, position: Position) -> None:
        topic, number = partition
        if position.gap is not None:
            log.error(
                "gap",
                topic=topic,
                partition=number,
                reason=position.gap.reason.value,
                from_offset=position.gap.from_offset,
                to_offset=position.gap.to_offset,
                action="events may be lost and GC is blocked: reconcile the pods",
            )
