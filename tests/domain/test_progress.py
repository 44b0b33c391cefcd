"""Whether a partition's log is still the one that was applied (scenario 25)."""

from coordinator.domain.progress import GapFound, GapReason, LogState, Position, Progress, decide_position

APPLIED = Progress(next_offset=10, fingerprint=77, topic_id="a")
SAME = LogState(earliest=0, latest=12, topic_id="a", fingerprint=77)


def test_same_log_goes_on() -> None:
    """Where the last applied record is still in its place, the partition goes on without a gap."""
    assert decide_position(APPLIED, SAME) == Position(APPLIED, None)


def test_first_sight_of_a_whole_log() -> None:
    """A partition that was never read, and whose first record is still there, begins at it without a gap."""
    fresh = LogState(earliest=0, latest=5, topic_id="a", fingerprint=None)
    assert decide_position(None, fresh) == Position(Progress(0, None, "a"), None)


def test_first_sight_of_a_shortened_log() -> None:
    """Records that retention removed before the first reading are a gap."""
    found = decide_position(None, LogState(earliest=4, latest=5, topic_id="a", fingerprint=None))
    assert found == Position(Progress(4, None, "a"), GapFound(GapReason.RECORDS_REMOVED, 0, 4))


def test_retention_overtook_the_worker() -> None:
    """Records that retention removed unapplied are a gap, and reading goes on at the first that is left."""
    found = decide_position(APPLIED, LogState(earliest=15, latest=20, topic_id="a", fingerprint=None))
    assert found == Position(Progress(15, None, "a"), GapFound(GapReason.RECORDS_REMOVED, 10, 15))


def test_retention_removed_only_what_was_applied() -> None:
    """A log that begins exactly where the worker stands has lost nothing."""
    assert decide_position(APPLIED, LogState(10, 12, "a", None)).gap is None


def test_offsets_that_jumped_back() -> None:
    """A log shorter than what was applied is another log: all of it is read, and the gap is recorded."""
    found = decide_position(APPLIED, LogState(earliest=0, latest=3, topic_id=None, fingerprint=None))
    assert found == Position(Progress(0, None, None), GapFound(GapReason.LOG_REPLACED, 10, None))


def test_another_record_in_the_place_of_the_last_applied() -> None:
    """A recreated log that has outgrown the old one is known by the record in the last applied place."""
    for fingerprint in (78, None):
        found = decide_position(APPLIED, SAME._replace(fingerprint=fingerprint))
        assert found.gap == GapFound(GapReason.LOG_REPLACED, 10, None)
        assert found.progress.next_offset == 0


def test_a_log_that_begins_again_below_where_nothing_was_applied() -> None:
    """Of a partition that stands at its log's beginning no record is known; a log with earlier ones is another log."""
    stands = Progress(next_offset=10, fingerprint=None, topic_id=None)
    assert decide_position(stands, LogState(earliest=10, latest=30, topic_id=None, fingerprint=None)) == Position(
        stands, None
    )
    found = decide_position(stands, LogState(earliest=0, latest=30, topic_id=None, fingerprint=None))
    assert found == Position(Progress(0, None, None), GapFound(GapReason.LOG_REPLACED, 10, None))


def test_another_topic_id() -> None:
    """A topic with another id is another log, even if its records look the same."""
    assert decide_position(APPLIED, SAME._replace(topic_id="b")).gap == GapFound(GapReason.LOG_REPLACED, 10, None)


def test_broker_without_topic_ids() -> None:
    """An id that only one side knows proves nothing; the known one is kept."""
    assert decide_position(APPLIED, SAME._replace(topic_id=None)) == Position(APPLIED, None)
