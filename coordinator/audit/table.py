"""Read every blob of the table in the order of digests, for an audit.

The server sorts the rows and keeps them in temporary files until the audit ends: no transaction stays open while a
store is listed. The rows are as of the moment of the query.
`insert_orphans` adds orphans to the table, for garbage collection.
Not here: the comparison (domain/inventory.py), writing missing blobs (table/lifecycle.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from psycopg import Connection

from coordinator.db.arrays import integer_array
from coordinator.domain.inventory import StoredBlob, TableBlob
from coordinator.domain.lifecycle import BlobEvent, BlobState
from coordinator.domain.names import Digest
from coordinator.table import lifecycle

#: Rows that are in memory at once.
FETCH = 5000
#: Memory of the server for sorting; beyond it temporary files.
SORT_MEMORY = "64MB"


def read_clock(connection: Connection[Any]) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def insert_orphans(connection: Connection[Any], orphans: Sequence[StoredBlob]) -> int:
    """Add orphans to the table as blobs unreferenced since now, to be collected like others; return how many.

    A blob that was referenced meanwhile stays as it is.
    """
    with connection.transaction():
        new = connection.execute(
            f"""
            INSERT INTO blobs (size, unreferenced_since, reference_count, link_count, state, digest)
            SELECT size, clock_timestamp(), 0, 0, {BlobState.UNREFERENCED:d}, digest
            FROM unnest(%s::bigint[], %b::bytea[]) d (size, digest)
            ON CONFLICT DO NOTHING
            """,
            (integer_array(each.size for each in orphans), [bytes(each.digest) for each in orphans]),
        ).rowcount
        purged = connection.execute(
            f"""
            SELECT id FROM blobs WHERE digest = ANY(%b::bytea[]) AND state = {BlobState.PURGED:d}
            AND unreferenced_since IS NOT NULL ORDER BY id FOR NO KEY UPDATE
            """,
            ([bytes(each.digest) for each in orphans],),
        ).fetchall()
        again = [row[0] for row in purged]
        lifecycle.apply_event(connection, again, BlobEvent.SHOWN)
        connection.execute(
            "UPDATE blobs SET unreferenced_since = clock_timestamp() WHERE id = ANY(%s::bigint[])",
            (integer_array(again),),
        )
    return new + len(again)


@contextmanager
def read_blobs(connection: Connection[Any]) -> Iterator[Iterator[TableBlob]]:
    """Give every blob of the table by digest. The server sorts all of them before it gives the first."""
    cursor = connection.cursor("audit", withhold=True)
    with cursor:
        with connection.transaction():
            connection.execute("SET LOCAL statement_timeout = 0")
            connection.execute(f"SET LOCAL work_mem = '{SORT_MEMORY}'")
            cursor.execute(
                "SELECT digest, size, state, reference_count > 0 OR link_count > 0 FROM blobs ORDER BY digest",
                binary=True,
            )
        yield _fetch_blobs(cursor)


def _fetch_blobs(cursor: Any) -> Iterator[TableBlob]:
    states = {int(state): state for state in BlobState}
    while rows := cursor.fetchmany(FETCH):
        for digest, size, state, referenced in rows:
            yield TableBlob(Digest(digest), size, states[state], referenced)
