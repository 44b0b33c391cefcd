"""Decide on a mount and make it: check the client's rights and the source, then write the reference, then the link.

Route: api/mounts.py -> `Mounter.mount` -> 201; NotMountedError or UnavailableError -> forward.py.

    right        the token permits push to the target, and pull from the target and the source (domain/access.py)
    source       its own pod says that it has the blob (sources.py)
    reference    in the table, in one transaction, before or after any hide of the blob (mounts/table.py)
    link         the linker of the pod's kind (linker.py)

Invariants: a digest alone gives no access, and a refusal takes the same time wherever the blob may be; the reference is
durable before anything is linked, and before the client is answered.
Not here: HTTP, tokens' signatures.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.access import Access
from coordinator.domain.mounts import SOURCES_LIMIT, MountRequest, NotMountedError, Reason
from coordinator.domain.names import RepositoryName, parse_repository
from coordinator.domain.pods import PodKind
from coordinator.errors import InvalidNameError, UnavailableError
from coordinator.mounts import table
from coordinator.mounts.directory import MountPod, MountPods
from coordinator.mounts.linker import BlobLinker, MountJob
from coordinator.mounts.sources import Size, Sources
from coordinator.mounts.table import Reservation
from coordinator.table.batch import NotServedError, StateChangedError

log = structlog.get_logger()

#: Returns what a token permits; None if registries do not authenticate. Raises NotMountedError.
ReadRights = Callable[[str | None], Access | None]


class MadeMount(NamedTuple):
    """A mount that was made."""

    pod: MountPod
    source: RepositoryName
    #: Bytes that the client need not send.
    size: int


class FoundSource(NamedTuple):
    """A source that has the blob, and from which the client may pull it."""

    pod: MountPod
    repository: RepositoryName
    size: Size

    def make_job(self, wanted: MountRequest, target: MountPod, authorization: str | None) -> MountJob:
        """Wait for the blob's size and return the job; raises NotMountedError or UnavailableError."""
        return MountJob(target, wanted.repository, wanted.digest, self.size(), self.pod, self.repository, authorization)


class Mounter:
    """Makes mounts; for several threads."""

    def __init__(
        self,
        connections: Connections,
        pods: MountPods,
        sources: Sources,
        linkers: Mapping[PodKind, BlobLinker],
        rights: ReadRights,
        *,
        margin: timedelta,
        relay_limit: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`relay_limit`: bytes of the largest blob that is relayed."""
        self._now = now
        self._connections = connections
        self._pods = pods
        self._sources = sources
        self._linkers = linkers
        self._rights = rights
        self._margin = margin
        self._relay_limit = relay_limit

    def close(self) -> None:
        self._sources.close()

    def mount(self, wanted: MountRequest, authorization: str | None) -> MadeMount:
        """Mount a blob; raises NotMountedError or UnavailableError: then the client has to upload it."""
        access = self._rights(authorization)
        target = self.target(wanted.repository)
        if not target.managed:
            raise NotMountedError(Reason.UNMANAGED)
        if access is not None and not all(access.permits(wanted.repository, action) for action in ("pull", "push")):
            raise NotMountedError(Reason.NO_RIGHT)
        found = self._find(wanted, access, authorization)
        linker, is_proved = self._linkers[target.kind], False
        is_relayed = linker.is_relayed(target)
        if is_relayed or not found.pod.kind.links_in_store:
            is_proved = self._check_job(found.make_job(wanted, target, authorization), is_relayed)
        # Meanwhile another thread looks up the bytes.
        reserved = self._reserve(wanted, target, found)
        try:
            job = found.make_job(wanted, target, authorization)._replace(is_proved=is_proved)
            if reserved.is_unsized:
                self._record_size(job)
            linker.link(job)
            if not self._is_in_table(reserved):
                # A check looked for the link before it was made (reconcile/resolve.py). A check from now on finds it.
                reserved = self._reserve(wanted, target, found)
        except BaseException:
            # If the link was made after all, the pod reports it as an upload, or a reconcile finds it.
            self._undo_reservation(reserved)
            raise
        return MadeMount(target, found.repository, job.size)

    def target(self, repository: RepositoryName) -> MountPod:
        """Return the pod that owns the repository; raises NotMountedError if none does, and UnavailableError."""
        found = self._pods.find_owner(repository)
        if found is None:
            raise NotMountedError(Reason.UNKNOWN_TARGET)
        return found

    def _find(self, wanted: MountRequest, access: Access | None, authorization: str | None) -> FoundSource:
        """Find a source that has the blob, among the repositories that the client may pull from."""
        if wanted.source is not None:
            if access is not None and not access.permits(wanted.source, "pull"):
                raise NotMountedError(Reason.NO_RIGHT)
            return self._find_in(wanted, wanted.source, authorization)
        why = NotMountedError(Reason.NO_SOURCE)
        # The shared store first: it answers at once, and its answer needs no proof.
        for source in sorted(_pullable_repositories(access, wanted.repository), key=self._is_relayed_pod):
            try:
                return self._find_in(wanted, source, authorization)
            except NotMountedError as error:
                why = error
        raise why

    def _is_relayed_pod(self, source: RepositoryName) -> bool:
        pod = self._pods.find_owner(source)
        return pod is not None and not pod.kind.links_in_store

    def _find_in(self, wanted: MountRequest, source: RepositoryName, authorization: str | None) -> FoundSource:
        pod = self._pods.find_owner(source)
        if pod is None:
            raise NotMountedError(Reason.UNKNOWN_SOURCE)
        return FoundSource(pod, source, self._sources.find(pod, source, wanted.digest, authorization))

    def _check_job(self, job: MountJob, is_relayed: bool) -> bool:
        """Check a blob that has to be relayed, or that only its source's own registry claims to have.

        Return whether the source has proved that it has it.
        """
        if job.size > self._relay_limit and (is_relayed or not job.is_known):
            raise NotMountedError(Reason.TOO_LARGE)
        needs_proof = not is_relayed and not job.is_known
        if needs_proof:
            # What is linked is in the shared store: perhaps other pods' bytes, which the source only claims to have.
            self._sources.verify_source(job)
            # Checked only now: the proof would show the source's operator that other pods have the blob.
            if self._sources.stored_size(job.digest) != job.size:
                raise NotMountedError(Reason.NOT_SHARED)
        return needs_proof

    def _reserve(self, wanted: MountRequest, target: MountPod, found: FoundSource) -> Reservation:
        try:
            with self._connections.use() as connection:
                return table.reserve_link(
                    connection,
                    target.id,
                    wanted.repository,
                    wanted.digest,
                    found.repository,
                    self._now(),
                    self._margin,
                )
        except NotServedError as error:
            raise NotMountedError(Reason.NOT_SERVED, str(error)) from error
        except StateChangedError as error:
            raise UnavailableError(str(error)) from error

    def _record_size(self, job: MountJob) -> None:
        with self._connections.use() as connection:
            table.record_size(connection, job.digest, job.size)

    def _is_in_table(self, reserved: Reservation) -> bool:
        with self._connections.use() as connection:
            return table.is_in_table(connection, reserved)

    def _undo_reservation(self, reserved: Reservation) -> None:
        try:
            with self._connections.use() as connection:
                table.undo_reservation(connection, reserved)
        except UnavailableError as error:
            log.warning("a reference stays for the grace of links", reason=str(error))


def _pullable_repositories(access: Access | None, but: RepositoryName) -> Iterable[RepositoryName]:
    """Yield some repositories that a token permits to pull from."""
    for name in () if access is None else access.pullable_repositories()[:SOURCES_LIMIT]:
        try:
            repository = parse_repository(name)
        except InvalidNameError:
            continue
        if repository != but:
            yield repository
