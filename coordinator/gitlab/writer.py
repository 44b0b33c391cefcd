"""Write the rows by which a GitLab Container Registry serves a blob in a repository: those of a mount.

What the registry itself writes for an upload and for a mount, in the same order, and only what is missing:

    blobs                   the digest, its size, and the media type of every blob that came by an upload
    top_level_namespaces    the first part of the path
    repositories            the path and its last part, without a parent, as the registry makes it
    repository_blobs        the link

One transaction. It takes locks in the registry's order, and gives up after LOCK_TIMEOUT_MS, which is less than the
time after which PostgreSQL looks for a deadlock. The server must be the primary and have a known schema. A repository
that is marked as deleted is left alone: the registry alone may bring it back.

The registry's own collector reviews a blob when its entry in `gc_blob_review_queue` is due, a day after the upload.
If no manifest lists the blob it deletes the row in `blobs`, and thereby all links. A trigger adds the entry for each
new row of `blobs`, also for this role: what is mounted and never used goes as after an upload, and nothing leaks. The
entry of a row that exists may be due now, and the registry's own mount leaves it so. Here it is postponed by a day,
within which the client pushes its manifest.

The role needs these rights and no others. Those on the queue, its defaults and the sequence are used by the trigger and
the default of a column.

    GRANT SELECT ON schema_migrations, post_deploy_schema_migrations, media_types, top_level_namespaces, repositories,
        blobs, repository_blobs, layers, manifests, gc_blob_review_queue, gc_review_after_defaults TO role;
    GRANT INSERT ON top_level_namespaces, repositories, blobs, repository_blobs, gc_blob_review_queue TO role;
    GRANT UPDATE (review_after, event) ON gc_blob_review_queue TO role;
    GRANT DELETE ON repository_blobs TO role;
    GRANT USAGE ON SEQUENCE blobs_id_seq TO role;

Not here: whether the bytes are there, and whether the registry then serves them (linker.py).
"""

from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

import psycopg

from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.errors import UnavailableError
from coordinator.gitlab.connection import KNOWN_SCHEMAS, SHA256, GitlabConnection, ReadUrl, first_part

STATEMENT_TIMEOUT_MS: Final = 2000
LOCK_TIMEOUT_MS: Final = 500
#: The longest silence within a transaction: while the registry is asked before a link is removed.
SILENCE_MS: Final = 10_000
#: Mounts a second, and how long a mount waits for others of this process.
PER_S: Final = 200.0
WAIT_S: Final = 1.0


class WrittenLink(NamedTuple):
    """The link of a repository to a blob."""

    namespace: int
    repository: int
    digest: Digest
    #: Its row's id; None if the link was there before.
    id: int | None


class GitlabWriter:
    """Writes to the database of one pod; for several threads, which wait for each other."""

    def __init__(
        self,
        pod: PodName,
        read_url: ReadUrl,
        *,
        per_s: float = PER_S,
        schemas: Collection[tuple[str, str]] = KNOWN_SCHEMAS,
    ) -> None:
        times = {
            "statement_timeout": STATEMENT_TIMEOUT_MS,
            "lock_timeout": LOCK_TIMEOUT_MS,
            "idle_in_transaction_session_timeout": SILENCE_MS,
        }
        options = " ".join(f"-c {name}={value}" for name, value in times.items())
        self._connection = GitlabConnection(pod, read_url, options, per_s=per_s, wait_s=WAIT_S, schemas=schemas)

    def close(self) -> None:
        self._connection.close()

    def write_link(self, path: RepositoryName, digest: Digest, size: int) -> WrittenLink:
        """Make the repository link the blob. Raises UnavailableError or UnknownSchemaError if nothing is written."""
        values: dict[str, Any] = {"first": first_part(path), "path": path, "name": path.rpartition("/")[2]}
        values |= {"digest": SHA256 + digest, "size": size}
        with self._connection.transaction() as connection:
            if connection.execute(_ADD_BLOB, values).rowcount == 0:
                connection.execute(_POSTPONE_REVIEW, values)
            (namespace,) = _find_or_add(connection, _NAMESPACE, _ADD_NAMESPACE, values)
            values["namespace"] = namespace
            repository, is_deleted = _find_or_add(connection, _REPOSITORY, _ADD_REPOSITORY, values)
            if is_deleted:
                raise UnavailableError(f"Repository {path} is marked as deleted in its registry's database.")
            row = connection.execute(_ADD_LINK, values | {"repository": repository}).fetchone()
        return WrittenLink(namespace, repository, digest, None if row is None else row[0])

    def remove_link(self, written: WrittenLink, is_served: Callable[[], bool]) -> bool:
        """Remove a link that `write_link` has added, unless a manifest relies on it or the registry serves the blob.

        Return whether it serves the blob. An upload of the blob that ends meanwhile waits for the removal, and adds a
        link of its own: so the registry is asked after the removal and before the commit. What else was written stays:
        the registry shows no blob without a link. If it raises UnavailableError, nothing is removed.
        """
        if written.id is None:
            return is_served()
        with self._connection.transaction() as connection:
            connection.execute(_REMOVE_LINK, written._asdict() | {"digest": SHA256 + written.digest})
            if not is_served():
                return False
            raise psycopg.Rollback
        return True


def _find_or_add(connection: psycopg.Connection[Any], find: str, add: str, values: dict[str, Any]) -> tuple[Any, ...]:
    found: tuple[Any, ...] | None = connection.execute(find, values).fetchone()
    if found is None:
        connection.execute(add, values)
        # Not what the insert returns: another transaction may have added it first.
        found = connection.execute(find, values).fetchone()
    if found is None:
        raise UnavailableError("A row that was just added to a registry's database is not there.")
    return found


_ADD_BLOB: Final = """
    INSERT INTO blobs (digest, media_type_id, size)
    SELECT %(digest)s, id, %(size)s FROM media_types WHERE media_type = 'application/octet-stream'
    ON CONFLICT DO NOTHING
"""
_POSTPONE_REVIEW: Final = """
    UPDATE gc_blob_review_queue SET review_after = greatest(review_after, now() + interval '1 day')
    WHERE digest = %(digest)s
"""
_NAMESPACE: Final = "SELECT id FROM top_level_namespaces WHERE name = %(first)s"
_ADD_NAMESPACE: Final = "INSERT INTO top_level_namespaces (name) VALUES (%(first)s) ON CONFLICT DO NOTHING"
_REPOSITORY: Final = """
    SELECT id, deleted_at IS NOT NULL FROM repositories
    WHERE top_level_namespace_id = %(namespace)s AND path = %(path)s
"""
_ADD_REPOSITORY: Final = """
    INSERT INTO repositories (top_level_namespace_id, name, path) VALUES (%(namespace)s, %(name)s, %(path)s)
    ON CONFLICT DO NOTHING
"""
_ADD_LINK: Final = """
    INSERT INTO repository_blobs (top_level_namespace_id, repository_id, blob_digest)
    VALUES (%(namespace)s, %(repository)s, %(digest)s) ON CONFLICT DO NOTHING RETURNING id
"""
_REMOVE_LINK: Final = """
    DELETE FROM repository_blobs l
    WHERE l.top_level_namespace_id = %(namespace)s AND l.repository_id = %(repository)s AND l.id = %(id)s
      AND NOT EXISTS (
          SELECT FROM layers x WHERE x.top_level_namespace_id = %(namespace)s AND x.repository_id = %(repository)s
            AND x.digest = %(digest)s)
      AND NOT EXISTS (
          SELECT FROM manifests m WHERE m.top_level_namespace_id = %(namespace)s AND m.repository_id = %(repository)s
            AND m.configuration_blob_digest = %(digest)s)
"""
