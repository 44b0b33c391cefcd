"""Make a GitLab registry serve a mounted blob: by rows in its database where Baleen may write them, else by a relay.

Route: `GitlabLinker.link` -> the shared store has the bytes -> rows (writer.py) -> the registry serves the blob -> 201.
The mount's reference was written to the table before, so no garbage collection hides the bytes from then on.
If the registry does not serve the blob (its store may be another one), nothing is mounted, and the link is removed. If
the registry does not answer, the link stays: the blob's bytes are there, and its row in `blobs` keeps them until a
reconcile finds the link (gc/claims.py).
Relayed is what cannot be linked by rows: no right to write is given, the source has not proved that it has the blob,
the bytes are elsewhere, or the database is away.
"""

from typing import Final

import structlog

from coordinator.domain.mounts import NotMountedError, Reason
from coordinator.domain.names import format_digest
from coordinator.errors import UnavailableError, UnconfiguredError
from coordinator.gitlab.connection import UnknownSchemaError
from coordinator.gitlab.databases import GitlabWriters
from coordinator.gitlab.writer import GitlabWriter, WrittenLink
from coordinator.mounts.directory import MountPod
from coordinator.mounts.linker import MountJob
from coordinator.mounts.relay import Relay
from coordinator.storage.layout import blob_key
from coordinator.storage.port import ObjectReader

log = structlog.get_logger()

#: Errors of a database that is not written to.
_AWAY: Final = (UnavailableError, UnknownSchemaError, UnconfiguredError)


class GitlabLinker:
    """Links blobs in pods of kind `gitlab`; for several threads."""

    def __init__(self, writers: GitlabWriters, store: ObjectReader, relay: Relay, relay_limit: int) -> None:
        """`relay_limit`: bytes of the largest blob that is relayed."""
        self._writers = writers
        self._store = store
        self._relay = relay
        self._relay_limit = relay_limit

    def is_relayed(self, pod: MountPod) -> bool:
        return not self._writers.has(pod.name)

    def link(self, job: MountJob) -> None:
        if self._link_by_rows(job):
            return
        if job.size > self._relay_limit:
            raise NotMountedError(Reason.TOO_LARGE)
        self._relay.link(job)

    def _link_by_rows(self, job: MountJob) -> bool:
        """Return False if the blob has to be relayed."""
        if self.is_relayed(job.pod) or not (job.is_known or job.is_proved):
            return False
        stored = self._store.head(blob_key(job.digest))
        if stored is None or stored.size != job.size:
            return False
        writer = self._writers.of(job.pod.name)
        try:
            written = writer.write_link(job.repository, job.digest, job.size)
        except _AWAY as error:
            log.warning("a blob is relayed, and not linked by rows", pod=job.pod.name, reason=str(error))
            return False
        if not self._relay.has_blob(job) and not self._remove_link(writer, written, job):
            raise UnavailableError(
                f"The registry of pod {job.pod.name} does not serve {format_digest(job.digest)}, although its database "
                "lists it and the shared store has it: check that its store is the shared one."
            )
        return True

    def _remove_link(self, writer: GitlabWriter, written: WrittenLink, job: MountJob) -> bool:
        """Return whether the registry serves the blob after all."""
        try:
            return writer.remove_link(written, lambda: self._relay.has_blob(job))
        except _AWAY as error:
            log.warning("a link without bytes stays in a registry's database", pod=job.pod.name, reason=str(error))
            return False
