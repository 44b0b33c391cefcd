"""Void what was recorded while the database's clock was ahead, after the clock was set back.

A time that is later than now was recorded by a clock that was ahead. Readers treat such a time in the safe direction,
but only while it lies ahead: once the clock has passed it, nothing distinguishes it from a correct one. So it is voided
at once. A time *up to* which something was known is deleted, and must be established anew. A time that only bounds how
long something may last becomes now, which is later than the true time. All watermarks and look-ups are deleted: some
that are not later than now are wrong, too, and probes replace them in seconds.

Route: workers/scheduler.py periodically, and pods/watermarks.py after reading -> `VOID_SQL`. A reconcile calls
`is_ahead` (reconcile/table.py) before it resolves anything.
Locks: of jobs, of gaps, then as in table/processes.py. Voiding twice has the same result as once.
Not here: hides, their permits, and the times since when blobs are unreferenced. These are only waited for, so one from
the future keeps the bytes longer, even after the clock has passed it.
"""

from typing import Any, Final

import structlog
from psycopg import Connection

from coordinator.db.locks import CLOCK_LOCK
from coordinator.domain.progress import GapReason
from coordinator.errors import BaleenError

log = structlog.get_logger()


class ClockSetBackError(BaleenError):
    """A recorded time is later than now."""


def _is_later(*columns: str) -> str:
    # A single column is compared as it is, so that its index is used.
    latest = columns[0] if len(columns) == 1 else f"greatest({', '.join(columns)})"
    return f"{latest} > (SELECT clock_timestamp())"


def _lower_to_now(table: str, *columns: str) -> str:
    """Return SQL that sets these times to now where they are later; NULL stays NULL."""
    lowered = (
        f"{each} = CASE WHEN {each} > clock_timestamp() THEN clock_timestamp() ELSE {each} END" for each in columns
    )
    return f"UPDATE {table} SET {', '.join(lowered)} WHERE {_is_later(*columns)}"


#: Gaps that can be resolved only some time after they were noticed.
_HAS_GIVEN_TIME: Final = f"reason IN ('{GapReason.RETIRED}', '{GapReason.RESTARTED}')"
#: The clock is read after the snapshot, so that what others record meanwhile is not taken for a time from the future.
_IS_AHEAD: Final = " OR ".join(
    f"EXISTS (SELECT FROM {table} WHERE {_is_later(*columns)})"
    for table, *columns in (
        ("probes", "sent_at"),
        ("watermarks", "at"),
        ("endpoints", "resolved_at", "echoed_at", "refused_at"),
        ("processes", "first_seen", "echoed_at", "dead_since", "retired_at"),
        ("jobs", "began_at"),
        ("root_listing", "began_at"),
    )
)

#: One statement, in its own or the caller's transaction; it changes nothing if no time lies ahead.
VOID_SQL: Final = f"""
DO $$
BEGIN
    PERFORM pg_advisory_xact_lock({CLOCK_LOCK});
    IF NOT ({_IS_AHEAD}) THEN
        RETURN;
    END IF;

    -- A running reconcile would resolve what was noticed since its begin, which may be a wrong time.
    UPDATE jobs SET state = 'failed', finished_at = clock_timestamp(),
                    error = 'The database''s clock was set back, so the begin of this reconcile is not known.'
    WHERE kind = 'reconcile' AND (state = 'running' OR state = 'done' AND {_is_later("began_at")});
    {_lower_to_now("jobs", "asked_at", "began_at", "alive_at", "finished_at")};

    UPDATE gaps SET resolved_at = NULL, resolved_why = NULL WHERE {_is_later("resolved_at")};
    -- What a process had begun may land during its whole time bound, counted from now.
    UPDATE gaps SET resolves_from = clock_timestamp() + CASE WHEN {_HAS_GIVEN_TIME} THEN resolves_from - noticed_at
                                                            ELSE interval '0' END
    WHERE {_is_later("noticed_at")} OR NOT {_HAS_GIVEN_TIME} AND {_is_later("resolves_from")};
    {_lower_to_now("gaps", "noticed_at")};

    -- Their echoes are ignored; those that were answered without an echo keep W unknown.
    PERFORM FROM probes WHERE {_is_later("sent_at")} ORDER BY nonce FOR UPDATE;
    UPDATE probes SET sent_at = clock_timestamp(), known_until = '-infinity',
                      answered_at = CASE WHEN answered_at IS NOT NULL THEN clock_timestamp() END
    WHERE {_is_later("sent_at")};

    PERFORM FROM endpoints ORDER BY pod_id, url, address FOR NO KEY UPDATE;
    UPDATE endpoints SET resolved_at = '-infinity', echoed_at = NULL, refused_at = NULL;
    {_lower_to_now("endpoints", "first_seen", "answered_at", "failing_since")};

    PERFORM FROM processes ORDER BY id FOR NO KEY UPDATE;
    UPDATE processes SET retired_at = NULL, retired_why = NULL
    WHERE dead_since IS NOT NULL AND starts_with(retired_why, 'reconcile ') AND {_is_later("retired_at")};
    {_lower_to_now("processes", "first_seen", "echoed_at", "dead_since", "retired_at")};
    -- It is not known for how long they were silent.
    UPDATE processes SET paused_until = clock_timestamp();
    UPDATE watermarks SET at = '-infinity' WHERE at > '-infinity';

    DELETE FROM root_listing;
    {_lower_to_now("findings", "found_at")};
    UPDATE dead_letters SET resolved_at = NULL, resolution = NULL, resolved_why = NULL
    WHERE resolution = 'reconciled' AND {_is_later("resolved_at")};
    {_lower_to_now("dead_letters", "resolved_at", "stored_at")};
END
$$
"""


def is_ahead(connection: Connection[Any]) -> bool:
    """Whether any recorded time that GC relies on is later than now."""
    row = connection.execute(f"SELECT {_IS_AHEAD}").fetchone()
    return row is not None and bool(row[0])


def void_if_ahead(connection: Connection[Any]) -> bool:
    """Void what was recorded while the clock was ahead, if it was; return whether it was."""
    if not is_ahead(connection):
        return False
    warn_set_back()
    connection.execute(VOID_SQL)
    return True


def warn_set_back() -> None:
    log.warning(
        "the database's clock was set back",
        action="what was recorded while it was ahead is void; find the cause, since no bound is certain until then",
    )
