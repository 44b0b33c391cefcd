"""What manifests list, when no event said it: read from their bytes in shared storage.

A registry without `includereferences` announces a manifest by its digest alone. Its bytes are in `blobs/` before the
event, so they can be read, and are checked against the digest.
Not here: storing it (coordinator/db/run.py).
"""

import hashlib
from collections.abc import Iterable, Mapping

from coordinator.db.batch import Item, Slice
from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest, format_digest
from coordinator.domain.references import (
    MANIFEST_BYTES_LIMIT,
    MalformedManifestError,
    ManifestContent,
    parse_manifest,
)
from coordinator.errors import UsageError
from coordinator.storage.layout import blob_key
from coordinator.storage.port import ObjectNotFoundError, ObjectStore
from workers.interpret import Chunk, dead_letter

#: What a manifest lists, or a sentence why that cannot be known.
Found = ManifestContent | str


def unsaid(slices: Iterable[Slice]) -> set[Digest]:
    """The pushed manifests of which no event of the batch says what they list."""
    said: set[Digest] = set()
    silent: set[Digest] = set()
    for piece in slices:
        for item in piece.items:
            if isinstance(item.fact, ManifestPushed):
                (silent if item.fact.content is None else said).add(item.fact.digest)
    return silent - said


def read(store: ObjectStore, digest: Digest) -> Found:
    """Read what a manifest lists; raises UnavailableError, since an outage says nothing about a manifest."""
    try:
        body = store.get(blob_key(digest), limit=MANIFEST_BYTES_LIMIT)
        if hashlib.sha256(body).digest() != digest:
            return f"The bytes stored for {format_digest(digest)} have another digest."
        return parse_manifest(body)
    except ObjectNotFoundError:
        return f"No bytes of {format_digest(digest)} are in shared storage."
    except (UsageError, MalformedManifestError) as error:
        return str(error)


def fill(piece: Slice, chunk: Chunk, found: Mapping[Digest, Found], pods: Mapping[int, str]) -> Slice:
    """Put what was read into the facts. Where it could not be, the holding stands and a dead letter goes with it."""
    records = {record.offset: record for record in chunk.records}

    def filled(item: Item) -> Item:
        fact = item.fact
        if not isinstance(fact, ManifestPushed) or fact.content is not None or fact.digest not in found:
            return item
        content = found[fact.digest]
        if isinstance(content, ManifestContent):
            return item._replace(fact=fact._replace(content=content))
        record, pod = records[item.offset], pods[item.pod_id]
        return item._replace(dead_letter=dead_letter(record, pod, "unreadable-manifest", content))

    return piece._replace(items=[filled(item) for item in piece.items])
