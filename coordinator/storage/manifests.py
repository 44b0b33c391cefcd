"""What a manifest can need, read from its bytes in shared storage and checked against its digest.

Not here: what bytes say (domain/references.py), who asks (workers/contents.py for events that do not say,
reconcile/kept.py where reports differ, reconcile/compare.py for links that no event reported), storing it
(table/digest_facts.py).
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
    #: What its bytes list or, of kind NAMED, name; None where they cannot be had: gone, too large, or others.
    content: ManifestContent | None
    #: Bytes; None where there are none, or none that are its own.
    size: int | None
    #: A registry could serve it as a manifest, as far as can be told.
    could_be: bool = True
    #: Why `content` is not the exact list.
    why: str | None = None
    #: Digests of other algorithms that its bytes name.
    others: tuple[str, ...] = ()
    #: Its bytes name all that it can need.
    complete: bool = True
    #: Bytes are stored under its digest, and they are not its own.
    corrupt: bool = False

    @property
    def by_links(self) -> bool:
        """Whether only the links of the repositories that hold it can say what it needs."""
        return self.content is None or bool(self.others) or not self.complete

    def fill(self, fact: ManifestPushed) -> ManifestPushed:
        """Put what was read into a fact that does not say what the manifest lists."""
        size = self.size if fact.size is None else fact.size
        return fact._replace(size=size, content=self.content, read=self.content is not None, by_links=self.by_links)


def read(store: ObjectStore, digest: Digest) -> StoredManifest:
    """Read what a manifest can need; raises UnavailableError, since an outage says nothing about a manifest."""
    try:
        body = store.get(blob_key(digest), limit=MANIFEST_BYTES_LIMIT)
    except ObjectNotFoundError:
        return StoredManifest(None, None, why=f"No bytes of {format_digest(digest)} are in shared storage.")
    except UsageError as error:
        return StoredManifest(None, None, could_be=False, why=str(error))
    # Only what has its digest speaks for a manifest: then nobody can have written anything else into it.
    if hashlib.sha256(body).digest() != digest:
        why = f"The bytes stored for {format_digest(digest)} have another digest."
        return StoredManifest(None, None, why=why, corrupt=True)
    found = read_manifest(body)
    could_be = found.why is None or is_manifest(body)
    return StoredManifest(found.content, len(body), could_be, found.why, found.others, found.complete)
