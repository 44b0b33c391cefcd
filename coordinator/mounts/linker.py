"""How a pod learns of a blob that is mounted for it. Each way is a linker, which tests/mounts/test_linkers.py holds.

    link     writes the pod's link object in shared storage: the registry serves the blob at once
    relay    sends the blob to the pod through the upload API (relay.py)

A linker is asked after the reference is durable, and returns once a client that pulls from the repository is served the
blob. What it has begun and not ended when it raises harms nothing: a link to a blob that is kept, or an upload that the
registry gives up.
"""

from typing import NamedTuple, Protocol

from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.domain.pods import Linker as Kind
from coordinator.mounts.directory import MountPod
from coordinator.storage.layout import layer_link_key
from coordinator.storage.port import ObjectStore


class Job(NamedTuple):
    """What a linker is to do."""

    pod: MountPod
    repository: RepositoryName
    digest: Digest
    #: Bytes.
    size: int
    source: MountPod
    source_repository: RepositoryName
    #: The client's `Authorization`, as it was sent to be shown to the pod: never logged.
    authorization: str | None

    @property
    def is_known(self) -> bool:
        """The source's yes was seen in shared storage, or is about blobs of its own pod: it needs no proof."""
        return self.source.linker is Kind.LINK or self.source.id == self.pod.id

    def __repr__(self) -> str:
        return f"Job({self.repository}, {format_digest(self.digest)}, from {self.source_repository})"


class Linker(Protocol):
    def link(self, job: Job) -> None:
        """Have the pod serve the blob in the repository; raises UnavailableError or NotMountedError if it does not."""
        ...


class LinkObjects:
    """Links in shared storage (linker `link`)."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def link(self, job: Job) -> None:
        self._store.put(layer_link_key(job.repository, job.digest), format_digest(job.digest).encode())
