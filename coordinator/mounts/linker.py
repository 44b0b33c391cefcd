"""Make a pod serve a mounted blob. Each way is a linker; tests/mounts/test_linkers.py is their contract.

    LinkWriter      writes the pod's link object in shared storage: the registry serves the blob at once
    Relay           sends the blob to the pod through the upload API (relay.py)
    GitlabLinker    writes rows to the registry's database, or relays (gitlab/linker.py)

A linker runs after the reference is durable, and returns once the repository serves the blob to clients. If it raises,
what it leaves is harmless: a link to a blob that is kept, or an upload that the registry discards.
"""

from typing import NamedTuple, Protocol

from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.mounts.directory import MountPod
from coordinator.storage.layout import layer_link_key
from coordinator.storage.port import ObjectStore


class MountJob(NamedTuple):
    """One mount for a linker."""

    pod: MountPod
    repository: RepositoryName
    digest: Digest
    #: Bytes.
    size: int
    source: MountPod
    source_repository: RepositoryName
    #: The client's `Authorization`, which was sent for the pod: never logged.
    authorization: str | None
    #: The source's registry has sent the whole blob, and the shared store has one of its size.
    is_proved: bool = False

    @property
    def is_known(self) -> bool:
        """Whether the source needs no proof: its link is in shared storage, or source and target are one pod."""
        return self.source.kind.links_in_store or self.source.id == self.pod.id

    def __repr__(self) -> str:
        return f"MountJob({self.repository}, {format_digest(self.digest)}, from {self.source_repository})"


class BlobLinker(Protocol):
    def is_relayed(self, pod: MountPod) -> bool:
        """Whether bytes are sent to the pod. Else it is given those in the shared store, and the source has to prove
        that it has them.
        """
        ...

    def link(self, job: MountJob) -> None:
        """Make the pod serve the blob in the repository; raises UnavailableError or NotMountedError if it fails."""
        ...


class LinkWriter:
    """Writes links in shared storage (kind `link`)."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def is_relayed(self, pod: MountPod) -> bool:  # noqa: ARG002 - none is
        return False

    def link(self, job: MountJob) -> None:
        self._store.put(layer_link_key(job.repository, job.digest), format_digest(job.digest).encode())
