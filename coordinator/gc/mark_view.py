"""Read what blocks GC because the database or the bucket went back in time. Not here: the rules (domain/mark.py)."""

import datetime as dt

from sqlalchemy import Connection, text

from coordinator.domain.mark import Instance, describe_move, describe_unreported

_MARK = text("""
SELECT instance, gc_instance() AS current, refused, claimed_at, claimed_why, verify_from,
       verify_from > clock_timestamp() AS early FROM gc_mark
""")


def mark_reasons(connection: Connection) -> list[str]:
    """Return what blocks GC: the database moved, the bucket does not match it, or a claim is not verified."""
    row = connection.execute(_MARK).one_or_none()
    if row is None:
        current = Instance.parse(str(connection.scalar(text("SELECT gc_instance()"))))
        return [why] if (why := describe_unreported(current)) is not None else []
    current = Instance.parse(row.current)
    found = [
        # This shows the database's own change before any process has compared it with the bucket.
        describe_move(None if row.instance is None else Instance.parse(row.instance), current) or row.refused,
        describe_unreported(current),
        None
        if row.claimed_at is None
        else describe_claim(row.claimed_at, row.claimed_why, row.verify_from, early=row.early),
    ]
    return [each for each in found if each is not None]


def describe_claim(at: dt.datetime, why: str, verify_from: dt.datetime, *, early: bool) -> str:
    """Return why a claim that no audit has verified blocks GC."""
    when = f" after {verify_from:%Y-%m-%d %H:%M:%S} UTC" if early else ""
    return (
        f"The claim of {at:%Y-%m-%d %H:%M:%S} UTC ({why}) is not verified: once every pod is reconciled, run "
        f"`baleen audit --repair`{when}. It verifies in storage every blob that is live in the table"
    )
