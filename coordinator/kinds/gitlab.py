"""Pods whose registry is a GitLab Container Registry with a metadata database, which Baleen reads."""

from collections.abc import Collection, Sequence
from typing import ClassVar

from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind, PodMode
from coordinator.errors import UnavailableError
from coordinator.gitlab.databases import GitlabDatabases, GitlabWriters
from coordinator.gitlab.linker import GitlabLinker
from coordinator.gitlab.links import GitlabLinks
from coordinator.kinds.kind import ClaimingPod, MountParts, Services
from coordinator.mounts.linker import BlobLinker
from coordinator.pods.prober import probe_image_digests
from coordinator.reconcile.links import PodLinks


class GitlabPods:
    kind: ClassVar = PodKind.GITLAB

    def __init__(self, services: Services) -> None:
        self._databases = GitlabDatabases(services.settings.gitlab_databases)
        self._writers = GitlabWriters(services.settings.gitlab_writers)

    def close(self) -> None:
        self._writers.close()
        self._databases.close()

    def read_links(self, pod: PodName) -> PodLinks:
        return GitlabLinks(self._databases.of(pod))

    def still_holds(self, pod: PodName, prefixes: Sequence[RepositoryName], mode: PodMode) -> bool:  # noqa: ARG002
        return self._databases.of(pod).has_manifest(prefixes, probe_image_digests())

    def make_linker(self, parts: MountParts) -> BlobLinker:
        return GitlabLinker(self._writers, parts.store, parts.relay, parts.relay_limit)

    def find_claimed(self, pod: ClaimingPod, blobs: Sequence[Digest]) -> Collection[Digest]:
        """A row in `blobs` makes the registry answer 201 to a mount, and to a manifest that lists the blob.

        Raises UnavailableError if the database has nothing of the pod: what another one lacks proves nothing.
        """
        database = self._databases.of(pod.name)
        if not database.has_link(pod.prefixes):
            raise UnavailableError(
                f"The registry database of pod {pod.name} has no manifest and no link below the pod's prefixes: if it "
                "is another registry's, correct the URL in BALEEN_GITLAB_DATABASES. The first probe makes one."
            )
        return database.find_known(blobs)
