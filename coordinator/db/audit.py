"""What an audit asks of the table: every blob, in the order of digests.

The answer is sorted and kept by the server, in temporary files, until the audit ends: no transaction stays open while a
store is listed. It is as of the moment when it was asked for.
Not here: the comparison (domain/inventory.py), writing down what is missing (lifecycle.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from psycopg import Connection

from coordinator.domain.inventory import TableBlob
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest

#: Rows that are in memory at once.
FETCH = 5000
#: Memory of the server for sorting; beyond it temporary files.
SORT_MEMORY = "64MB"


def clock(connection: Connection[Any]) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


@contextmanager
def blobs(connection: Connection[Any]) -> Iterator[Iterator[TableBlob]]:
    """Give every blob of the table by digest; the first comes after all of them were sorted."""
    cursor = connection.cursor("audit", withhold=True)
    with cursor:
        with connection.transaction():
            connection.execute("SET LOCAL statement_timeout = 0")
            connection.execute(f"SET LOCAL work_mem = '{SORT_MEMORY}'")
            cursor.execute(
                "SELECT digest, size, state, reference_count > 0 OR link_count > 0 FROM blobs ORDER BY digest",
                binary=True,
            )
        yield _fetch(cursor)


def _fetch(cursor: Any) -> Iterator[TableBlob]:
    states = {int(state): state for state in BlobState}
    while rows := cursor.fetchmany(FETCH):
        for digest, size, state, referenced in rows:
            yield TableBlob(Digest(digest), size, states[state], referenced)
