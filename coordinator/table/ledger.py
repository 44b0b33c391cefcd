"""The ledger: what garbage collection decided, when, why, and on what evidence. Only ever appended to.

Written in the transaction that acts on a decision, or that knows what came of it; and when an operator decides about a
single blob (gc/controls.py).
Not here: reading it (gc/runs.py by run, lookup/explain.py by blob).
"""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.domain.names import Digest


class Decision(StrEnum):
    """The names are fixed: whoever reads the ledger has them."""

    #: It is about to be hidden.
    HIDE = "hide"
    HIDDEN = "hidden"
    #: What its hide recorded is about to be deleted.
    PURGE = "purge"
    PURGED = "purged"
    #: It was needed again, or asked back, and is served again.
    RESTORED = "restored"
    #: A hide that did not end is undone.
    UNDONE = "undone"
    #: It was kept against the plan, by a look at storage.
    KEPT = "kept"
    #: An alarm: others than Baleen let registries see it while it was hidden. It was about to be purged, and is kept.
    SHOWN = "shown-by-others"
    #: By an operator: never collect it; collect it like any other; bring it back.
    PINNED = "pinned"
    UNPINNED = "unpinned"
    ASKED_BACK = "asked-back"
    #: By an operator: its link is gone without a delete event, and may be (table/vanished_links.py).
    ACCEPTED = "accepted"


class Entry(NamedTuple):
    digest: Digest
    decision: Decision
    why: str
    evidence: dict[str, Any]
    run_id: int | None = None
    hide_id: int | None = None


def write(connection: Connection[Any], entries: Sequence[Entry]) -> None:
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
