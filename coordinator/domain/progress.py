"""Whether a partition's log is still the one that was applied, and where to go on in it.

Kafka numbers records per log, not for ever: a topic that was deleted and made again, or a broker that lost its tail,
begins to give the same offsets to other records; retention removes records that were never applied. Each
is noticed here, and is a *gap*: events may be lost, so pods must be reconciled before anything is collected.

Route: workers/position.py asks the broker (`LogState`) and the table (`Progress`) -> `inspect` -> `Position`.
Invariant: where the log cannot be proved to be the same, the answer is a gap.
"""

from enum import StrEnum
from typing import NamedTuple


class GapReason(StrEnum):
    #: Other records stand where applied ones stood, or fewer than were applied.
    LOG_REPLACED = "log-replaced"
    #: Retention removed records before they were applied.
    RECORDS_REMOVED = "records-removed"
    #: The broker was killed, and is one that acknowledges records before it keeps them.
    LOG_CUT = "log-cut"
    #: An operator gave up a dead letter, which may have told of something that the pod has.
    DISCARDED = "discarded"
    #: A rename and other events about its repositories came in an order that leaves things under the wrong name.
    RENAMED = "renamed"
    #: A pod was given a prefix: what it has there since before is not known.
    PREFIX_ADDED = "prefix-added"
    #: An operator let a registry process count no more: what it had not delivered is lost.
    RETIRED = "retired"
    #: A registry process ended and is there again under the same instance id: the same.
    RESTARTED = "restarted"
    #: A pod sent more dead letters than are kept of one.
    LETTERS_OVER_LIMIT = "letters-over-limit"


class Progress(NamedTuple):
    """How far a partition is applied."""

    next_offset: int
    #: Of the record at next_offset - 1; None if none was applied since the log's beginning stood here.
    fingerprint: int | None
    topic_id: str | None


class LogState(NamedTuple):
    """What the broker says of a partition. `latest` is the offset that the next record will get."""

    earliest: int
    latest: int
    #: None where the broker has no topic ids.
    topic_id: str | None
    #: Of the record at the progress's next_offset - 1; None if there is no record there.
    fingerprint: int | None


class GapFound(NamedTuple):
    """Events of these offsets may be lost: from_offset <= lost < to_offset; None where it is not known."""

    reason: GapReason
    from_offset: int
    to_offset: int | None


class Position(NamedTuple):
    """Where to go on, and what was lost on the way there."""

    progress: Progress
    gap: GapFound | None


def inspect(progress: Progress | None, log: LogState) -> Position:
    """Decide where to go on in a partition's log."""
    if progress is None:
        return _from(log, 0)
    if _replaced(progress, log):
        # All of the new log is read: what was applied before changes nothing when it is seen again.
        gap = GapFound(GapReason.LOG_REPLACED, progress.next_offset, None)
        return Position(Progress(log.earliest, None, log.topic_id), gap)
    if log.earliest > progress.next_offset:
        return _from(log, progress.next_offset)
    return Position(progress._replace(topic_id=log.topic_id or progress.topic_id), None)


def _from(log: LogState, expected: int) -> Position:
    gap = GapFound(GapReason.RECORDS_REMOVED, expected, log.earliest) if log.earliest > expected else None
    return Position(Progress(log.earliest, None, log.topic_id), gap)


def _replaced(progress: Progress, log: LogState) -> bool:
    if progress.topic_id and log.topic_id and progress.topic_id != log.topic_id:
        return True
    if log.latest < progress.next_offset:
        return True
    if progress.fingerprint is None:
        # The log began here when it was first read, and a log's beginning only moves on.
        return log.earliest < progress.next_offset
    last = progress.next_offset - 1
    # The last applied record is still in the log, or should be: it must be the one that was applied.
    return last >= log.earliest and log.fingerprint != progress.fingerprint
