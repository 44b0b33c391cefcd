"""The interface of a kind of pod."""

from collections.abc import Collection, Sequence
from typing import ClassVar, NamedTuple, Protocol

from coordinator.domain.names import Digest, PodName
from coordinator.domain.pods import PodKind
from coordinator.gc.claims import PodClaims
from coordinator.mounts.linker import BlobLinker
from coordinator.mounts.relay import Relay
from coordinator.pods.of_kind import PodOfKind
from coordinator.reconcile.links import BucketLinks, PodLinks
from coordinator.settings import Settings
from coordinator.storage.port import ObjectStore


class Services(NamedTuple):
    """What every kind is made from."""

    settings: Settings
    store: ObjectStore
    #: What is in the shared bucket.
    bucket_links: BucketLinks


class MountParts(NamedTuple):
    """What the linkers of mounts are made from."""

    store: ObjectStore
    #: Sends a blob through the upload API of the pod's registry.
    relay: Relay
    #: Bytes of the largest blob that is sent.
    relay_limit: int


class Kind(Protocol):
    """The pods of one kind; for several threads. Calls that ask a service raise UnavailableError if it is away."""

    kind: ClassVar[PodKind]

    def __init__(self, services: Services) -> None: ...

    def close(self) -> None: ...

    def read_links(self, pod: PodName) -> PodLinks:
        """Return the pod's links. If the kind is reconcilable, they are all that the pod holds."""
        ...

    def still_holds(self, pod: PodOfKind) -> bool:
        """Return whether the pod has anything that keeps a blob, besides what Baleen itself pushed there."""
        ...

    def make_linker(self, parts: MountParts) -> BlobLinker:
        """Return what makes a pod serve a mounted blob."""
        ...

    def find_claimed(self, pod: PodOfKind, blobs: Sequence[Digest]) -> Collection[Digest]:
        """Return those of these blobs that the pod's registry confirms by its own database (gc/claims.py)."""
        ...

    def read_claims(self, pod: PodOfKind) -> PodClaims | None:
        """Return all such blobs, for an audit; None if the kind has none."""
        ...
