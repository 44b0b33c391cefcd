"""Blobs that a registry confirms to its clients without asking the object store, since its own database lists them.

Such a registry answers a mount with 201, and accepts a manifest that lists the blob, also while the bytes are hidden.
So a blob that is claimed in this way is not hidden; and none is purged that is claimed after *t_h + R*, when every
request that had seen it before it was hidden has ended.
A claim that cannot be read may exist: `find_claims` then raises, and nothing is hidden or purged.
Not here: which registries do so (domain/pods.py), reading their databases (gitlab/).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from coordinator.domain.names import Digest, PodName


class PodClaims(NamedTuple):
    """All that a pod's registry claims. Both parts raise UnavailableError where they cannot be read."""

    pod: PodName
    blobs: Iterator[Digest]
    #: Returns those of some blobs that a repository links: the registry confirms no others to a client.
    find_linked: Callable[[Sequence[Digest]], Collection[Digest]]


class Claims(Protocol):
    def find_claims(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:
        """Return those of these blobs that a pod's registry claims, and one such pod; raises UnavailableError."""
        ...
