"""Pods that keep their links in the shared bucket, in distribution's layout."""

from collections.abc import Collection, Sequence
from typing import ClassVar

from coordinator.domain.names import Digest, PodName
from coordinator.domain.pods import PodKind
from coordinator.kinds.kind import ClaimingPod, MountParts, Services
from coordinator.mounts.linker import BlobLinker, LinkWriter
from coordinator.reconcile.links import PodLinks


class LinkPods:
    kind: ClassVar = PodKind.LINK

    def __init__(self, services: Services) -> None:
        self._links = services.bucket_links

    def close(self) -> None: ...

    def read_links(self, pod: PodName) -> PodLinks:  # noqa: ARG002 - all have one bucket
        return self._links

    def make_linker(self, parts: MountParts) -> BlobLinker:
        return LinkWriter(parts.store)

    def find_claimed(self, pod: ClaimingPod, blobs: Sequence[Digest]) -> Collection[Digest]:  # noqa: ARG002
        """Nothing: the doctor proves that their registries look at storage (doctor/cache.py)."""
        return ()
