"""One lock over the facts: writers share it, and who needs the table at rest takes it alone. And one over the pods.

What a manifest lists is read before it is counted. The few changes that would make such a reading wrong (a manifest's
list grows, a repository is renamed or emptied) take the lock alone, so that no writer has to re-check.
The lock ends with its transaction.
"""

from typing import Any

from psycopg import Connection

#: A constant of ours in the space of advisory locks.
FACTS_LOCK = 0x62616C66
#: The same: who changes pods takes it alone, and who relies on all that was given to one until now shares it.
PODS_LOCK = 0x62616C67
#: The same: who voids what was noted by a clock that was ahead takes it (pods/clock.py).
CLOCK_LOCK = 0x62616C6A
#: The same: whoever writes the mark in the bucket holds it for a session (gc/mark_table.py).
MARK_LOCK = 0x62616C6D
#: Of reconciles that end.
END_LOCK = 0x62616C72


def enter(connection: Connection[Any], *, alone: bool = False) -> None:
    """Join the writers of facts for this transaction, or keep them all out."""
    function = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    connection.execute(f"SELECT {function}(%s)", (FACTS_LOCK,))
