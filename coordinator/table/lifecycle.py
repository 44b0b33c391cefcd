"""Change the states of blobs after a check of storage, and keep the outbox of changes to publish.

A change is written to the outbox in the transaction that makes it, after the blob's row was changed: so the changes of
one blob have ids in the order in which they happened. They are published in the order of ids, by one process at a time
(`take_from_outbox`).
Not here: which change follows (domain/lifecycle.py), the check (reconcile/presence.py), the topic (kafka/lifecycle.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db.arrays import integer_array
from coordinator.domain.lifecycle import BlobEvent, BlobState, published_name, state_after
from coordinator.domain.names import Digest
from coordinator.domain.references import ManifestKind

#: Held by the publishing process: a fixed key for pg_try_advisory_xact_lock.
OUTBOX_LOCK = 0x62616C6F


class KnownBlob(NamedTuple):
    """A blob, as read from the table."""

    id: int
    digest: Digest
    #: Bytes; -1 while it is not known.
    size: int
    state: BlobState
    reference_count: int
    link_count: int

    @property
    def referenced(self) -> bool:
        return self.reference_count > 0 or self.link_count > 0


class Transition(NamedTuple):
    blob: KnownBlob
    to: BlobState

    @property
    def change(self) -> str | None:
        """The name under which it is published; None if it is not."""
        return published_name(self.blob.state, self.to)


class UnpublishedChange(NamedTuple):
    """A change of a blob's state that was not published yet."""

    id: int
    digest: Digest
    change: str
    at: datetime
    reference_count: int
    link_count: int


_SELECT_BLOBS = "SELECT b.id, b.digest, b.size, b.state, b.reference_count, b.link_count FROM blobs b"


def _make_blob(row: Sequence[Any]) -> KnownBlob:
    return KnownBlob(row[0], Digest(row[1]), row[2], BlobState(row[3]), row[4], row[5])


def read_blobs(connection: Connection[Any], wanted: Sequence[Digest]) -> list[KnownBlob]:
    """Return the blobs among these digests that have a row."""
    found = connection.execute(
        f"{_SELECT_BLOBS} JOIN unnest(%s::bytea[]) d (digest) ON b.digest = d.digest ORDER BY b.id", (list(wanted),)
    )
    return [_make_blob(row) for row in found]


def read_missing_blobs(connection: Connection[Any], after: int, limit: int) -> list[KnownBlob]:
    """Return missing blobs by id."""
    found = connection.execute(
        f"{_SELECT_BLOBS} WHERE b.state = {BlobState.MISSING:d} AND b.id > %s ORDER BY b.id LIMIT %s", (after, limit)
    )
    return [_make_blob(row) for row in found]


def read_unread_manifests(connection: Connection[Any], after: int, limit: int) -> list[KnownBlob]:
    """Return live manifests whose bytes could not be read, by id: the bytes may be missing."""
    found = connection.execute(
        f"""
        {_SELECT_BLOBS} JOIN manifests m ON m.id = b.id
        WHERE (m.refs IS NULL OR m.by_links) AND m.id > %s AND b.state = {BlobState.LIVE:d} ORDER BY m.id LIMIT %s
        """,
        (after, limit),
    )
    return [_make_blob(row) for row in found]


def read_live_sample(connection: Connection[Any], limit: int) -> list[Digest]:
    """Return digests of the live blobs among the `limit` newest and the `limit` oldest rows."""
    found = connection.execute(
        f"""
        SELECT digest FROM (
            (SELECT digest, state FROM blobs ORDER BY id DESC LIMIT %(limit)s)
            UNION ALL (SELECT digest, state FROM blobs ORDER BY id LIMIT %(limit)s)
        ) ends WHERE state = {BlobState.LIVE:d}
        """,
        {"limit": limit},
    )
    return [Digest(row[0]) for row in found]


def read_rightly_without_bytes(connection: Connection[Any], blobs: Sequence[int]) -> set[int]:
    """Return which of these blobs without bytes in storage are not necessarily lost.

    Either they are needed only by pods that may have their bytes elsewhere: where only events show what a pod holds, in
    a store of its own; where a database shows it, the bytes of manifests. Or they were never stored, and only manifests
    of kind NAMED name them: any client can make up such a digest, and would raise an alarm that is never cleared.
    """
    if not blobs:
        return set()
    found = connection.execute(
        f"""
        SELECT b.id FROM unnest(%s::bigint[]) b (id)
        WHERE EXISTS ({_PODS_THAT_NEED} WHERE NOT p.links_in_store)
          AND NOT EXISTS (
              {_PODS_THAT_NEED} WHERE p.links_in_store OR (
                  p.is_reconcilable AND NOT EXISTS (SELECT FROM repository_manifests x WHERE x.manifest_id = b.id)))
        UNION
        SELECT b.id FROM blobs b
        WHERE b.id = ANY(%s::bigint[]) AND b.size < 0 AND b.link_count = 0
          AND NOT EXISTS (SELECT FROM repository_manifests WHERE manifest_id = b.id)
          AND (
              SELECT bool_and(m.kind = {ManifestKind.NAMED:d})
              FROM manifests m JOIN repository_manifests h ON h.manifest_id = m.id WHERE m.refs @> ARRAY[b.id]
          )
        """,
        (integer_array(blobs), integer_array(blobs)),
    )
    return {row[0] for row in found}


#: The pods that need blob `b.id`.
_PODS_THAT_NEED = """
    SELECT FROM (
        SELECT repository_id FROM repository_blobs WHERE blob_id = b.id
        UNION ALL
        SELECT repository_id FROM repository_manifests WHERE manifest_id = b.id
        UNION ALL
        SELECT h.repository_id FROM manifests m JOIN repository_manifests h ON h.manifest_id = m.id
        WHERE m.refs @> ARRAY[b.id]
    ) needed JOIN repositories r ON r.id = needed.repository_id JOIN pods p ON p.id = r.pod_id
"""


def apply_transitions(connection: Connection[Any], moves: Sequence[Transition]) -> None:
    """Change the states of blobs and write the outbox. The caller has excluded all writers of facts (db/locks.py)."""
    if not moves:
        return
    connection.execute(
        """
        WITH moved AS (
            UPDATE blobs b SET state = d.state
            FROM unnest(%s::bigint[], %s::smallint[]) d (id, state) WHERE b.id = d.id
            RETURNING b.id, b.digest, b.state, b.reference_count, b.link_count
        )
        INSERT INTO lifecycle_outbox (digest, change, reference_count, link_count)
        SELECT m.digest, c.change, m.reference_count, m.link_count
        FROM moved m JOIN unnest(%s::bigint[], %s::text[]) c (id, change) ON c.id = m.id
        WHERE c.change IS NOT NULL ORDER BY m.id
        """,
        (
            integer_array(each.blob.id for each in moves),
            integer_array(each.to for each in moves),
            integer_array(each.blob.id for each in moves),
            [each.change for each in moves],
        ),
    )


def apply_event(connection: Connection[Any], blobs: Sequence[int], event: BlobEvent) -> list[Transition]:
    """Apply an event to blobs; return the changes of state. Raises LifecycleError, with nothing changed.

    The rows stay locked until the transaction ends, so their counts cannot change before that.
    """
    found = connection.execute(
        f"{_SELECT_BLOBS} JOIN unnest(%s::bigint[]) d (id) ON d.id = b.id ORDER BY b.id FOR NO KEY UPDATE OF b",
        (integer_array(blobs),),
    )
    known = [_make_blob(row) for row in found]
    moves = [Transition(blob, state_after(blob.state, event, needed=blob.referenced)) for blob in known]
    moves = [each for each in moves if each.to is not each.blob.state]
    apply_transitions(connection, moves)
    return moves


@contextmanager
def take_from_outbox(connection: Connection[Any], limit: int) -> Iterator[list[UnpublishedChange]]:
    """Yield the oldest unpublished changes; they are deleted when the block ends, and stay if it raises.

    Yields none while another process is publishing: two at once could publish one blob's changes out of order.
    """
    with connection.transaction():
        row = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (OUTBOX_LOCK,)).fetchone()
        if row is None or not row[0]:
            yield []
            return
        found = connection.execute(
            """
            SELECT id, digest, change, at, reference_count, link_count FROM lifecycle_outbox ORDER BY id LIMIT %s
            """,
            (limit,),
        )
        changes = [UnpublishedChange(row[0], Digest(row[1]), *row[2:]) for row in found]
        yield changes
        if changes:
            connection.execute(
                "DELETE FROM lifecycle_outbox WHERE id = ANY(%s::bigint[])",
                (integer_array(each.id for each in changes),),
            )
