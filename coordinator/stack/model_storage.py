"""Store a registry's state as CNCF distribution does: one object per link and per blob.

Under `docker/registry/v2/`, below the store's root:

    blobs/sha256/<2 hex>/<hex>/data                                  layers, configs and manifests alike
    repositories/<name>/_layers/sha256/<hex>/link                    a link holds the digest's text
    repositories/<name>/_manifests/revisions/sha256/<hex>/link
    repositories/<name>/_manifests/tags/<tag>/current/link
    repositories/<name>/_manifests/tags/<tag>/index/sha256/<hex>/link    stays when the tag moves
    repositories/<name>/_uploads/<uuid>/{startedat,data}

Invariant: every answer is read from the store, as in distribution without a descriptor cache; nothing is
locked, so distribution's races exist here too.
Not here: HTTP (model_registry.py). The keys are built here again on purpose, and not taken from
`storage/layout.py`, because that is tested against this model.
"""

import hashlib
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from coordinator.storage.port import ObjectNotFoundError, ObjectStore

BASE = "docker/registry/v2"


class ModelStorage:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    # Blobs and the links that make them visible in a repository

    def layer_size(self, repository: str, digest: str) -> int | None:
        """Return the blob's size if the repository links it and its bytes are there."""
        return self._visible_size(digest, self._layer_link_key(repository, digest))

    def manifest_size(self, repository: str, digest: str) -> int | None:
        """Return the manifest's size, as `layer_size`; a manifest uploaded as a blob is visible as a manifest too."""
        links = (self._revision_link_key(repository, digest), self._layer_link_key(repository, digest))
        return self._visible_size(digest, *links)

    def read_blob(self, digest: str) -> bytes:
        return self._store.get(self._blob_key(digest))

    def add_layer(self, repository: str, digest: str, content: bytes) -> None:
        self._add_blob(digest, content)
        self.link_layer(repository, digest)

    def link_layer(self, repository: str, digest: str) -> None:
        self._store.put(self._layer_link_key(repository, digest), digest.encode())

    def unlink_layer(self, repository: str, digest: str) -> None:
        self._store.delete(self._layer_link_key(repository, digest))

    # Manifests and tags

    def add_manifest(self, repository: str, digest: str, content: bytes) -> None:
        self._add_blob(digest, content)
        self._store.put(self._revision_link_key(repository, digest), digest.encode())

    def unlink_manifest(self, repository: str, digest: str) -> None:
        """Remove every link that makes the manifest visible, also a link of the same bytes as a blob."""
        self._store.delete(self._revision_link_key(repository, digest))
        self._store.delete(self._layer_link_key(repository, digest))

    def set_tag(self, repository: str, tag: str, digest: str) -> None:
        base = self._tag_path(repository, tag)
        self._store.put(f"{base}/index/{_digest_path(digest)}/link", digest.encode())
        self._store.put(f"{base}/current/link", digest.encode())

    def read_tag(self, repository: str, tag: str) -> str | None:
        try:
            return self._store.get(f"{self._tag_path(repository, tag)}/current/link").decode()
        except ObjectNotFoundError:
            return None

    def list_tags(self, repository: str) -> list[str]:
        prefix = f"{self._repository_path(repository)}/_manifests/tags/"
        keys = (key.removeprefix(prefix) for key in self._list_keys(prefix))
        return [key.removesuffix("/current/link") for key in keys if key.endswith("/current/link")]

    def remove_tag(self, repository: str, tag: str) -> None:
        for key in list(self._list_keys(self._tag_path(repository, tag) + "/")):
            self._store.delete(key)

    # Upload sessions: all their state is in the store, so that another process can finish them

    def start_upload(self, repository: str) -> str:
        upload = str(uuid.uuid4())
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._store.put(f"{self._upload_key(repository, upload)}/startedat", started.encode())
        return upload

    def has_upload(self, repository: str, upload: str) -> bool:
        return self._store.head(f"{self._upload_key(repository, upload)}/startedat") is not None

    def read_upload(self, repository: str, upload: str) -> bytes:
        try:
            return self._store.get(f"{self._upload_key(repository, upload)}/data")
        except ObjectNotFoundError:
            return b""

    def append_upload(self, repository: str, upload: str, chunk: bytes) -> int:
        """Add a chunk and return the length so far; simple rather than fast."""
        content = self.read_upload(repository, upload) + chunk
        self._store.put(f"{self._upload_key(repository, upload)}/data", content)
        return len(content)

    def end_upload(self, repository: str, upload: str) -> None:
        for name in ("data", "startedat"):
            self._store.delete(f"{self._upload_key(repository, upload)}/{name}")

    # Keys

    def _add_blob(self, digest: str, content: bytes) -> None:
        if self._store.head(self._blob_key(digest)) is None:  # distribution copies nothing over existing bytes
            self._store.put(self._blob_key(digest), content)

    def _visible_size(self, digest: str, *links: str) -> int | None:
        if all(self._store.head(link) is None for link in links):
            return None
        data = self._store.head(self._blob_key(digest))
        return None if data is None else data.size

    def _list_keys(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self._store.walk(prefix))

    def _blob_key(self, digest: str) -> str:
        algorithm, _, encoded = digest.partition(":")
        return f"{BASE}/blobs/{algorithm}/{encoded[:2]}/{encoded}/data"

    def _repository_path(self, repository: str) -> str:
        return f"{BASE}/repositories/{repository}"

    def _layer_link_key(self, repository: str, digest: str) -> str:
        return f"{self._repository_path(repository)}/_layers/{_digest_path(digest)}/link"

    def _revision_link_key(self, repository: str, digest: str) -> str:
        return f"{self._repository_path(repository)}/_manifests/revisions/{_digest_path(digest)}/link"

    def _tag_path(self, repository: str, tag: str) -> str:
        return f"{self._repository_path(repository)}/_manifests/tags/{tag}"

    def _upload_key(self, repository: str, upload: str) -> str:
        return f"{self._repository_path(repository)}/_uploads/{upload}"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _digest_path(digest: str) -> str:
    return digest.replace(":", "/")
