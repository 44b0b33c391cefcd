"""The last listing of the root for repositories that no pod owns, as a row. Not here: listing, what follows from it."""

import datetime
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from psycopg import Connection

from coordinator.domain.names import RepositoryName
from coordinator.domain.perimeter import Listing, as_of_now

#: The pods' prefixes of now, and the listing, if there is one that was not noted by a clock that was ahead.
READ: Final = """
SELECT ARRAY(SELECT prefix FROM pod_prefixes ORDER BY prefix) AS known, l.began_at, l.prefixes, l.unowned, l.complete
FROM (SELECT) one LEFT JOIN root_listing l ON l.began_at <= clock_timestamp()
"""


class Begun(NamedTuple):
    """A listing that begins."""

    at: datetime.datetime
    #: Of all pods.
    prefixes: Sequence[RepositoryName]


def begin(connection: Connection[Any]) -> Begun:
    """Read the time and the prefixes, before the first request of a listing."""
    row = connection.execute(
        "SELECT clock_timestamp(), ARRAY(SELECT prefix FROM pod_prefixes ORDER BY prefix)"
    ).fetchone()
    assert row is not None
    return Begun(row[0], [RepositoryName(prefix) for prefix in row[1]])


def write(connection: Connection[Any], begun: Begun, unowned: Sequence[str], *, complete: bool) -> None:
    """Keep what a listing has found, unless one that began later is known."""
    connection.execute(
        """
        INSERT INTO root_listing AS l (began_at, prefixes, unowned, complete)
        VALUES (%s, %s::text[], %s::text[], %s)
        ON CONFLICT (id) DO UPDATE SET (began_at, prefixes, unowned, complete)
            = (excluded.began_at, excluded.prefixes, excluded.unowned, excluded.complete)
        WHERE l.began_at < excluded.began_at OR l.began_at > clock_timestamp()
        """,
        (begun.at, list(begun.prefixes), list(unowned), complete),
    )


def read(connection: Connection[Any]) -> Listing | None:
    """Return what the last listing means with the pods of now; None if nothing is known."""
    return listing(connection.execute(READ).fetchone())


def listing(row: Sequence[Any] | None) -> Listing | None:
    """Make a listing of a row of READ."""
    if row is None or row[1] is None:
        return None
    known, began_at, listed_with, unowned, complete = row
    return as_of_now(began_at, listed_with, unowned, complete, known)


def is_due(connection: Connection[Any], every: datetime.timedelta) -> bool:
    """Whether it is time to list again: none is known that is of these prefixes and younger than `every`."""
    row = connection.execute(
        """
        SELECT NOT EXISTS (
            SELECT FROM root_listing l WHERE l.began_at BETWEEN clock_timestamp() - %s AND clock_timestamp()
              AND l.prefixes = ARRAY(SELECT prefix FROM pod_prefixes ORDER BY prefix))
        """,
        (every,),
    ).fetchone()
    return row is None or bool(row[0])
