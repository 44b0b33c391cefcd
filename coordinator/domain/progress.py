"""Decide whether a partition's log is still the one that was applied, and where to continue in it.

Kafka's offsets are unique only within one log: after a topic was deleted and created again, or a broker lost its tail,
other records get the same offsets. Retention removes records that were never applied. Each is detected here and is a
*gap*: events may be lost, so pods must be reconciled before garbage collection.

Route: workers/position.py asks the broker (`LogState`) and the table (`Progress`) -> `decide_position` -> `Position`.
Invariant: where the log cannot be proved to be the same, the answer is a gap.
"""

from enum import StrEnum
from typing import NamedTuple


class GapReason(StrEnum):
    #: Other records are at the offsets of applied ones, or fewer records than were applied.
    LOG_REPLACED = "log-replaced"
    #: Retention removed records before they were applied.
    RECORDS_REMOVED = "records-removed"
    #: The broker was killed, and it acknowledges records before it stores them.
    LOG_CUT = "log-cut"
    #: An operator discarded a dead letter, which may have reported something that the pod has.
    DISCARDED = "discarded"
    #: A rename and other events about its repositories came in an order that may leave things under the wrong name.
    RENAMED = "renamed"
    #: A prefix was added to a pod: what the pod stored there before is not known.
    PREFIX_ADDED = "prefix-added"
    #: An operator retired a registry process: what it had not delivered is lost.
    RETIRED = "retired"
    #: A registry process ended and began again under the same instance id: what it had not delivered is lost.
    RESTARTED = "restarted"
    #: A pod sent more dead letters than its limit.
    DEAD_LETTERS_OVER_LIMIT = "dead-letters-over-limit"


class Progress(NamedTuple):
    """How far a partition is applied."""

    next_offset: int
    #: Of the record at next_offset - 1; None if none was applied since the log began at this offset.
    fingerprint: int | None
    topic_id: str | None


class LogState(NamedTuple):
    """A partition's state at the broker. `latest` is the offset that the next record will get."""

    earliest: int
    latest: int
    #: None if the broker has no topic ids.
    topic_id: str | None
    #: Of the record at the progress's next_offset - 1; None if there is no record there.
    fingerprint: int | None


class GapFound(NamedTuple):
    """Events of these offsets may be lost: from_offset <= lost < to_offset; None where it is not known."""

    reason: GapReason
    from_offset: int
    to_offset: int | None


class Position(NamedTuple):
    """Where to continue, and what may be lost before it."""

    progress: Progress
    gap: GapFound | None


def decide_position(progress: Progress | None, log: LogState) -> Position:
    """Decide where to continue in a partition's log."""
    if progress is None:
        return _position_from(log, 0)
    if _is_replaced(progress, log):
        # The whole new log is read: records that were applied before change nothing.
        gap = GapFound(GapReason.LOG_REPLACED, progress.next_offset, None)
        return Position(Progress(log.earliest, None, log.topic_id), gap)
    if log.earliest > progress.next_offset:
        return _position_from(log, progress.next_offset)
    return Position(progress._replace(topic_id=log.topic_id or progress.topic_id), None)


def _position_from(log: LogState, expected: int) -> Position:
    gap = GapFound(GapReason.RECORDS_REMOVED, expected, log.earliest) if log.earliest > expected else None
    return Position(Progress(log.earliest, None, log.topic_id), gap)


def _is_replaced(progress: Progress, log: LogState) -> bool:
    if progress.topic_id and log.topic_id and progress.topic_id != log.topic_id:
        return True
    if log.latest < progress.next_offset:
        return True
    if progress.fingerprint is None:
        # The log began here when it was first read, and a log's beginning never moves back.
        return log.earliest < progress.next_offset
    last = progress.next_offset - 1
    # The record at the last applied offset must be the one that was applied.
    return last >= log.earliest and log.fingerprint != progress.fingerprint
