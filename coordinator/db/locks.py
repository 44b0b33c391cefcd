"""Advisory locks: writers of facts share one, and a transaction that must exclude all writers takes it alone.

What a manifest lists is read before it is counted. The few changes that would make that wrong (a manifest's list grows,
a repository is renamed or emptied) take the lock alone, so that no writer has to check again.
The locks of facts, pods and clock end with their transaction.
"""

from typing import Any

from psycopg import Connection

#: For writers of facts. Each key is a fixed number in PostgreSQL's space of advisory locks.
FACTS_LOCK = 0x62616C66
#: Taken alone to change pods, and shared to rely on the repositories that pods own.
PODS_LOCK = 0x62616C67
#: Taken to void what was recorded while the clock was ahead (pods/clock.py).
CLOCK_LOCK = 0x62616C6A
#: Held for a session to write the mark in the bucket (gc/mark_table.py).
MARK_LOCK = 0x62616C6D
#: Taken at the end of a reconcile.
END_LOCK = 0x62616C72


def lock_facts(connection: Connection[Any], *, alone: bool = False) -> None:
    """Join the writers of facts for this transaction, or exclude all others."""
    function = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    connection.execute(f"SELECT {function}(%s)", (FACTS_LOCK,))
