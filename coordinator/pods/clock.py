"""A database's clock that was set back: what was noted while it was ahead is voided, by whoever notices it first.

A time that is later than now was noted by a clock that was ahead. Whoever reads it takes it in the safe direction, but
only for as long as it lies ahead: once the clock has passed it, nothing tells it from a true one. So it is not waited
for. Whatever shows that something was known *up to* then is forgotten, and has to be shown anew; where it only bounds
how long something may go on, it becomes now, which is later than when it was. Of watermarks and addresses all is
forgotten, since of what is not later than now some was noted too late as well, and probes bring it back in seconds.

Route: workers/scheduler.py now and then, and pods/watermarks.py with what it has read -> `VOID`. Of a reconcile
reconcile/table.py asks `is_ahead` before it settles anything.
Locks: of jobs, of gaps, then as table/processes.py has them. What is voided twice is what it was after the first time.
Not here: hides, their permits, and since when blobs are unreferenced. They are only ever waited for, so that one from
the future keeps the bytes for longer, also when the clock has passed it.
"""

from typing import Any, Final

import structlog
from psycopg import Connection

from coordinator.db.locks import CLOCK_LOCK
from coordinator.domain.progress import GapReason
from coordinator.errors import BaleenError

log = structlog.get_logger()


class ClockSetBackError(BaleenError):
    """Something is noted by a time that is later than now."""


def _later(*columns: str) -> str:
    # One column stands alone, for its index.
    latest = columns[0] if len(columns) == 1 else f"greatest({', '.join(columns)})"
    return f"{latest} > (SELECT clock_timestamp())"


def _now_at_last(table: str, *columns: str) -> str:
    """SQL that lets none of these times be later than now; NULL stays NULL."""
    lowered = (
        f"{each} = CASE WHEN {each} > clock_timestamp() THEN clock_timestamp() ELSE {each} END" for each in columns
    )
    return f"UPDATE {table} SET {', '.join(lowered)} WHERE {_later(*columns)}"


#: Gaps that are settled only some time after they were noticed.
_GIVEN_TIME: Final = f"reason IN ('{GapReason.RETIRED}', '{GapReason.RESTARTED}')"
#: Each clock is read after the snapshot, so that what others note meanwhile is no time from the future.
_AHEAD: Final = " OR ".join(
    f"EXISTS (SELECT FROM {table} WHERE {_later(*columns)})"
    for table, *columns in (
        ("probes", "sent_at"),
        ("watermarks", "at"),
        ("endpoints", "resolved_at", "echoed_at", "refused_at"),
        ("sources", "first_seen", "heard_at", "dead_since", "retired_at"),
        ("jobs", "began_at"),
        ("root_listing", "began_at"),
    )
)

#: One statement, in a transaction of its own or in that of its caller; nothing if nothing lies ahead.
VOID: Final = f"""
DO $$
BEGIN
    PERFORM pg_advisory_xact_lock({CLOCK_LOCK});
    IF NOT ({_AHEAD}) THEN
        RETURN;
    END IF;

    -- One that runs would settle what was noticed since it began, by a time that may be wrong.
    UPDATE jobs SET state = 'failed', finished_at = clock_timestamp(),
                    error = 'The database''s clock was set back: since when it has compared is not known.'
    WHERE kind = 'reconcile' AND (state = 'running' OR state = 'done' AND {_later("began_at")});
    {_now_at_last("jobs", "asked_at", "began_at", "alive_at", "finished_at")};

    UPDATE gaps SET settled_at = NULL, settled_why = NULL WHERE {_later("settled_at")};
    -- What a process had begun may land for as long as it was given, counted from now.
    UPDATE gaps SET settles_from = clock_timestamp() + CASE WHEN {_GIVEN_TIME} THEN settles_from - noticed_at
                                                            ELSE interval '0' END
    WHERE {_later("noticed_at")} OR NOT {_GIVEN_TIME} AND {_later("settles_from")};
    {_now_at_last("gaps", "noticed_at")};

    -- Their echoes say nothing, and who answered them and is never heard keeps W unknown.
    PERFORM FROM probes WHERE {_later("sent_at")} ORDER BY nonce FOR UPDATE;
    UPDATE probes SET sent_at = clock_timestamp(), known_until = '-infinity',
                      answered_at = CASE WHEN answered_at IS NOT NULL THEN clock_timestamp() END
    WHERE {_later("sent_at")};

    PERFORM FROM endpoints ORDER BY pod_id, url, address FOR NO KEY UPDATE;
    UPDATE endpoints SET resolved_at = '-infinity', echoed_at = NULL, refused_at = NULL;
    {_now_at_last("endpoints", "first_seen", "answered_at", "failing_since")};

    PERFORM FROM sources ORDER BY id FOR NO KEY UPDATE;
    UPDATE sources SET retired_at = NULL, retired_why = NULL
    WHERE dead_since IS NOT NULL AND starts_with(retired_why, 'reconcile ') AND {_later("retired_at")};
    {_now_at_last("sources", "first_seen", "heard_at", "dead_since", "retired_at")};
    -- For how long they were not heard is not known either.
    UPDATE sources SET paused_until = clock_timestamp();
    UPDATE watermarks SET at = '-infinity' WHERE at > '-infinity';

    DELETE FROM root_listing;
    {_now_at_last("findings", "found_at")};
    UPDATE dead_letters SET settled_at = NULL, settlement = NULL, settled_why = NULL
    WHERE settlement = 'reconciled' AND {_later("settled_at")};
    {_now_at_last("dead_letters", "settled_at", "stored_at")};
END
$$
"""


def is_ahead(connection: Connection[Any]) -> bool:
    """Whether anything that collection relies on was noted by a time that is later than now."""
    row = connection.execute(f"SELECT {_AHEAD}").fetchone()
    return row is not None and bool(row[0])


def void(connection: Connection[Any]) -> bool:
    """Void what was noted while the clock was ahead, if it was; return whether it was."""
    if not is_ahead(connection):
        return False
    tell()
    connection.execute(VOID)
    return True


def tell() -> None:
    log.warning(
        "the database's clock was set back",
        action="what was noted while it was ahead counts no more; find out why, as no bound is certain while it jumps",
    )
