"""Read doubtful removals, and resolve them with what storage shows.

The caller excludes all other writers (db/locks.py) from `read_doubtful_removals` to `apply_confirmations`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.own import is_own
from coordinator.domain.pods import PodKind, PodMode
from coordinator.table import implied, statements

RemovalKey = tuple[int, bytes]
FIRST_KEY: RemovalKey = (-1, b"")


class LinkedPod(NamedTuple):
    """A pod whose links can be read."""

    id: int
    name: PodName
    kind: PodKind


class DoubtfulRemoval(NamedTuple):
    repository_id: int
    repository: RepositoryName
    digest: Digest
    #: blobs.id; None if the digest has no row.
    blob: int | None
    #: By the table, the repository has it as a manifest.
    held: bool
    #: By the table, the repository has a direct link to it that is not `kept`: a kept link stays in any case.
    linked: bool
    #: The prefixes of its pod that the repository is below.
    prefixes: Sequence[RepositoryName] = ()
    #: A delete event or an operator reported it; if not, its link has vanished.
    reported: bool = True
    #: Its pod's registry sends events, so a delete event was expected.
    managed: bool = True
    mode: PodMode = PodMode.MANIFEST

    @property
    def key(self) -> RemovalKey:
        return (self.repository_id, self.digest)


class Confirmation(NamedTuple):
    """What storage shows: whether the manifest's link is there, and the blob's."""

    doubtful: DoubtfulRemoval
    held: bool
    linked: bool


_DOUBTFUL_REMOVALS = """
    SELECT r.repository_id, n.name, r.digest, b.id,
           EXISTS (SELECT FROM repository_manifests h
                   WHERE h.manifest_id = b.id AND h.repository_id = n.id AND NOT h.implied),
           EXISTS (SELECT FROM repository_blobs l
                   WHERE l.blob_id = b.id AND l.repository_id = n.id AND NOT l.kept),
           ARRAY(SELECT x.prefix FROM pod_prefixes x
                 WHERE x.pod_id = p.id AND (n.name = x.prefix OR starts_with(n.name, x.prefix || '/'))),
           r.reported, p.managed, p.mode
    FROM removals r JOIN repositories n ON n.id = r.repository_id JOIN pods p ON p.id = n.pod_id
    LEFT JOIN blobs b ON b.digest = r.digest
    WHERE r.doubtful_since IS NOT NULL AND p.is_reconcilable
"""


def read_doubtful_pods(connection: Connection[Any], newer_than: timedelta | None = None) -> list[LinkedPod]:
    """Return the pods that can be reconciled and have doubtful removals.

    `newer_than`: only of removals that became doubtful within this time.
    """
    found = connection.execute(
        """
        SELECT p.id, p.name, p.kind FROM pods p WHERE p.is_reconcilable AND EXISTS (
            SELECT FROM removals r JOIN repositories n ON n.id = r.repository_id
            WHERE n.pod_id = p.id AND r.doubtful_since IS NOT NULL
              AND (%s::interval IS NULL OR r.doubtful_since > now() - %s::interval))
        ORDER BY p.id
        """,
        (newer_than, newer_than),
    )
    return [LinkedPod(row[0], PodName(row[1]), PodKind(row[2])) for row in found]


def read_doubtful_removals(
    connection: Connection[Any],
    pod_id: int,
    after: RemovalKey,
    limit: int,
    newer_than: timedelta | None = None,
) -> list[DoubtfulRemoval]:
    """Return a page of doubtful removals of a pod that can be reconciled, after a key.

    `newer_than`: only those that became doubtful within this time.
    """
    found = connection.execute(
        f"""
        {_DOUBTFUL_REMOVALS} AND p.id = %s AND (r.repository_id, r.digest) > (%s, %s)
          AND (%s::interval IS NULL OR r.doubtful_since > now() - %s::interval)
        ORDER BY r.repository_id, r.digest LIMIT %s
        """,
        (pod_id, *after, newer_than, newer_than, limit),
    )
    return [_make_doubtful_removal(row) for row in found]


def record_unlisted(connection: Connection[Any], keys: Sequence[RemovalKey], at: datetime) -> list[DoubtfulRemoval]:
    """Record a doubtful removal for each (repository, digest) whose link was not listed; return them.

    `at` takes the place of the time of a delete event; `reported` is false, since no event reported the removal.
    """
    repositories, digests = [key[0] for key in keys], [key[1] for key in keys]
    connection.execute(
        """
        INSERT INTO removals (repository_id, digest, removed_at, doubtful_since, reported)
        SELECT DISTINCT repository_id, digest, %s::timestamptz, now(), false
        FROM unnest(%s::int[], %s::bytea[]) d (repository_id, digest)
        ON CONFLICT (repository_id, digest) DO UPDATE
        SET removed_at = greatest(removals.removed_at, excluded.removed_at), seen_at = now(),
            doubtful_since = coalesce(removals.doubtful_since, excluded.doubtful_since)
        """,
        (at, repositories, digests),
    )
    found = connection.execute(
        f"{_DOUBTFUL_REMOVALS} AND (r.repository_id, r.digest) IN (SELECT * FROM unnest(%s::int[], %s::bytea[]))"
        " ORDER BY r.repository_id, r.digest",
        (repositories, digests),
    )
    return [_make_doubtful_removal(row) for row in found]


def _make_doubtful_removal(row: Sequence[Any]) -> DoubtfulRemoval:
    return DoubtfulRemoval(
        row[0],
        RepositoryName(row[1]),
        Digest(row[2]),
        row[3],
        row[4],
        row[5],
        row[6],
        reported=row[7],
        managed=row[8],
        mode=PodMode(row[9]),
    )


def apply_confirmations(connection: Connection[Any], results: list[Confirmation]) -> int:
    """Remove holdings and links that storage does not have, and drop the removals of those it has.

    A removal that no event reported is recorded as vanished (vanished_links.py), in the same transaction. Return how
    many holdings and links were removed.
    """
    gone = [v.doubtful for v in results if v.doubtful.held and not v.held]
    unlinked = [v.doubtful for v in results if v.doubtful.linked and not v.linked]
    for doubtful, table, column, time, kind in (
        *((doubtful, "repository_manifests", "manifest_id", "pushed_at", "manifest") for doubtful in gone),
        # In mode `manifest`, links of blobs count for a grace only, and the registry's own upkeep may delete them.
        *(
            (doubtful, "repository_blobs", "blob_id", "event_at", "blob")
            for doubtful in unlinked
            if doubtful.mode is PodMode.LINK
        ),
    ):
        if not doubtful.reported and doubtful.managed and not is_own(doubtful.repository, doubtful.prefixes):
            connection.execute(
                f"""
                UPDATE removals r SET vanished_since = now(), vanished_added_at = t.{time}, vanished_kind = %s
                FROM {table} t
                WHERE r.repository_id = %s AND r.digest = %s AND r.vanished_since IS NULL
                  AND t.repository_id = r.repository_id AND t.{column} = %s
                """,
                (kind, *doubtful.key, doubtful.blob),
            )
    for doubtful in unlinked:
        connection.execute(
            "DELETE FROM repository_blobs WHERE blob_id = %s AND repository_id = %s",
            (doubtful.blob, doubtful.repository_id),
        )
    for result in results:
        there = result.held or result.linked
        connection.execute(
            "DELETE FROM removals WHERE repository_id = %s AND digest = %s"
            if there
            else "UPDATE removals SET doubtful_since = NULL WHERE repository_id = %s AND digest = %s",
            result.doubtful.key,
        )
    statements.count_rows(connection, [], [doubtful.blob for doubtful in unlinked if doubtful.blob is not None], by=-1)
    implied.remove_unlinked(
        connection, [(doubtful.repository_id, doubtful.blob) for doubtful in gone if doubtful.blob is not None]
    )
    return len(gone) + len(unlinked)
