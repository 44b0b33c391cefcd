"""Resolve dead letters: retry one, which publishes its events, or discard one with a reason.

A letter's row is locked while it is resolved, so that two retries publish its events once. If the process dies between
Kafka's acknowledgement and the commit, the letter stays open and its events arrive twice, which changes nothing.
The time of a retry is taken after the acknowledgement: GC is blocked until the pod's watermark has passed it, so that
all its events are applied (pods/view.py). An event that still cannot be applied becomes a dead letter again.
Not here: how letters are shown (dead_letters/view.py), what an event means (ingest/normalise.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Row, text

from coordinator.db.locks import PODS_LOCK
from coordinator.db.session import driver_connection, read_connection, write_transaction
from coordinator.domain.dead_letters import Concern, find_concern
from coordinator.domain.names import RepositoryName
from coordinator.domain.progress import GapReason
from coordinator.domain.reasons import check_reason
from coordinator.errors import ConflictError, NotFoundError
from coordinator.ingest import normalise
from coordinator.ingest.dead_letters import repositories_in
from coordinator.ingest.normalise import Accepted, DeadLettered, Outcome
from coordinator.table.dead_letters import open_gaps, read_owners
from schemas.records import RECORD_CONTENT_TYPE, DeadLetter, RegistryEvent

#: Repositories that an error names.
EXAMPLES = 3

Publish = Callable[[Sequence[Outcome]], Sequence[Outcome]]
#: Returns the repositories of which storage has anything; raises UnavailableError and ConflictError.
FindStored = Callable[[Sequence[RepositoryName]], Sequence[RepositoryName]]

_LOCKED = text("SELECT * FROM dead_letters WHERE id = :id FOR UPDATE")
_PREFIXES = text("""
SELECT ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id) FROM pods p WHERE p.name = :pod
""")
_RESOLVE = text("""
UPDATE dead_letters SET resolved_at = clock_timestamp(), resolution = :resolution, resolved_why = :why WHERE id = :id
""")
_ONE = text("SELECT * FROM dead_letters WHERE id = :id")
_SHARE_PODS = text(f"SELECT pg_advisory_xact_lock_shared({PODS_LOCK})")


def retry_dead_letter(engine: Engine, number: int, publish: Publish) -> int:
    """Publish the letter's events by the present rules and prefixes; return how many.

    Raises ConflictError, with the reason, if a part of it still cannot be understood: then nothing is published.
    """
    with write_transaction(engine) as connection:
        row = _lock_open(connection, number)
        prefixes: list[str] | None = connection.scalar(_PREFIXES, {"pod": row.pod})
        if not row.pod:
            raise ConflictError(f"It is not known which pod sent dead letter {number}: discard it.")
        if prefixes is None:
            raise ConflictError(
                f"Pod {row.pod} is not registered: register it with `baleen pods add` and its prefixes, then retry "
                f"dead letter {number}. If it is gone for good, remove its repositories from the "
                "bucket, then discard it."
            )
        outcomes = _retry_outcomes(row, prefixes)
        refused = [outcome.dead_letter for outcome in outcomes if isinstance(outcome, DeadLettered)]
        if refused:
            raise ConflictError(
                f"Dead letter {number} still cannot be understood ({refused[0].reason}): {refused[0].detail}"
            )
        written = publish(outcomes)
        if any(isinstance(outcome, DeadLettered) for outcome in written):
            raise ConflictError(f"Kafka accepts no record as large as dead letter {number}: discard it.")
        connection.execute(_RESOLVE, {"id": number, "resolution": "retried", "why": None})
    return sum(isinstance(outcome, Accepted) for outcome in written)


def discard_dead_letter(engine: Engine, number: int, why: str, stored: FindStored) -> None:
    """Discard the letter; `why` is stored with it.

    It may have reported something that is stored. So it leaves a gap in each pod whose repositories it was about, or in
    every pod if that is not known, until a reconcile of the pod has listed them. No reconcile lists repositories that
    no pod owns: raises ConflictError while storage has one of these, and UnavailableError if storage does not answer.
    """
    why = check_reason(why, "why it is discarded")
    with read_connection(engine) as connection:
        row = _check_open(connection.execute(_ONE, {"id": number}).one_or_none(), number)
        sought = _read_concern(connection, row).unlisted
    if sought and (found := stored(sought)):
        raise ConflictError(_describe_still_stored(number, found))
    with write_transaction(engine) as connection:
        # No pod may lose a repository between the check of storage and the gaps.
        connection.execute(_SHARE_PODS)
        row = _lock_open(connection, number)
        concerned = _read_concern(connection, row)
        if not set(concerned.unlisted) <= set(sought):
            raise ConflictError(f"Pods changed while dead letter {number} was being discarded: try again.")
        connection.execute(_RESOLVE, {"id": number, "resolution": "discarded", "why": why.strip()})
        about = {pod.id: repositories for pod, repositories in concerned.pods.items()}
        if about:
            open_gaps(driver_connection(connection), GapReason.DISCARDED, about)


def _describe_still_stored(number: int, found: Sequence[RepositoryName]) -> str:
    names = ", ".join(found[:EXAMPLES]) + (", …" if len(found) > EXAMPLES else "")
    return (
        f"Dead letter {number} is about repositories that no registered pod lists and storage has: {names}. Register "
        "them with `baleen pods add` or `baleen pods add-prefix`, then `baleen dead-letters retry`; or remove them "
        "from the bucket, then discard it."
    )


def _read_concern(connection: Connection, row: Row[Any]) -> Concern:
    """Return the pods and repositories that a letter concerns, by the present pods."""
    about: Sequence[RepositoryName] | None = row.repositories
    if about is None and row.payload_bytes == len(row.payload.encode()):
        about = repositories_in(row.payload.encode())
    pods, owners = read_owners(driver_connection(connection), about or ())
    return find_concern(about, row.pod, pods, owners)


def _lock_open(connection: Connection, number: int) -> Row[Any]:
    return _check_open(connection.execute(_LOCKED, {"id": number}).one_or_none(), number)


def _check_open(row: Row[Any] | None, number: int) -> Row[Any]:
    if row is None:
        raise NotFoundError(f"There is no dead letter {number}: see `baleen dead-letters list`.")
    if row.resolved_at is not None:
        raise ConflictError(f"Dead letter {number} is resolved already: it was {row.resolution}.")
    return row


def _retry_outcomes(row: Row[Any], prefixes: Sequence[str]) -> list[Outcome]:
    if row.content_type == RECORD_CONTENT_TYPE:
        return [_make_record(row)]
    dead_letter = DeadLetter(
        pod=row.pod,
        reason=row.reason,
        detail=row.detail,
        received_at=row.received_at,
        payload=row.payload,
        payload_bytes=row.payload_bytes,
        content_type=row.content_type,
    )
    return normalise.retry_dead_letter(dead_letter, prefixes)


def _make_record(row: Row[Any]) -> Outcome:
    try:
        event = msgspec.json.decode(row.payload, type=RegistryEvent)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConflictError(f"Dead letter {row.id} is not a complete record ({error}): discard it.") from error
    if event.pod != row.pod:
        raise ConflictError(f"Dead letter {row.id} names pod {event.pod}, which did not send it: discard it.")
    return Accepted(event)
