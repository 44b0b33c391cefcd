"""Pods that keep their links, or all of their bytes, in storage of their own: only events show what they hold."""

from collections.abc import Collection, Sequence
from typing import ClassVar

from coordinator.domain.names import Digest, PodName
from coordinator.domain.pods import PodKind
from coordinator.kinds.kind import MountParts, Services
from coordinator.mounts.linker import BlobLinker
from coordinator.pods.of_kind import PodOfKind
from coordinator.reconcile.links import PodLinks


class RelayPods:
    kind: ClassVar = PodKind.RELAY

    def __init__(self, services: Services) -> None:
        self._links = services.bucket_links

    def close(self) -> None: ...

    def read_links(self, pod: PodName) -> PodLinks:  # noqa: ARG002
        """Return those in the shared bucket, where its manifests' bytes may be."""
        return self._links

    def still_holds(self, pod: PodOfKind) -> bool:  # noqa: ARG002
        """Nothing shows it: an operator has confirmed it."""
        return False

    def make_linker(self, parts: MountParts) -> BlobLinker:
        return parts.relay

    def find_claimed(self, pod: PodOfKind, blobs: Sequence[Digest]) -> Collection[Digest]:  # noqa: ARG002
        """Nothing: the doctor proves that their registries look at storage (doctor/cache.py)."""
        return ()

    def read_claims(self, pod: PodOfKind) -> None: ...
