"""What the bucket says of references, read from links and manifests alone: the demo's independent judge.

Not here: the table. Nothing in this module shares code with what computes counts from events.
"""

from collections import Counter
from typing import NamedTuple

from coordinator.domain.names import Digest, RepositoryName, format_digest, parse_digest
from coordinator.domain.references import MANIFEST_BYTES_LIMIT, parse_manifest
from coordinator.storage.layout import BASE, blob_key
from coordinator.storage.port import ObjectStore

_REVISIONS = "/_manifests/revisions/sha256/"


class Expected(NamedTuple):
    """Counts as the links in the bucket make them. Digests are in wire form."""

    #: (repository, manifest) pairs that have a revision link.
    holdings: set[tuple[str, str]]
    #: Holdings that need each digest.
    reference_counts: dict[str, int]
    #: Bytes of each object under `blobs/`.
    sizes: dict[str, int]


def expected(store: ObjectStore) -> Expected:
    """Read all links and manifests of the bucket; for small buckets, as it keeps everything in memory."""
    holdings: set[tuple[str, str]] = set()
    counts: Counter[str] = Counter()
    for link in store.walk(f"{BASE}/repositories/"):
        path = link.key.removeprefix(f"{BASE}/repositories/")
        if _REVISIONS not in path or not path.endswith("/link"):
            continue
        repository, _, rest = path.partition(_REVISIONS)
        digest = parse_digest(f"sha256:{rest.removesuffix('/link')}")
        holdings.add((RepositoryName(repository), format_digest(digest)))
        counts.update(_needed(store, digest))
    sizes = {
        f"sha256:{blob.key.split('/')[-2]}": blob.size
        for blob in store.walk(f"{BASE}/blobs/sha256/")
        if blob.key.endswith("/data")
    }
    return Expected(holdings, dict(counts), sizes)


def _needed(store: ObjectStore, manifest: Digest) -> set[str]:
    content = parse_manifest(store.get(blob_key(manifest), limit=MANIFEST_BYTES_LIMIT))
    return {format_digest(manifest), *(format_digest(reference.digest) for reference in content.references)}
