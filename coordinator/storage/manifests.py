"""What a manifest lists, read from its bytes in shared storage and checked against its digest.

Not here: who asks (workers/contents.py for events that do not say, reconcile/reconcile.py for links that no event told
of), storing it (db/run.py).
"""

import hashlib
from typing import NamedTuple

from coordinator.domain.names import Digest, format_digest
from coordinator.domain.references import (
    MANIFEST_BYTES_LIMIT,
    MalformedManifestError,
    ManifestContent,
    is_manifest,
    parse_manifest,
)
from coordinator.errors import UsageError
from coordinator.storage.layout import blob_key
from coordinator.storage.port import ObjectNotFoundError, ObjectStore

#: What a manifest lists, or a sentence why that cannot be known.
Content = ManifestContent | str


class StoredManifest(NamedTuple):
    content: Content
    #: Bytes; None where there are none, or none that are its own.
    size: int | None
    #: A registry could serve it as a manifest, as far as can be told.
    could_be: bool = True


def read(store: ObjectStore, digest: Digest) -> StoredManifest:
    """Read what a manifest lists; raises UnavailableError, since an outage says nothing about a manifest."""
    try:
        body = store.get(blob_key(digest), limit=MANIFEST_BYTES_LIMIT)
    except ObjectNotFoundError:
        return StoredManifest(f"No bytes of {format_digest(digest)} are in shared storage.", None)
    except UsageError as error:
        return StoredManifest(str(error), None, could_be=False)
    if hashlib.sha256(body).digest() != digest:
        return StoredManifest(f"The bytes stored for {format_digest(digest)} have another digest.", None)
    try:
        return StoredManifest(parse_manifest(body), len(body))
    except MalformedManifestError as error:
        return StoredManifest(str(error), len(body), is_manifest(body))
