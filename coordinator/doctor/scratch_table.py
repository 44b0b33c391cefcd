"""Rows of a doctor's scratch repositories, and how they are deleted.

The names of scratch repositories are reserved (doctor/scratch.py), and their content is random: nothing else has it.
So their holdings may be deleted without waiting for events, which some of the examined registries never send.
Invariant: nothing of any other repository is deleted, and no row of a blob that anything else needs.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db import locks
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName
from coordinator.table import statements


class ScratchManifest(NamedTuple):
    """A scratch manifest as the table has it."""

    held: bool
    #: What it lists; None while that is not known.
    references: frozenset[Digest] | None


def read_manifest(connection: Connection[Any], repository: RepositoryName, manifest: Digest) -> ScratchManifest:
    row = connection.execute(
        """
        SELECT EXISTS (SELECT FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
                       WHERE h.manifest_id = b.id AND r.name = %s),
               m.refs IS NOT NULL,
               ARRAY(SELECT x.digest FROM blobs x WHERE x.id = ANY(m.refs))
        FROM blobs b LEFT JOIN manifests m ON m.id = b.id WHERE b.digest = %s
        """,
        (repository, manifest),
    ).fetchone()
    if row is None:
        return ScratchManifest(held=False, references=None)
    return ScratchManifest(row[0], frozenset(Digest(each) for each in row[2]) if row[1] else None)


def find_needed_elsewhere(
    connection: Connection[Any], digests: Collection[Digest], repositories: Sequence[RepositoryName]
) -> set[Digest]:
    """Of these digests, those that anything but these repositories holds, lists or links."""
    found = connection.execute(
        """
        SELECT b.digest FROM unnest(%(digests)s::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest
        WHERE EXISTS (SELECT FROM repository_blobs l JOIN repositories r ON r.id = l.repository_id
                      WHERE l.blob_id = b.id AND r.name <> ALL (%(names)s))
           OR EXISTS (SELECT FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id
                      WHERE h.manifest_id = b.id AND r.name <> ALL (%(names)s))
           OR EXISTS (SELECT FROM manifests m JOIN repository_manifests h ON h.manifest_id = m.id
                      JOIN repositories r ON r.id = h.repository_id
                      WHERE m.refs @> ARRAY[b.id] AND r.name <> ALL (%(names)s))
        """,
        {"digests": list(digests), "names": list(repositories)},
    )
    return {Digest(row[0]) for row in found}


def count_rows(connection: Connection[Any], repositories: Sequence[RepositoryName]) -> int:
    """Count what these repositories still hold or link, and their doubtful removals."""
    row = connection.execute(
        """
        SELECT (SELECT count(*) FROM repository_manifests h WHERE h.repository_id = ANY (ids))
             + (SELECT count(*) FROM repository_blobs l WHERE l.repository_id = ANY (ids))
             + (SELECT count(*) FROM removals x WHERE x.repository_id = ANY (ids) AND x.doubtful_since IS NOT NULL)
        FROM (SELECT ARRAY(SELECT id FROM repositories WHERE name = ANY (%s)) AS ids) mine
        """,
        (list(repositories),),
    ).fetchone()
    return 0 if row is None else int(row[0])


def find_repositories(connection: Connection[Any], pod_id: int, beginning: str) -> list[RepositoryName]:
    """Return the pod's repositories whose names start with `beginning`."""
    found = connection.execute(
        "SELECT name FROM repositories WHERE pod_id = %s AND name LIKE %s ORDER BY name",
        (pod_id, beginning.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%") + "%"),
    )
    return [RepositoryName(row[0]) for row in found]


def empty_repositories(connection: Connection[Any], repositories: Sequence[RepositoryName]) -> None:
    """Delete all that these repositories hold and link. A late event about it becomes a doubtful removal."""
    with connection.transaction():
        locks.lock_facts(connection, alone=True)
        _delete_holdings_and_links(connection, _read_ids(connection, repositories))


def delete_repositories(
    connection: Connection[Any], repositories: Sequence[RepositoryName], digests: Collection[Digest]
) -> None:
    """Delete the repositories from the table, and the rows of these digests that nothing else needs.

    Only call this when no event of them can come any more, and their bytes are gone.
    """
    with connection.transaction():
        locks.lock_facts(connection, alone=True)
        ids = _read_ids(connection, repositories)
        _delete_holdings_and_links(connection, ids)
        connection.execute("DELETE FROM removals WHERE repository_id = ANY (%s)", (ids,))
        blobs = [
            row[0]
            for row in connection.execute(
                "SELECT b.id FROM unnest(%s::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest", (list(digests),)
            )
        ]
        connection.execute(
            """
            DELETE FROM manifests m WHERE id = ANY (%s)
            AND NOT EXISTS (SELECT FROM repository_manifests h WHERE h.manifest_id = m.id)
            """,
            (blobs,),
        )
        connection.execute(
            """
            DELETE FROM blobs b
            WHERE id = ANY (%s) AND reference_count = 0 AND link_count = 0 AND state = %s
              AND NOT EXISTS (SELECT FROM manifests m WHERE m.id = b.id)
              AND NOT EXISTS (SELECT FROM manifests m WHERE m.refs @> ARRAY[b.id])
            """,
            (blobs, int(BlobState.UNREFERENCED)),
        )
        connection.execute("DELETE FROM repositories WHERE id = ANY (%s)", (ids,))


def _read_ids(connection: Connection[Any], repositories: Sequence[RepositoryName]) -> list[int]:
    found = connection.execute("SELECT id FROM repositories WHERE name = ANY (%s) ORDER BY id", (list(repositories),))
    return [row[0] for row in found]


def _delete_holdings_and_links(connection: Connection[Any], ids: list[int]) -> None:
    """Delete the holdings and links. The caller holds the lock that excludes all other writers."""
    connection.execute(
        """
        INSERT INTO removals (repository_id, digest, removed_at)
        SELECT f.repository_id, b.digest, clock_timestamp() FROM (
            SELECT repository_id, manifest_id AS blob_id FROM repository_manifests WHERE repository_id = ANY (%(ids)s)
            UNION SELECT repository_id, blob_id FROM repository_blobs WHERE repository_id = ANY (%(ids)s)
        ) f JOIN blobs b ON b.id = f.blob_id
        ON CONFLICT (repository_id, digest) DO UPDATE SET removed_at = excluded.removed_at
        """,
        {"ids": ids},
    )
    connection.execute("UPDATE removals SET doubtful_since = NULL WHERE repository_id = ANY (%s)", (ids,))
    held = connection.execute(
        "DELETE FROM repository_manifests WHERE repository_id = ANY (%s) RETURNING manifest_id", (ids,)
    ).fetchall()
    linked = connection.execute(
        "DELETE FROM repository_blobs WHERE repository_id = ANY (%s) RETURNING blob_id", (ids,)
    ).fetchall()
    statements.count_rows(connection, [row[0] for row in held], [row[0] for row in linked], by=-1)
