"""List and show dead letters. Not here: resolving them (dead_letters/resolve.py)."""

from typing import Any

from sqlalchemy import Engine, Row, bindparam, select, text

from coordinator.db import paging
from coordinator.db.schema.table import dead_letters as table
from coordinator.db.session import read_connection
from coordinator.dead_letters.shapes import DeadLetter, DeadLetterPage, DeadLetterSummary
from coordinator.domain.names import PodName
from coordinator.errors import NotFoundError

_SUMMARY = select(*table.c[DeadLetterSummary.__struct_fields__])
_KNOWN = text("""
SELECT EXISTS (SELECT FROM pods WHERE name = :pod)
    OR EXISTS (SELECT FROM dead_letters WHERE pod = :pod AND resolved_at IS NULL)
    OR EXISTS (SELECT FROM dead_letters WHERE pod = :pod AND resolved_at IS NOT NULL)
""")
_ONE = _SUMMARY.add_columns(*table.c["payload", "origin_topic", "origin_partition", "origin_offset"]).where(
    table.c.id == bindparam("id")
)


def read_dead_letters(
    engine: Engine,
    *,
    pod: PodName | None = None,
    resolved: bool = False,
    cursor: str | None = None,
    limit: int = paging.DEFAULT_LIMIT,
) -> DeadLetterPage:
    """Return a page of dead letters, the oldest first: the open ones, or with `resolved` all of them.

    Raises NotFoundError for a pod that is not registered and has none: a removed pod may have left some.
    """
    after = paging.decode_cursor("dead-letters", cursor, int) or 0
    # Conditions only as needed, so that each list is served by its index whatever the plan.
    page = _SUMMARY.where(table.c.id > after).order_by(table.c.id).limit(limit)
    if not resolved:
        page = page.where(table.c.resolved_at.is_(None))
    if pod is not None:
        page = page.where(table.c.pod == pod)
    with read_connection(engine) as connection:
        rows = (connection.execute(page)).all()
        if not rows and pod is not None and not connection.scalar(_KNOWN, {"pod": pod}):
            raise NotFoundError(f"There is no pod {pod}: see `baleen pods list`.")
    return DeadLetterPage(
        items=[DeadLetterSummary(**_make_summary(row)) for row in rows],
        next=paging.encode_cursor("dead-letters", rows[-1].id) if len(rows) == limit else None,
    )


def read_dead_letter(engine: Engine, number: int) -> DeadLetter:
    """Return one dead letter with its payload; raises NotFoundError."""
    with read_connection(engine) as connection:
        row = connection.execute(_ONE, {"id": number}).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no dead letter {number}: see `baleen dead-letters list`.")
    origin = f"{row.origin_topic}/{row.origin_partition}/{row.origin_offset}"
    return DeadLetter(**_make_summary(row), payload=row.payload, origin=origin)


def _make_summary(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in DeadLetterSummary.__struct_fields__}
