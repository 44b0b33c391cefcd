"""Write a mount's reference to the table, before the pod's link is made.

Route: coordinator/mounts -> `reserve_link` -> link or relay -> 201.
The reference is a direct link, as if an event had reported it: in a pod of mode `manifest` it counts for the grace of
links, within which the client pushes the manifest that lists the blob.
Not here: whether the client is permitted, and whether the source has the blob.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.db import locks
from coordinator.domain.facts import BlobLinked
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.mounts.directory import MountPod
from coordinator.table import statements
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item, StateChangedError

#: How long mounts are kept for `explain`.
SHOWN_DAYS = 30
STATEMENT_MS = 2000
#: Rows that one statement deletes.
FORGET_LIMIT = 10_000


def prepare_connection(connection: Connection[Any]) -> None:
    """Set up a connection for mounts: statements time out, because a client waits and can upload instead."""
    statements.prepare_connection(connection)
    connection.execute(f"SET statement_timeout = {STATEMENT_MS}")


def read_pods(connection: Connection[Any]) -> list[MountPod]:
    """Return what mounts need to know of every pod."""
    found = connection.execute(
        """
        SELECT id, name, kind, registries, ARRAY(SELECT prefix FROM pod_prefixes x WHERE x.pod_id = p.id), managed
        FROM pods p
        """
    )
    return [MountPod(row[0], PodName(row[1]), PodKind(row[2]), tuple(row[3]), tuple(row[4]), row[5]) for row in found]


class Reservation(NamedTuple):
    """A reference that a mount has made."""

    repository: RepositoryName
    digest: Digest
    at: datetime
    #: The repository did not link the blob before.
    is_new: bool
    #: The blob's size is not known yet.
    is_unsized: bool
    #: The row of the mount.
    mount: int


def reserve_link(
    connection: Connection[Any],
    pod_id: int,
    repository: RepositoryName,
    digest: Digest,
    source: RepositoryName,
    at: datetime,
    margin: timedelta,
) -> Reservation:
    """Add the link of `repository` to the blob to the table, as of `at`; a repetition changes only the time.

    In one transaction, so that a hide of the blob is either before or after it. Raises NotServedError if it is before.
    """
    found: list[tuple[int, bool]] = []

    def record_mount() -> None:
        # An existing link may have a time of a registry whose clock is ahead: it counts from now all the same.
        noted = connection.execute(
            """
            WITH linked AS (
                UPDATE repository_blobs l SET linked_at = now() FROM blobs b, repositories r
                WHERE b.digest = %(digest)s AND r.name = %(repository)s
                  AND l.blob_id = b.id AND l.repository_id = r.id
                RETURNING l.blob_id, b.size < 0 AS is_unsized
            ), noted AS (
                INSERT INTO mounts (blob_id, repository, source) SELECT blob_id, %(repository)s, %(source)s FROM linked
                RETURNING id
            )
            SELECT n.id, l.is_unsized FROM noted n, linked l
            """,
            {"digest": digest, "repository": repository, "source": source},
        ).fetchone()
        if noted is None:
            # The link existed, and has expired since it was read (table/expiry.py).
            raise StateChangedError("A link has expired while the blob was mounted.")
        found[:] = [noted]

    fact = BlobLinked(repository, digest, at, None)
    applied = BatchApplier(connection, margin).apply_if_served(Item(0, 0, pod_id, fact, None), digest, record_mount)
    ((mount, unsized),) = found
    return Reservation(repository, digest, fact.at, applied.links_added > 0, unsized, mount)


def record_size(connection: Connection[Any], digest: Digest, size: int) -> None:
    """Record the size of a blob whose size is not known yet."""
    connection.execute("UPDATE blobs SET size = %s WHERE digest = %s AND size < 0", (size, digest))


def is_in_table(connection: Connection[Any], reserved: Reservation) -> bool:
    """Whether the reference is still in the table."""
    row = connection.execute(
        """
        SELECT FROM repository_blobs l JOIN blobs b ON b.id = l.blob_id JOIN repositories r ON r.id = l.repository_id
        WHERE b.digest = %s AND r.name = %s
        """,
        (reserved.digest, reserved.repository),
    ).fetchone()
    return row is not None


def undo_reservation(connection: Connection[Any], reserved: Reservation) -> None:
    """Undo the new reference of a mount that certainly failed, unless something relies on it since.

    Where links count until a delete is reported (mode `link`), it would stay forever. If they are not in the bucket it
    does stay: there Baleen cannot check links, and a registry whose clock is behind may have reported the same link
    since with an earlier time, of which the row shows nothing. Elsewhere a reconcile or the manifest restores what that
    would cost.
    """
    with connection.transaction():
        locks.lock_facts(connection)
        connection.execute("DELETE FROM mounts WHERE id = %s", (reserved.mount,))
        if not reserved.is_new:
            return
        row = connection.execute(
            """
            DELETE FROM repository_blobs l USING blobs b, repositories r, pods p
            WHERE b.digest = %s AND r.name = %s AND l.blob_id = b.id AND l.repository_id = r.id AND l.event_at = %s
              AND NOT l.kept
              AND p.id = r.pod_id AND (p.mode <> 'link' OR p.links_in_store)
              AND NOT EXISTS (SELECT FROM mounts m WHERE m.blob_id = b.id AND m.repository = r.name AND m.id > %s)
            RETURNING l.blob_id
            """,
            (reserved.digest, reserved.repository, reserved.at, reserved.mount),
        ).fetchone()
        if row is not None:
            statements.count_rows(connection, [], [row[0]], by=-1)


def find_other_repositories(
    connection: Connection[Any], pod_id: int, digest: Digest, but: RepositoryName, limit: int
) -> list[RepositoryName]:
    """Return some other repositories of the pod that link the blob, by the table, to mount it from one of them.

    Not each will work: the table has a repository's pending mount before the pod does.
    """
    found = connection.execute(
        """
        SELECT r.name FROM blobs b JOIN repository_blobs l ON l.blob_id = b.id
        JOIN repositories r ON r.id = l.repository_id
        WHERE b.digest = %s AND r.pod_id = %s AND r.name <> %s LIMIT %s
        """,
        (digest, pod_id, but, limit),
    )
    return [RepositoryName(row[0]) for row in found]


def lock_relay(connection: Connection[Any], pod_id: int, digest: Digest) -> bool:
    """Lock the relay of the blob to the pod, until `unlock_relay` or the end of the connection; False if it is locked
    already.
    """
    return _ask_lock(connection, "SELECT pg_try_advisory_lock(%s)", pod_id, digest)


def unlock_relay(connection: Connection[Any], pod_id: int, digest: Digest) -> None:
    _ask_lock(connection, "SELECT pg_advisory_unlock(%s)", pod_id, digest)


def _ask_lock(connection: Connection[Any], statement: str, pod_id: int, digest: Digest) -> bool:
    key = int.from_bytes(hashlib.sha256(f"relay {pod_id} ".encode() + digest).digest()[:8], signed=True)
    row = connection.execute(statement, (key,)).fetchone()
    return row is not None and bool(row[0])


def delete_old_mounts(connection: Connection[Any]) -> int:
    """Delete a batch of old mounts; return how many."""
    return connection.execute(
        """
        DELETE FROM mounts WHERE id IN (
            SELECT id FROM mounts WHERE at < now() - make_interval(days => %s) ORDER BY at LIMIT %s
        )
        """,
        (SHOWN_DAYS, FORGET_LIMIT),
    ).rowcount
