"""Append to the ledger: what garbage collection decided, when, why, and on what evidence. Rows are never changed.

Written in the transaction that acts on a decision or records its result, and when an operator decides about a single
blob (gc/controls.py).
Not here: reading it (gc/runs.py by run, lookup/explain.py by blob).
"""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.domain.names import Digest


class Decision(StrEnum):
    """What was decided or done. The values are fixed: stored entries have them and scripts use them."""

    #: It is about to be hidden.
    HIDE = "hide"
    HIDDEN = "hidden"
    #: What its hide recorded is about to be deleted.
    PURGE = "purge"
    PURGED = "purged"
    #: It was needed again or undeleted, and is served again.
    RESTORED = "restored"
    #: An unfinished hide was undone.
    UNDONE = "undone"
    #: It was kept against the plan, because of what storage showed.
    KEPT = "kept"
    #: An alarm: someone other than Baleen made it visible to registries while it was hidden. Its purge is cancelled.
    SHOWN = "shown-by-others"
    #: By an operator: never collect it; collect it like any other; restore it.
    PINNED = "pinned"
    UNPINNED = "unpinned"
    ASKED_BACK = "asked-back"
    #: By an operator: its link vanished without a delete event, and that is accepted (table/vanished_links.py).
    ACCEPTED = "accepted"


class Entry(NamedTuple):
    digest: Digest
    decision: Decision
    why: str
    evidence: dict[str, Any]
    run_id: int | None = None
    hide_id: int | None = None


def write_entries(connection: Connection[Any], entries: Sequence[Entry]) -> None:
    if not entries:
        return
    connection.execute(
        """
        INSERT INTO gc_ledger (digest, decision, why, evidence, run_id, hide_id)
        SELECT * FROM unnest(%b::bytea[], %b::text[], %b::text[], %b::jsonb[], %b::bigint[], %b::bigint[])
        """,
        (
            [bytes(entry.digest) for entry in entries],
            [entry.decision.value for entry in entries],
            [entry.why for entry in entries],
            [json.dumps(entry.evidence) for entry in entries],
            [entry.run_id for entry in entries],
            [entry.hide_id for entry in entries],
        ),
    )
