"""A model of a GitLab Container Registry with a metadata database: the model registry, with rows in place of links.

Blobs and uploads are in the bucket. Manifests, links and tags are rows of the model tables (tests/gitlab/model.py), in
the order in which such a registry writes them: a blob's row after its event, a manifest's row before. HEAD and GET of a
blob look at the bytes; a mount, and a manifest that lists the blob, are answered 201 from the rows alone. A delete of a
blob sends no event; a child of an index cannot be deleted. Metrics are at the debug address.
Not modelled: the registry's own garbage collection (only its metrics) and its queues, media types, subjects, buildkit's
caches, renames, lock files, authentication. A real one is tried where there is one (tests/gitlab).
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import psycopg

from coordinator.domain.names import parse_digest
from coordinator.gitlab.database import KNOWN_SCHEMAS
from coordinator.stack.model_manifest import ModelManifest
from coordinator.stack.model_notifications import Webhook
from coordinator.stack.model_server import BLOB_TYPE, ModelServer, _Handler, _parse_digest, _Refusal
from coordinator.stack.model_storage import ModelStorage
from coordinator.storage.port import ObjectStore
from tests.gitlab.model import POST_DEPLOYMENT, make_tables
from tests.services.http import Handler, HTTPServer

#: How long a process has run, as its metrics say.
UP_S = 3600.0


def prepare_database(url: str) -> None:
    """Make the tables in an empty database, and write that the migrations of a known schema were applied."""
    with _connect(url) as connection:
        make_tables(connection)
        connection.execute("CREATE SEQUENCE ids")
        ((before, after),) = KNOWN_SCHEMAS
        connection.execute("INSERT INTO schema_migrations (id) VALUES (%s)", (before,))
        connection.execute(cast("Any", f"INSERT INTO {POST_DEPLOYMENT} (id) VALUES (%s)"), (after,))


class RowStorage(ModelStorage):
    """The state of the registry; for several threads."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        super().__init__(store)
        self._rows = _connect(url)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._rows.close()

    # Blobs

    def layer_size(self, repository: str, digest: str) -> int | None:
        """Return the size of a blob that the repository links and whose bytes are there."""
        data = None if self.linked_size(repository, digest) is None else self._store.head(self._blob_key(digest))
        return None if data is None else data.size

    def linked_size(self, repository: str, digest: str) -> int | None:
        """Return the size of a blob that the repository links, by the rows alone."""
        return self._read(
            "SELECT b.size FROM repositories r JOIN repository_blobs l ON l.repository_id = r.id"
            " AND l.top_level_namespace_id = r.top_level_namespace_id JOIN blobs b ON b.digest = l.blob_digest"
            " WHERE r.path = %s AND b.digest = %s",
            *(repository, _row_digest(digest)),
        )

    def add_layer(self, repository: str, digest: str, content: bytes) -> None:  # noqa: ARG002 - of the model
        """Store the bytes; the rows are written after the event (`write_link`)."""
        self._add_blob(digest, content)

    def link_layer(self, repository: str, digest: str) -> None:
        """Do nothing: the row is written after the event."""

    def write_link(self, repository: str, digest: str, size: int) -> None:
        with self._lock, self._rows.transaction():
            owner = self._make_repository(repository)
            self._rows.execute(
                "INSERT INTO blobs (digest, size, created_at, media_type_id) VALUES (%s, %s, clock_timestamp(), 1)"
                " ON CONFLICT DO NOTHING",
                (_row_digest(digest), size),
            )
            self._rows.execute(
                "INSERT INTO repository_blobs (id, top_level_namespace_id, repository_id, created_at, blob_digest)"
                " VALUES (nextval('ids'), %s, %s, clock_timestamp(), %s) ON CONFLICT DO NOTHING",
                (*owner, _row_digest(digest)),
            )

    def unlink_layer(self, repository: str, digest: str) -> None:
        self._write(f"DELETE FROM repository_blobs WHERE {_OF} AND blob_digest = %s", repository, _row_digest(digest))

    # Manifests and tags

    def manifest_size(self, repository: str, digest: str) -> int | None:
        return self._read(
            f"SELECT octet_length(payload) FROM manifests WHERE {_OF} AND digest = %s", repository, _row_digest(digest)
        )

    def read_blob(self, digest: str) -> bytes:
        """Return the bytes of a manifest, which are in its row, or of a blob."""
        payload = self._read("SELECT payload FROM manifests WHERE digest = %s LIMIT 1", _row_digest(digest))
        return super().read_blob(digest) if payload is None else bytes(payload)

    def add_manifest(self, repository: str, digest: str, content: bytes) -> None:
        manifest = ModelManifest.parse(content)
        with self._lock, self._rows.transaction():
            owner = self._make_repository(repository)
            config = None if manifest.is_index else json.loads(content)["config"]["digest"]
            made = self._rows.execute(
                "INSERT INTO manifests (id, top_level_namespace_id, repository_id, created_at, schema_version,"
                " media_type_id, media_type_id_convert_to_bigint, digest, payload, total_size,"
                " configuration_blob_digest)"
                " VALUES (nextval('ids'), %s, %s, clock_timestamp(), 2, 1, 1, %s, %s, 0, %s)"
                " ON CONFLICT DO NOTHING RETURNING id",
                (*owner, _row_digest(digest), content, None if config is None else _row_digest(config)),
            ).fetchone()
            for reference in manifest.references if made else ():
                if reference["digest"] != config:
                    self._write_reference(owner, made[0], reference, is_index=manifest.is_index)

    def _write_reference(
        self, owner: tuple[int, int], manifest: int, reference: dict[str, Any], *, is_index: bool
    ) -> None:
        listed = _row_digest(reference["digest"])
        if is_index:
            self._rows.execute(
                "INSERT INTO manifest_references"
                " (id, top_level_namespace_id, repository_id, created_at, parent_id, child_id)"
                " SELECT nextval('ids'), top_level_namespace_id, repository_id, clock_timestamp(), %s, id"
                " FROM manifests WHERE (top_level_namespace_id, repository_id) = (%s, %s) AND digest = %s",
                (manifest, *owner, listed),
            )
            return
        self._rows.execute(
            "INSERT INTO layers (id, top_level_namespace_id, repository_id, created_at, media_type_id, manifest_id,"
            " size, digest) VALUES (nextval('ids'), %s, %s, clock_timestamp(), 1, %s, %s, %s) ON CONFLICT DO NOTHING",
            (*owner, manifest, reference.get("size", 0), listed),
        )

    def is_listed(self, repository: str, digest: str) -> bool:
        """Return whether an index of the repository lists the manifest."""
        found = self._read(
            "SELECT true FROM repositories r JOIN manifests m ON m.repository_id = r.id"
            " JOIN manifest_references x ON x.child_id = m.id WHERE r.path = %s AND m.digest = %s LIMIT 1",
            *(repository, _row_digest(digest)),
        )
        return bool(found)

    def unlink_manifest(self, repository: str, digest: str) -> None:
        self._write(f"DELETE FROM manifests WHERE {_OF} AND digest = %s", repository, _row_digest(digest))

    def set_tag(self, repository: str, tag: str, digest: str) -> None:
        self._write(
            "INSERT INTO tags (id, top_level_namespace_id, repository_id, created_at, name, manifest_id)"
            " SELECT nextval('ids'), r.top_level_namespace_id, r.id, clock_timestamp(), %s, m.id FROM repositories r"
            " JOIN manifests m ON m.repository_id = r.id WHERE r.path = %s AND m.digest = %s"
            " ON CONFLICT (top_level_namespace_id, repository_id, name)"
            " DO UPDATE SET manifest_id = excluded.manifest_id",
            *(tag, repository, _row_digest(digest)),
        )

    def read_tag(self, repository: str, tag: str) -> str | None:
        found = self._read(
            "SELECT encode(m.digest, 'hex') FROM repositories r JOIN tags t ON t.repository_id = r.id"
            " JOIN manifests m ON m.id = t.manifest_id WHERE r.path = %s AND t.name = %s",
            *(repository, tag),
        )
        return None if found is None else f"sha256:{found[2:]}"

    def list_tags(self, repository: str) -> list[str]:
        return list(self._read(f"SELECT array_agg(name ORDER BY name) FROM tags WHERE {_OF}", repository) or ())

    def remove_tag(self, repository: str, tag: str) -> None:
        self._write(f"DELETE FROM tags WHERE {_OF} AND name = %s", repository, tag)

    # Rows

    def _make_repository(self, path: str) -> tuple[int, int]:
        """Return the keys of a repository's row and of its namespace, and write both rows if they are not there."""
        first, _, last = path.partition("/")[0], *path.rpartition("/")[1:]
        self._rows.execute(
            "INSERT INTO top_level_namespaces (id, name, created_at) VALUES (nextval('ids'), %s, clock_timestamp())"
            " ON CONFLICT DO NOTHING",
            (first,),
        )
        self._rows.execute(
            "INSERT INTO repositories (id, top_level_namespace_id, name, path, created_at)"
            " SELECT nextval('ids'), id, %s, %s, clock_timestamp() FROM top_level_namespaces WHERE name = %s"
            " ON CONFLICT DO NOTHING",
            (last, path, first),
        )
        found = self._rows.execute("SELECT top_level_namespace_id, id FROM repositories WHERE path = %s", (path,))
        return cast("tuple[int, int]", found.fetchone())

    def _read(self, statement: str, *values: object) -> Any:
        with self._lock:
            row = self._rows.execute(cast("Any", statement), values).fetchone()
        return None if row is None else row[0]

    def _write(self, statement: str, *values: object) -> None:
        with self._lock:
            self._rows.execute(cast("Any", statement), values)


_OF = "(top_level_namespace_id, repository_id) = (SELECT top_level_namespace_id, id FROM repositories WHERE path = %s)"


class _GitlabHandler(_Handler):
    """Answers from the rows, where the real registry does."""

    @property
    def _rows(self) -> RowStorage:
        return cast("RowStorage", self.server.storage)

    def _find_missing(self, manifest: ModelManifest) -> Iterator[str]:
        held = self._rows.manifest_size if manifest.is_index else self._rows.linked_size
        yield from (each["digest"] for each in manifest.references if held(self._repository, each["digest"]) is None)

    def _mount(self, digest: str, source: str) -> bool:
        size = self._rows.linked_size(source, _parse_digest(digest))
        if size is None:
            return False
        self._emit("mount", self._blob_target(digest, size) | {"fromRepository": source})
        self._answer(201, self._blob_headers(digest))
        return True

    def _delete_blob(self, digest: str) -> None:
        if self._rows.linked_size(self._repository, _parse_digest(digest)) is None:
            raise _Refusal(404, "BLOB_UNKNOWN", (digest,))
        self._rows.unlink_layer(self._repository, digest)
        self._answer(202)

    def _delete_manifest(self, reference: str) -> None:
        if self._rows.is_listed(self._repository, _parse_digest(reference)):
            raise _Refusal(409, "MANIFEST_REFERENCED")
        super()._delete_manifest(reference)

    def _emit(self, action: str, target: dict[str, Any]) -> None:
        super()._emit(action, target)
        if action in {"push", "mount"} and target["mediaType"] == BLOB_TYPE:
            self._rows.write_link(self._repository, target["digest"], target.get("size", 0))


class GitlabServer(ModelServer):
    """One process of the registry, with a debug address; it serves like a ModelServer."""

    def __init__(
        self,
        store: ObjectStore,
        database_url: str,
        webhook: Webhook | None,
        *,
        collects: bool = False,
        up_s: float = UP_S,
    ) -> None:
        """`collects`: its metrics say that it collects garbage. `up_s`: for how long it has run, as they say."""
        super().__init__("127.0.0.1", 0, RowStorage(store, database_url), webhook)
        self.RequestHandlerClass = _GitlabHandler  # type: ignore[assignment]
        self._debug = HTTPServer(_make_debug_handler(time.time() - up_s, collects=collects))
        self._debug.__enter__()
        self.debug_url = self._debug.address

    def close(self) -> None:
        super().close()
        self._debug.close()
        cast("RowStorage", self.storage).close()


def _make_debug_handler(started: float, *, collects: bool) -> type[Handler]:
    class Debug(Handler):
        def do_GET(self) -> None:
            lines = [
                "# TYPE registry_database_queries_total counter",
                'registry_database_queries_total{name="server_version_check"} 1',
                "# TYPE process_start_time_seconds gauge",
                f"process_start_time_seconds {started!r}",
                *(['registry_gc_runs_total{worker="registry.gc.worker.BlobWorker"} 1'] if collects else []),
            ]
            self.reply(200 if self.path.endswith("/metrics") else 404, "".join(f"{line}\n" for line in lines).encode())

    return Debug


class RunningGitlab(NamedTuple):
    url: str
    database_url: str
    debug_url: str


@contextmanager
def running_gitlab_registry(
    store: ObjectStore, database_url: str, webhook: Webhook | None = None, **options: Any
) -> Iterator[RunningGitlab]:
    """Run a process in threads of this one until the block ends. `options` are those of `GitlabServer`.

    The database is one of `prepare_database`. Several processes on one database and store are one registry.
    """
    server = GitlabServer(store, database_url, webhook, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield RunningGitlab(server.url, database_url, server.debug_url)
    finally:
        server.shutdown()
        server.close()
        thread.join(10)


def _connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True)


def _row_digest(digest: str) -> bytes:
    return b"\x01" + parse_digest(digest)
