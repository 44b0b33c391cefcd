"""Pods that keep their links in the shared bucket, in distribution's layout."""

from collections.abc import Collection, Sequence
from typing import ClassVar

from coordinator.domain.names import Digest, PodName
from coordinator.domain.pods import PodKind
from coordinator.kinds.kind import MountParts, Services
from coordinator.mounts.linker import BlobLinker, LinkWriter
from coordinator.pods.of_kind import PodOfKind
from coordinator.pods.prober import probe_image_digests
from coordinator.reconcile.links import PodLinks
from coordinator.reconcile.stored_content import has_any_link


class LinkPods:
    kind: ClassVar = PodKind.LINK

    def __init__(self, services: Services) -> None:
        self._links = services.bucket_links
        self._store = services.store

    def close(self) -> None: ...

    def read_links(self, pod: PodName) -> PodLinks:  # noqa: ARG002 - all have one bucket
        return self._links

    def still_holds(self, pod: PodOfKind) -> bool:
        return has_any_link(self._store, pod.prefixes, pod.mode, image=probe_image_digests())

    def make_linker(self, parts: MountParts) -> BlobLinker:
        return LinkWriter(parts.store)

    def find_claimed(self, pod: PodOfKind, blobs: Sequence[Digest]) -> Collection[Digest]:  # noqa: ARG002
        """Nothing: the doctor proves that their registries look at storage (doctor/cache.py)."""
        return ()

    def read_claims(self, pod: PodOfKind) -> None: ...
