"""Count references from the links and manifests in the bucket alone: the demo's independent check.

A repository needs what it links and, recursively, what its indexes list, whether or not it links that itself.
Not here: the table. This module shares no code with what computes counts from events.
"""

from collections import Counter
from typing import NamedTuple

from coordinator.domain.names import Digest, RepositoryName, format_digest, parse_digest
from coordinator.domain.references import (
    MANIFEST_BYTES_LIMIT,
    MalformedManifestError,
    ManifestContent,
    ManifestKind,
    parse_manifest,
)
from coordinator.errors import UsageError
from coordinator.storage.layout import BASE, blob_key
from coordinator.storage.port import ObjectNotFoundError, ObjectStore

_REVISIONS = "/_manifests/revisions/sha256/"


class ExpectedCounts(NamedTuple):
    """The counts that follow from the links in the bucket. Digests are in wire form."""

    #: (repository, manifest) pairs that have a revision link, or that an index of the repository lists.
    holdings: set[tuple[str, str]]
    #: Holdings that need each digest.
    reference_counts: dict[str, int]
    #: Bytes of each object under `blobs/`.
    sizes: dict[str, int]


def read_expected_counts(store: ObjectStore) -> ExpectedCounts:
    """Read all links and manifests of the bucket. Only for small buckets: it keeps everything in memory."""
    holdings: set[tuple[str, str]] = set()
    counts: Counter[str] = Counter()
    for link in store.walk(f"{BASE}/repositories/"):
        path = link.key.removeprefix(f"{BASE}/repositories/")
        if _REVISIONS not in path or not path.endswith("/link"):
            continue
        repository, _, rest = path.partition(_REVISIONS)
        waiting = [parse_digest(f"sha256:{rest.removesuffix('/link')}")]
        while waiting:
            digest = waiting.pop()
            holding = (RepositoryName(repository), format_digest(digest))
            if holding in holdings:
                continue
            holdings.add(holding)
            content = _read_content(store, digest)
            counts.update({format_digest(digest), *(format_digest(each.digest) for each in content.references)})
            if content.kind is ManifestKind.INDEX:
                waiting += [each.digest for each in content.references if _is_manifest(store, each.digest)]
    sizes = {
        f"sha256:{blob.key.split('/')[-2]}": blob.size
        for blob in store.walk(f"{BASE}/blobs/sha256/")
        if blob.key.endswith("/data")
    }
    return ExpectedCounts(holdings, dict(counts), sizes)


def _read_content(store: ObjectStore, manifest: Digest) -> ManifestContent:
    return parse_manifest(store.get(blob_key(manifest), limit=MANIFEST_BYTES_LIMIT))


def _is_manifest(store: ObjectStore, child: Digest) -> bool:
    """Is this child a manifest? Indexes of build caches also list layers."""
    try:
        _read_content(store, child)
    except (MalformedManifestError, ObjectNotFoundError, UsageError):
        return False
    return True
