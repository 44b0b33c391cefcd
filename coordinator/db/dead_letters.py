"""Settle dead letters: publish what has become understandable, or give one up with a reason.

A letter's row is locked while it is settled, so that two who retry it publish once. If the process dies between
Kafka's acknowledgement and the commit, the letter stays open and its events come twice, which changes nothing.
The time of a retry is taken after the acknowledgement: GC is held until the pod's watermark has passed it, and so all
that it came to is applied (queries/pods.py). What cannot be applied even then is a dead letter again.
Not here: how letters are shown (queries/dead_letters.py), what an event means (ingest/normalise.py).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from coordinator.db.queries.session import writing
from coordinator.domain.progress import GapReason
from coordinator.errors import ConflictError, NotFoundError, UsageError
from coordinator.ingest import normalise
from coordinator.ingest.normalise import Accepted, DeadLettered, Outcome
from coordinator.ingest.topics import DEAD_LETTERS
from schemas.records import RECORD_CONTENT_TYPE, DeadLetter, RegistryEvent

WHY_LIMIT = 1000

Publish = Callable[[Sequence[Outcome]], Awaitable[Sequence[Outcome]]]

_LOCKED = text("SELECT * FROM dead_letters WHERE id = :id FOR UPDATE")
_PREFIXES = text("""
SELECT ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id) FROM pods p WHERE p.name = :pod
""")
_SETTLE = text("""
UPDATE dead_letters SET settled_at = clock_timestamp(), settlement = :settlement, settled_why = :why WHERE id = :id
""")

# Whose links are not in shared storage has nothing that a reconcile could look at: the operator's word stands. A letter
# that says nowhere whose it is may be anybody's.
_GAP = text("""
INSERT INTO gaps (pod_id, topic, partition, reason, from_offset, to_offset)
SELECT id, :topic, -1, :reason, :offset, :offset + 1 FROM pods WHERE :pod IN (name, '') AND linker = 'link'
""")


async def retry(engine: AsyncEngine, number: int, publish: Publish) -> int:
    """Publish what the letter holds, by the rules and prefixes of now; return how many events that were.

    Raises ConflictError, with the reason, if a part of it still cannot be understood: then nothing is published.
    """
    async with writing(engine) as connection:
        row = await _open(connection, number)
        prefixes: list[str] | None = await connection.scalar(_PREFIXES, {"pod": row.pod})
        if not row.pod:
            raise ConflictError(f"It is not known which pod dead letter {number} is of: discard it.")
        if prefixes is None:
            raise ConflictError(f"Pod {row.pod} is not registered any more: discard dead letter {number}.")
        outcomes = _outcomes(row, prefixes)
        refused = [outcome.letter for outcome in outcomes if isinstance(outcome, DeadLettered)]
        if refused:
            raise ConflictError(
                f"Dead letter {number} still cannot be understood ({refused[0].reason}): {refused[0].detail}"
            )
        written = await publish(outcomes)
        if any(isinstance(outcome, DeadLettered) for outcome in written):
            raise ConflictError(f"Kafka takes no record as large as dead letter {number}: discard it.")
        await connection.execute(_SETTLE, {"id": number, "settlement": "retried", "why": None})
    return sum(isinstance(outcome, Accepted) for outcome in written)


async def discard(engine: AsyncEngine, number: int, why: str) -> None:
    """Give the letter up; `why` is kept with it.

    It may have told of something that the pod has: that is a gap until the pod's links were looked at. Where it cannot
    be told which pod that is, it is a gap for each.
    """
    if not why.strip() or len(why) > WHY_LIMIT or "\0" in why:
        raise UsageError(f"Say why it is discarded, in up to {WHY_LIMIT} characters.")
    async with writing(engine) as connection:
        row = await _open(connection, number)
        await connection.execute(_SETTLE, {"id": number, "settlement": "discarded", "why": why.strip()})
        await connection.execute(
            _GAP, {"pod": row.pod, "topic": DEAD_LETTERS, "reason": GapReason.DISCARDED, "offset": row.origin_offset}
        )


async def _open(connection: AsyncConnection, number: int) -> Row[Any]:
    row = (await connection.execute(_LOCKED, {"id": number})).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no dead letter {number}: see `baleen dead-letters list`.")
    if row.settled_at is not None:
        raise ConflictError(f"Dead letter {number} is settled already: it was {row.settlement}.")
    return row


def _outcomes(row: Row[Any], prefixes: Sequence[str]) -> list[Outcome]:
    if row.content_type == RECORD_CONTENT_TYPE:
        return [_record(row)]
    letter = DeadLetter(
        pod=row.pod,
        reason=row.reason,
        detail=row.detail,
        received_at=row.received_at,
        payload=row.payload,
        payload_bytes=row.payload_bytes,
        content_type=row.content_type,
    )
    return normalise.retry(letter, prefixes)


def _record(row: Row[Any]) -> Outcome:
    try:
        event = msgspec.json.decode(row.payload, type=RegistryEvent)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConflictError(f"Dead letter {row.id} is not a whole record ({error}): discard it.") from error
    if event.pod != row.pod:
        raise ConflictError(f"Dead letter {row.id} speaks of pod {event.pod}, which did not send it: discard it.")
    return Accepted(event)
