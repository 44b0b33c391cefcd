"""Request, list and show GC runs, and show their decisions. Not here: running them (gc/collect.py)."""

from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Row, text

from coordinator.db import paging
from coordinator.db.session import read_connection, write_transaction
from coordinator.domain.names import Digest, format_digest
from coordinator.domain.reasons import check_reason
from coordinator.errors import ConflictError, NotFoundError
from coordinator.gc.controls import NEVER_SWITCHED_ON
from coordinator.gc.shapes import DecisionPage, LedgerEntry, Planned, Run, RunPage, parse_amount
from coordinator.table.ledger import Decision

_COLUMNS = "id, state, why, options, asked_at, began_at, finished_at, progress, error"
_ONE = text(f"SELECT {_COLUMNS} FROM jobs WHERE id = :id AND kind = 'gc'")
_PAGE = text(f"SELECT {_COLUMNS} FROM jobs WHERE kind = 'gc' AND id < :before ORDER BY id DESC LIMIT :limit")
_OPEN = text(f"SELECT {_COLUMNS} FROM jobs WHERE kind = 'gc' AND pod_id IS NULL AND state IN ('waiting', 'running')")
_LAST = text(f"""
SELECT {_COLUMNS} FROM jobs
WHERE kind = 'gc' AND finished_at IS NOT NULL AND NOT coalesce((options ->> 'dry')::bool, false)
ORDER BY id DESC LIMIT 1
""")
# FOR SHARE: a process that turns the switch off waits for this, so no run is requested after that.
_SWITCH = text("SELECT enabled, why FROM gc_switch FOR SHARE")
_HELD = text("SELECT scope, why FROM holds ORDER BY scope LIMIT 1")
_ASK = text("""
INSERT INTO jobs (kind, why, options) VALUES ('gc', :why, CAST(:options AS jsonb)) ON CONFLICT DO NOTHING RETURNING id
""")
_DECISIONS = text("""
SELECT id, at, digest, decision, why, run_id FROM gc_ledger WHERE run_id = :run AND id > :after
ORDER BY id LIMIT :limit
""")

#: An open run may end before it is read.
_ATTEMPTS = 3


def request_run(
    engine: Engine, why: str, *, dry: bool = False, beyond_limits: str | None = None, leftovers: bool = False
) -> Run:
    """Request a run and return it, or return the one that is open.

    Raises ConflictError while the switch is off or a hold is set, unless a dry run is requested.
    """
    options: dict[str, Any] = {name: True for name, wanted in (("dry", dry), ("leftovers", leftovers)) if wanted}
    if beyond_limits is not None:
        options["beyond_limits"] = check_reason(beyond_limits)
    values = {"why": check_reason(why), "options": msgspec.json.encode(options).decode()}
    for _ in range(_ATTEMPTS):
        with write_transaction(engine) as connection:
            if not dry:
                _check_controls(connection)
            number = connection.scalar(_ASK, values)
            # Read it in the same transaction: a scheduler may take it at once, and it would look like an earlier run.
            found = connection.execute(_OPEN if number is None else _ONE, {} if number is None else {"id": number})
            row = found.one_or_none()
        if row is not None:
            return make_run(row)
    raise ConflictError("Another run began and ended meanwhile: try again.")


def _check_controls(connection: Connection) -> None:
    switch = connection.execute(_SWITCH).one_or_none() or NEVER_SWITCHED_ON
    if not switch.enabled:
        raise ConflictError(
            f"Garbage collection is switched off ({switch.why}). Switch it on with `baleen gc on --why …`, or request "
            "a dry run, which works while it is off."
        )
    held = connection.execute(_HELD).one_or_none()
    if held is not None:
        raise ConflictError(
            f"{held.scope} is held ({held.why}). Any hold stops all garbage collection, because pods share blobs. "
            f"Release it with `baleen release {held.scope}`, or request a dry run, which works while it is held."
        )


def read_run(engine: Engine, number: int) -> Run:
    """Return one run; raises NotFoundError."""
    with read_connection(engine) as connection:
        row = connection.execute(_ONE, {"id": number}).one_or_none()
    if row is None:
        raise _run_not_found(number)
    return make_run(row)


def read_runs(engine: Engine, *, cursor: str | None = None, limit: int = paging.DEFAULT_LIMIT) -> RunPage:
    """Return a page of runs, the newest first."""
    values = {"before": paging.decode_cursor("runs", cursor, int) or paging.ID_LIMIT, "limit": limit}
    with read_connection(engine) as connection:
        rows = (connection.execute(_PAGE, values)).all()
    return RunPage(
        items=[make_run(row) for row in rows],
        next=paging.encode_cursor("runs", rows[-1].id) if len(rows) == limit else None,
    )


def read_open_run(connection: Connection) -> Run | None:
    row = connection.execute(_OPEN).one_or_none()
    return None if row is None else make_run(row)


def read_last_run(connection: Connection) -> Run | None:
    """Return the last run that has ended and was no dry run."""
    row = connection.execute(_LAST).one_or_none()
    return None if row is None else make_run(row)


def read_decisions(
    engine: Engine, number: int, *, cursor: str | None = None, limit: int = paging.DEFAULT_LIMIT
) -> DecisionPage:
    """Return a page of a run's decisions, the oldest first; raises NotFoundError.

    The ledger keeps them also when the run's row is deleted. A dry run has none.
    """
    after = paging.decode_cursor("decisions", cursor, int) or 0
    with read_connection(engine) as connection:
        rows = connection.execute(_DECISIONS, {"run": number, "after": after, "limit": limit}).all()
        if not rows and cursor is None and connection.execute(_ONE, {"id": number}).one_or_none() is None:
            raise _run_not_found(number)
    return DecisionPage(
        items=[
            LedgerEntry(
                id=row.id,
                at=row.at,
                digest=format_digest(Digest(row.digest)),
                decision=Decision(row.decision),
                why=row.why,
                run=row.run_id,
            )
            for row in rows
        ],
        next=paging.encode_cursor("decisions", rows[-1].id) if len(rows) == limit else None,
    )


def make_run(row: Row[Any]) -> Run:
    progress: dict[str, Any] = row.progress
    planned = progress.get("planned")
    return Run(
        id=row.id,
        state=row.state,
        why=row.why,
        dry_run=bool(row.options.get("dry")),
        beyond_limits=row.options.get("beyond_limits"),
        leftovers=bool(row.options.get("leftovers")),
        asked_at=row.asked_at,
        began_at=row.began_at,
        finished_at=row.finished_at,
        step=progress.get("step"),
        blocked_by=progress.get("blocked_by", []),
        planned=None
        if planned is None
        else Planned(hide=parse_amount(planned.get("hide")), purge=parse_amount(planned.get("purge"))),
        hidden=parse_amount(progress.get("hidden")),
        purged=parse_amount(progress.get("purged")),
        restored=progress.get("restored", 0),
        kept=progress.get("kept", {}),
        progress=progress,
        error=row.error,
    )


def _run_not_found(number: int) -> NotFoundError:
    return NotFoundError(f"There is no run {number}. See `baleen gc history`; the oldest runs are deleted.")
