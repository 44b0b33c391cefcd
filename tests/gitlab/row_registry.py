"""A registry that serves what the rows of the model's tables link, with bytes from a store, as GitLab's does.

Route: `RowRegistry` -> `ModelServer` (HTTP) -> `RowStorage`. Only links of blobs are rows; all else is as in any model.
"""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from coordinator.stack.model_server import ModelServer
from coordinator.stack.model_storage import ModelStorage
from coordinator.storage.port import ObjectStore

HOST = "127.0.0.1"
POLL_S = 0.05
UPLOADED = """
    INSERT INTO blobs (digest, media_type_id, size) VALUES (%(digest)s, 21, %(size)s) ON CONFLICT DO NOTHING;
    INSERT INTO top_level_namespaces (name) VALUES (%(first)s) ON CONFLICT DO NOTHING;
    INSERT INTO repositories (top_level_namespace_id, name, path)
        SELECT id, %(name)s, %(path)s FROM top_level_namespaces WHERE name = %(first)s
        ON CONFLICT (path) DO UPDATE SET deleted_at = NULL;
    INSERT INTO repository_blobs (top_level_namespace_id, repository_id, blob_digest)
        SELECT top_level_namespace_id, id, %(digest)s FROM repositories WHERE path = %(path)s ON CONFLICT DO NOTHING
"""


class RowStorage(ModelStorage):
    def __init__(self, store: ObjectStore, url: str) -> None:
        super().__init__(store)
        self._blobs = store
        self._url = url
        #: Repositories that blobs were uploaded to.
        self.uploads: list[str] = []

    def layer_size(self, repository: str, digest: str) -> int | None:
        with self._rows() as rows:
            linked = rows.execute(
                """
                SELECT FROM repositories r JOIN repository_blobs l
                ON (l.top_level_namespace_id, l.repository_id) = (r.top_level_namespace_id, r.id)
                WHERE r.path = %s AND r.deleted_at IS NULL AND l.blob_digest = %s
                """,
                (repository, _stored(digest)),
            ).fetchone()
        return None if linked is None else self._size(digest)

    def start_upload(self, repository: str) -> str:
        self.uploads.append(repository)
        return super().start_upload(repository)

    def link_layer(self, repository: str, digest: str) -> None:
        """Write the rows of an upload; a repository that is marked as deleted comes back."""
        values: dict[str, Any] = {"path": repository, "first": repository.partition("/")[0]}
        values |= {"name": repository.rpartition("/")[2], "digest": _stored(digest), "size": self._size(digest)}
        with self._rows() as rows:
            for statement in UPLOADED.split(";"):
                rows.execute(statement, values)

    def _size(self, digest: str) -> int | None:
        found = self._blobs.head(self._blob_key(digest))
        return None if found is None else found.size

    def _rows(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._url)


class RowRegistry:
    """Listens from `start`, which its making calls, until `kill`; then at the same port again."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self.storage = RowStorage(store, url)
        self._port = 0
        self.start()
        self.url = self._server.url

    def start(self) -> None:
        self._server = ModelServer(HOST, self._port, self.storage, None)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), daemon=True).start()

    def kill(self) -> None:
        self._server.shutdown()
        self._server.close()

    close = kill


def _stored(digest: str) -> bytes:
    return b"\x01" + bytes.fromhex(digest.removeprefix("sha256:"))
