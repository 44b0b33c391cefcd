"""Pods whose registry is a GitLab Container Registry with a metadata database, which Baleen reads."""

from collections.abc import Collection, Sequence
from typing import ClassVar

from coordinator.domain.names import Digest, PodName
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.gc.claims import PodClaims
from coordinator.gitlab.databases import GitlabDatabases, GitlabWriters
from coordinator.gitlab.linker import GitlabLinker
from coordinator.gitlab.links import GitlabLinks
from coordinator.kinds.kind import MountParts, Services
from coordinator.mounts.linker import BlobLinker
from coordinator.pods.of_kind import PodOfKind
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

    def still_holds(self, pod: PodOfKind) -> bool:
        """Where the doctor has ever proved a database, only that one may answer."""
        database = self._databases.of(pod.name)
        return database.has_manifest(pod.prefixes, probe_image_digests(), pod.last_database or None)

    def make_linker(self, parts: MountParts) -> BlobLinker:
        return GitlabLinker(self._writers, parts.store, parts.relay, parts.relay_limit)

    def find_claimed(self, pod: PodOfKind, blobs: Sequence[Digest]) -> Collection[Digest]:
        """A row in `blobs` makes the registry answer 201 to a mount, and to a manifest that lists the blob.

        Raises UnavailableError unless the doctor has proved the database: what another one lacks proves nothing.
        """
        if not pod.database:
            raise UnavailableError(
                f"The doctor has not proved which database the registry of pod {pod.name} has: run `baleen pods doctor "
                f"{pod.name}`."
            )
        return self._databases.of(pod.name).find_known(blobs, pod.database)

    def read_claims(self, pod: PodOfKind) -> PodClaims:
        database = self._databases.of(pod.name)
        return PodClaims(pod.name, database.read_known(), database.find_linked)
