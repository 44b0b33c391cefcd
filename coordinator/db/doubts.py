"""Doubtful removals: what they are about, and what a look at storage made of them.

The caller keeps all other writers out (locks.py) from `load` to `settle`.
"""

from datetime import timedelta
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db import rows
from coordinator.domain.names import Digest, RepositoryName

Key = tuple[int, bytes]
BEGINNING: Key = (-1, b"")


class Doubt(NamedTuple):
    repository_id: int
    repository: RepositoryName
    digest: Digest
    #: blobs.id; None where the digest has no row.
    blob: int | None
    #: The table says that the repository has it as a manifest; as a direct link.
    held: bool
    linked: bool

    @property
    def key(self) -> Key:
        return (self.repository_id, self.digest)


class Verdict(NamedTuple):
    """What is in storage of what the table says."""

    doubt: Doubt
    held: bool
    linked: bool


def load(connection: Connection[Any], after: Key, limit: int, newer_than: timedelta | None = None) -> list[Doubt]:
    """Return doubts after a key, of pods whose links are in shared storage; only new ones if so asked."""
    found = connection.execute(
        """
        SELECT r.repository_id, n.name, r.digest, b.id,
               EXISTS (SELECT FROM repository_manifests h WHERE h.manifest_id = b.id AND h.repository_id = n.id),
               EXISTS (SELECT FROM repository_blobs l WHERE l.blob_id = b.id AND l.repository_id = n.id)
        FROM removals r JOIN repositories n ON n.id = r.repository_id JOIN pods p ON p.id = n.pod_id
        LEFT JOIN blobs b ON b.digest = r.digest
        WHERE r.doubtful_since IS NOT NULL AND p.linker = 'link' AND (r.repository_id, r.digest) > (%s, %s)
          AND (%s::interval IS NULL OR r.doubtful_since > now() - %s::interval)
        ORDER BY r.repository_id, r.digest LIMIT %s
        """,
        (*after, newer_than, newer_than, limit),
    )
    return [Doubt(row[0], RepositoryName(row[1]), Digest(row[2]), row[3], row[4], row[5]) for row in found]


def settle(connection: Connection[Any], verdicts: list[Verdict]) -> int:
    """Remove what storage does not have; forget the removals of what it has. Return how many things were removed."""
    gone = [(v.doubt, "repository_manifests", "manifest_id") for v in verdicts if v.doubt.held and not v.held]
    unlinked = [(v.doubt, "repository_blobs", "blob_id") for v in verdicts if v.doubt.linked and not v.linked]
    for doubt, table, column in gone + unlinked:
        connection.execute(
            f"DELETE FROM {table} WHERE {column} = %s AND repository_id = %s",
            (doubt.blob, doubt.repository_id),
        )
    for verdict in verdicts:
        there = verdict.held or verdict.linked
        connection.execute(
            "DELETE FROM removals WHERE repository_id = %s AND digest = %s"
            if there
            else "UPDATE removals SET doubtful_since = NULL WHERE repository_id = %s AND digest = %s",
            verdict.doubt.key,
        )
    rows.uncount(
        connection,
        [doubt.blob for doubt, _, _ in gone if doubt.blob is not None],
        [doubt.blob for doubt, _, _ in unlinked if doubt.blob is not None],
    )
    return len(gone) + len(unlinked)
