"""Read what a manifest can need from its bytes in shared storage, verified against its digest.

Not here: parsing the bytes (domain/references.py), the callers (workers/contents.py for events without references,
reconcile/link_keeper.py where reports differ, reconcile/compare.py for links that no event reported), storing the
result (table/digest_facts.py).
"""

import hashlib
from typing import NamedTuple

from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest, format_digest
from coordinator.domain.references import MANIFEST_BYTES_LIMIT, ManifestContent, is_manifest, read_manifest
from coordinator.errors import UsageError
from coordinator.storage.layout import blob_key
from coordinator.storage.port import ObjectNotFoundError, ObjectStore


class StoredManifest(NamedTuple):
    #: What its bytes list or, of kind NAMED, name; None if the bytes are gone, too large, or have another digest.
    content: ManifestContent | None
    #: Bytes; None if there are none, or they have another digest.
    size: int | None
    #: A registry could probably serve it as a manifest.
    could_be: bool = True
    #: Why `content` is not the exact list.
    why: str | None = None
    #: Digests of other algorithms that its bytes name.
    others: tuple[str, ...] = ()
    #: Its bytes name everything that it can need.
    complete: bool = True
    #: The bytes stored under its digest have another digest.
    corrupt: bool = False

    @property
    def by_links(self) -> bool:
        """Whether only the links of the repositories that hold it show what it needs."""
        return self.content is None or bool(self.others) or not self.complete

    def fill(self, fact: ManifestPushed) -> ManifestPushed:
        """Fill in a fact that lacks the manifest's references."""
        size = self.size if fact.size is None else fact.size
        return fact._replace(size=size, content=self.content, read=self.content is not None, by_links=self.by_links)


def read_stored_manifest(store: ObjectStore, digest: Digest) -> StoredManifest:
    """Read what a manifest can need; raises UnavailableError, because an outage proves nothing about a manifest."""
    try:
        body = store.get(blob_key(digest), limit=MANIFEST_BYTES_LIMIT)
    except ObjectNotFoundError:
        return StoredManifest(None, None, why=f"No bytes of {format_digest(digest)} are in shared storage.")
    except UsageError as error:
        return StoredManifest(None, None, could_be=False, why=str(error))
    return parse_stored_manifest(digest, body)


def parse_stored_manifest(digest: Digest, body: bytes) -> StoredManifest:
    """Return what a manifest with these bytes can need."""
    # Only bytes with its digest count: nothing else can have been written into them.
    if hashlib.sha256(body).digest() != digest:
        why = f"The bytes stored for {format_digest(digest)} have another digest."
        return StoredManifest(None, None, why=why, corrupt=True)
    found = read_manifest(body)
    could_be = found.why is None or is_manifest(body)
    return StoredManifest(found.content, len(body), could_be, found.why, found.others, found.complete)
