"""Explain why a blob is kept, or what happened to it: read everything about one blob for its history.

Facts about pods are read before the blob, so that no reason to keep it is newer than its row.
Not here: the outcome and the sentences (domain/history.py).
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, text

from coordinator.db.session import read_connection
from coordinator.db.threads import in_thread
from coordinator.domain.gc import Facts
from coordinator.domain.history import Entry, KnownBlob, PendingHide, explain_blob
from coordinator.domain.lifecycle import STATES, BlobState
from coordinator.domain.names import Digest, format_digest
from coordinator.domain.pods import PodMode
from coordinator.errors import NotFoundError
from coordinator.gc.conditions import ReadFacts
from coordinator.gc.shapes import Pin
from coordinator.lookup.blobs import BlobQueries
from coordinator.lookup.references import read_references
from coordinator.lookup.shapes import Blob, Chapter, DirectLink, Explanation, MountMade, OpenHide, Reason
from coordinator.lookup.sizes import Sizes
from coordinator.table.ledger import Decision

#: Holdings and links that are named.
EXAMPLES = 10

_BLOB = text("""
SELECT b.id, b.state, b.size, b.reference_count, b.link_count, b.first_seen, b.unreferenced_since,
       p.why AS pin_why, p.pinned_at, h.id AS hide_id, h.run_id, h.intended_at, h.hidden_at, h.purging_at,
       h.size AS hide_size, h.asked_at, h.asked_why, c.pod AS claimed_by,
       h.unreferenced_since IS DISTINCT FROM b.unreferenced_since AS disturbed
FROM blobs b LEFT JOIN pins p ON p.digest = b.digest LEFT JOIN hides h ON h.blob_id = b.id
LEFT JOIN claims c ON c.blob_id = b.id
WHERE b.digest = :digest
""")
_LINKS = text("""
SELECT p.name AS pod, p.mode, r.name AS repository, l.linked_at
FROM (SELECT repository_id, linked_at FROM repository_blobs WHERE blob_id = :blob ORDER BY repository_id LIMIT :limit) l
JOIN repositories r ON r.id = l.repository_id JOIN pods p ON p.id = r.pod_id ORDER BY p.name, r.name
""")
_MOUNTS = text("SELECT at, repository, source FROM mounts WHERE blob_id = :blob ORDER BY id DESC LIMIT :limit")
_LEDGER = text("""
SELECT id, at, decision, why, run_id, evidence FROM gc_ledger WHERE digest = :digest ORDER BY id DESC LIMIT :limit
""")


async def read_explanation(
    engine: Engine, sizes: Sizes, blobs: BlobQueries, read_facts: ReadFacts, link_grace: dt.timedelta, digest: Digest
) -> Explanation:
    """Return a blob's state and history; raises NotFoundError for one that no registry has reported."""
    facts, row, links, mounts, entries = await in_thread(
        _read_rows, engine, sizes.entries, read_facts, link_grace, digest
    )
    counted = await blobs.get(digest)
    holdings = await in_thread(read_references, engine, sizes, digest, limit=EXAMPLES)
    earlier = len(entries) > sizes.entries
    history = [_make_chapter(digest, entry) for entry in reversed(entries[: sizes.entries])]
    explanation = explain_blob(
        _make_known_blob(row, counted),
        facts,
        [Entry(each.at, each.decision.value, each.why, each.run, each.evidence) for each in history],
        earlier=earlier,
    )
    return Explanation(
        digest=format_digest(digest),
        state=STATES[row.state],
        size=None if row.size < 0 else row.size,
        outcome=explanation.outcome,
        summary=explanation.summary,
        reasons=[Reason(why=each.kept.why, detail=each.kept.detail, until=each.until) for each in explanation.reasons],
        sentences=list(explanation.sentences),
        reference_count=row.reference_count,
        link_count=row.link_count,
        repository_count=counted.repository_count,
        pods=counted.pods,
        references=holdings.items,
        links=links,
        mounts=[MountMade(at=each.at, repository=each.repository, source=each.source) for each in mounts],
        first_seen=row.first_seen,
        unreferenced_since=row.unreferenced_since,
        pin=_make_pin(digest, row),
        hide=_make_hide(row),
        history=history,
        earlier=earlier,
    )


class _Rows(NamedTuple):
    """The facts about pods, and what the table has of one blob."""

    facts: Facts
    blob: Row[Any]
    links: list[DirectLink]
    mounts: Sequence[Row[Any]]
    #: Of the ledger, the newest first.
    entries: Sequence[Row[Any]]


def _read_rows(engine: Engine, entries: int, read_facts: ReadFacts, link_grace: dt.timedelta, digest: Digest) -> _Rows:
    with read_connection(engine) as connection:
        facts = read_facts(connection)
        row = connection.execute(_BLOB, {"digest": digest}).one_or_none()
        if row is None:
            raise NotFoundError(f"No registry has reported {format_digest(digest)} yet: check the digest.")
        return _Rows(
            facts,
            row,
            _read_links(connection, row.id, link_grace) if row.link_count else [],
            connection.execute(_MOUNTS, {"blob": row.id, "limit": EXAMPLES}).all(),
            connection.execute(_LEDGER, {"digest": digest, "limit": entries + 1}).all(),
        )


def _make_known_blob(row: Row[Any], counted: Blob) -> KnownBlob:
    hide = None if row.hide_id is None else PendingHide(row.run_id, row.hidden_at, row.disturbed, row.asked_why)
    return KnownBlob(
        BlobState(row.state),
        row.reference_count,
        row.link_count,
        counted.repository_count,
        counted.pods,
        row.first_seen,
        row.unreferenced_since,
        row.pin_why,
        hide,
        row.claimed_by,
    )


def _read_links(connection: Connection, blob: int, grace: dt.timedelta) -> list[DirectLink]:
    return [
        DirectLink(
            pod=row.pod,
            repository=row.repository,
            linked_at=row.linked_at,
            counts_until=row.linked_at + grace if row.mode == PodMode.MANIFEST else None,
        )
        for row in connection.execute(_LINKS, {"blob": blob, "limit": EXAMPLES})
    ]


def _make_chapter(digest: Digest, row: Row[Any]) -> Chapter:
    return Chapter(
        id=row.id,
        at=row.at,
        digest=format_digest(digest),
        decision=Decision(row.decision),
        why=row.why,
        run=row.run_id,
        evidence=row.evidence,
    )


def _make_pin(digest: Digest, row: Row[Any]) -> Pin | None:
    if row.pin_why is None:
        return None
    return Pin(digest=format_digest(digest), why=row.pin_why, pinned_at=row.pinned_at, state=STATES[row.state])


def _make_hide(row: Row[Any]) -> OpenHide | None:
    if row.hide_id is None:
        return None
    return OpenHide(
        id=row.hide_id,
        run=row.run_id,
        intended_at=row.intended_at,
        hidden_at=row.hidden_at,
        purging_at=row.purging_at,
        bytes=row.hide_size,
        asked_at=row.asked_at,
        asked_why=row.asked_why,
    )
