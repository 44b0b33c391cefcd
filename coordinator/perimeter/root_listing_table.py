"""The last listing of the root for repositories that no pod owns, as a row. Not here: listing, what follows from it."""

import datetime
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from psycopg import Connection

from coordinator.domain.names import RepositoryName
from coordinator.domain.perimeter import Listing, evaluate_listing
from coordinator.domain.pods import WITH_REGISTRY_DATABASE

#: The pods' present prefixes, and the listing, unless a clock that was ahead wrote its time.
SELECT_LISTING: Final = """
SELECT ARRAY(SELECT prefix FROM pod_prefixes ORDER BY prefix) AS known, l.began_at, l.prefixes, l.unowned, l.complete
FROM (SELECT) one LEFT JOIN root_listing l ON l.began_at <= clock_timestamp()
"""


class ListingStart(NamedTuple):
    """The beginning of a listing."""

    at: datetime.datetime
    #: Prefixes of all pods.
    prefixes: Sequence[RepositoryName]
    #: Whether any pod's registry has a metadata database.
    database_pods: bool = False


def begin_listing(connection: Connection[Any]) -> ListingStart:
    """Read the time and what is registered, before the first request of a listing."""
    row = connection.execute(
        """
        SELECT clock_timestamp(), ARRAY(SELECT prefix FROM pod_prefixes ORDER BY prefix),
               EXISTS (SELECT FROM pods WHERE kind = ANY (%s))
        """,
        ([str(kind) for kind in WITH_REGISTRY_DATABASE],),
    ).fetchone()
    assert row is not None
    return ListingStart(row[0], [RepositoryName(prefix) for prefix in row[1]], row[2])


def write_listing(connection: Connection[Any], begun: ListingStart, unowned: Sequence[str], *, complete: bool) -> None:
    """Write the result of a listing, unless there is one that began later."""
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


def read_listing(connection: Connection[Any]) -> Listing | None:
    """Return the last listing, applied to the present pods; None if there is none."""
    return make_listing(connection.execute(SELECT_LISTING).fetchone())


def make_listing(row: Sequence[Any] | None) -> Listing | None:
    """Make a listing from a row of READ."""
    if row is None or row[1] is None:
        return None
    known, began_at, listed_with, unowned, complete = row
    return evaluate_listing(began_at, listed_with, unowned, complete, known)


def is_listing_due(connection: Connection[Any], every: datetime.timedelta) -> bool:
    """Whether to list again: there is no listing with the present prefixes that is younger than `every`."""
    row = connection.execute(
        """
        SELECT NOT EXISTS (
            SELECT FROM root_listing l WHERE l.began_at BETWEEN clock_timestamp() - %s AND clock_timestamp()
              AND l.prefixes = ARRAY(SELECT prefix FROM pod_prefixes ORDER BY prefix))
        """,
        (every,),
    ).fetchone()
    return row is None or bool(row[0])
