"""Keep the links of repositories with manifests whose bytes do not say all that they need (reconcile/link_keeper.py).

`manifests.by_links` marks these manifests. A holding of one is `links_pending` from the transaction that adds it until
the links of its repository are listed and marked as `kept`. Kept links count until the repository holds no such
manifest, whatever events, sweeps and reconciles do.
Not here: which manifests these are (digest_facts.py), keeping links (apply.py), storage.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db import locks
from coordinator.db.arrays import digest_array, integer_array, time_array
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.table.doubtful_removals import LinkedPod

#: Rows that one transaction keeps or releases.
BATCH_SIZE = 1000


class HoldingByLinks(NamedTuple):
    repository_id: int
    repository: RepositoryName
    pod: LinkedPod
    digest: Digest
    #: By the registry's clock: a different time means that it was pushed again.
    pushed_at: datetime


def read_unread_manifests(connection: Connection[Any], after: int, limit: int) -> list[tuple[int, Digest]]:
    """Return ids and digests of manifests whose bytes were not read yet, by id."""
    found = connection.execute(
        "SELECT m.id, b.digest FROM manifests m JOIN blobs b ON b.id = m.id"
        " WHERE m.refs IS NULL AND m.id > %s ORDER BY m.id LIMIT %s",
        (after, limit),
    )
    return [(row[0], Digest(row[1])) for row in found]


def read_holders(
    connection: Connection[Any], manifests: Sequence[Digest]
) -> dict[LinkedPod, list[tuple[RepositoryName, Digest]]]:
    """Return for each manifest that is held a repository that holds it, by pods; best one whose links can be read."""
    found = connection.execute(
        """
        SELECT p.id, p.name, p.kind, x.repository, d.digest
        FROM unnest(%s::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest
        CROSS JOIN LATERAL (
            SELECT r.pod_id, r.name AS repository FROM repository_manifests h
            JOIN repositories r ON r.id = h.repository_id JOIN pods p ON p.id = r.pod_id
            WHERE h.manifest_id = b.id ORDER BY p.links_in_store DESC, p.is_reconcilable DESC LIMIT 1
        ) x JOIN pods p ON p.id = x.pod_id
        """,
        (digest_array(manifests),),
    )
    held: dict[LinkedPod, list[tuple[RepositoryName, Digest]]] = {}
    for number, name, kind, repository, digest in found:
        held.setdefault(LinkedPod(number, name, PodKind(kind)), []).append((RepositoryName(repository), Digest(digest)))
    return held


def read_pending_repositories(connection: Connection[Any]) -> list[int]:
    """Return the repositories whose links must be listed, of pods that can be reconciled."""
    found = connection.execute(
        """
        SELECT DISTINCT h.repository_id FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
        JOIN pods p ON p.id = r.pod_id WHERE h.links_pending AND p.is_reconcilable ORDER BY 1
        """
    )
    return [row[0] for row in found]


def read_repositories_by_links(connection: Connection[Any], pod_id: int) -> list[int]:
    """Return the repositories of a pod that hold manifests marked `by_links`."""
    found = connection.execute(
        """
        SELECT DISTINCT h.repository_id FROM manifests m JOIN repository_manifests h ON h.manifest_id = m.id
        JOIN repositories r ON r.id = h.repository_id WHERE m.by_links AND r.pod_id = %s ORDER BY 1
        """,
        (pod_id,),
    )
    return [row[0] for row in found]


def read_holdings(
    connection: Connection[Any], repository_id: int, limit: int, *, pending: bool
) -> list[HoldingByLinks]:
    """Return the repository's holdings of manifests marked `by_links`; with `pending`, only pending ones."""
    found = connection.execute(
        """
        SELECT r.id, r.name, p.id, p.name, p.kind, b.digest, h.pushed_at FROM repository_manifests h
        JOIN repositories r ON r.id = h.repository_id JOIN pods p ON p.id = r.pod_id
        JOIN blobs b ON b.id = h.manifest_id
        WHERE h.repository_id = %s AND h.links_pending LIMIT %s
        """
        if pending
        else """
        SELECT r.id, r.name, p.id, p.name, p.kind, b.digest, h.pushed_at FROM manifests m
        JOIN repository_manifests h ON h.manifest_id = m.id
        JOIN repositories r ON r.id = h.repository_id JOIN pods p ON p.id = r.pod_id
        JOIN blobs b ON b.id = h.manifest_id
        WHERE m.by_links AND h.repository_id = %s LIMIT %s
        """,
        (repository_id, limit),
    )
    return [
        HoldingByLinks(
            row[0], RepositoryName(row[1]), LinkedPod(row[2], row[3], PodKind(row[4])), Digest(row[5]), row[6]
        )
        for row in found
    ]


def keep_known_links(connection: Connection[Any], repository_id: int) -> None:
    """Keep the links of the repository that the table has: storage may have lost some since the push."""
    after = -1
    while True:
        with connection.transaction():
            locks.lock_facts(connection)
            row = connection.execute(
                """
                WITH chosen AS MATERIALIZED (
                    SELECT blob_id FROM repository_blobs WHERE repository_id = %s AND blob_id > %s
                    ORDER BY blob_id LIMIT %s FOR NO KEY UPDATE
                ), changed AS (
                    UPDATE repository_blobs l SET kept = true FROM chosen
                    WHERE l.repository_id = %s AND l.blob_id = chosen.blob_id AND NOT l.kept
                )
                SELECT max(blob_id) FROM chosen
                """,
                (repository_id, after, BATCH_SIZE, repository_id),
            ).fetchone()
        if row is None or row[0] is None:
            return
        after = row[0]


def mark_holdings_listed(connection: Connection[Any], found: Sequence[HoldingByLinks]) -> int:
    """Mark these holdings as no longer pending, unless they were pushed again since; return how many."""
    with connection.transaction():
        locks.lock_facts(connection)
        return connection.execute(
            """
            UPDATE repository_manifests h SET links_pending = false
            FROM unnest(%s::int[], %s::bytea[], %s::timestamptz[]) d (repository_id, digest, pushed_at)
            JOIN blobs b ON b.digest = d.digest
            WHERE h.manifest_id = b.id AND h.repository_id = d.repository_id AND h.pushed_at = d.pushed_at
              AND h.links_pending
            """,
            (
                integer_array(each.repository_id for each in found),
                digest_array(each.digest for each in found),
                time_array(each.pushed_at for each in found),
            ),
        ).rowcount


def release_links(connection: Connection[Any], pod_id: int) -> int:
    """Release the kept links of the pod's repositories that no longer hold such a manifest; return how many.

    They are ordinary links then, and their grace begins now.
    """
    repositories = connection.execute(
        """
        SELECT r.id FROM repositories r WHERE r.pod_id = %s
        AND EXISTS (SELECT FROM repository_blobs l WHERE l.repository_id = r.id AND l.kept)
        AND NOT EXISTS (SELECT FROM manifests m JOIN repository_manifests h ON h.manifest_id = m.id
                        WHERE (m.by_links OR m.refs IS NULL) AND h.repository_id = r.id)
        """,
        (pod_id,),
    ).fetchall()
    total = 0
    for (repository,) in repositories:
        while True:
            with connection.transaction():
                locks.lock_facts(connection)
                released = connection.execute(
                    """
                    WITH chosen AS MATERIALIZED (
                        SELECT blob_id FROM repository_blobs WHERE repository_id = %s AND kept
                        ORDER BY blob_id LIMIT %s FOR UPDATE SKIP LOCKED)
                    UPDATE repository_blobs l SET kept = false, linked_at = now() FROM chosen
                    WHERE l.blob_id = chosen.blob_id AND l.repository_id = %s
                    """,
                    (repository, BATCH_SIZE, repository),
                ).rowcount
            total += released
            if released < BATCH_SIZE:
                break
    return total
