"""A registry that keeps manifests and links as rows, and asks the bucket only for bytes (kind `gitlab`).

Of a blob it reports a push or a mount before it writes the row, which may follow late, or never if the process is
killed; of a manifest, after its rows are committed. HEAD of a blob looks at the bucket. A mount, and a manifest that
lists the blob, are accepted if there are rows, whatever the bucket has: `confirmed` is told of these.
Besides its clients two things change rows, both without an event: the review of untagged manifests, and that of blobs
that no manifest lists (another process, without access to the bucket: it touches no bytes).
Not here: the rows (tests/gitlab/memory.py), what Baleen may lose (world.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from coordinator.domain.facts import BlobLinked, ManifestPushed, Removed
from coordinator.domain.mounts import NotMountedError, Reason
from coordinator.domain.names import Digest, PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.errors import UnavailableError
from coordinator.mounts.directory import MountPod
from coordinator.mounts.linker import MountJob
from coordinator.mounts.sources import Size, Sources
from coordinator.storage.layout import blob_key
from tests.gitlab.memory import MemoryGitlabDatabase
from tests.simulation.database import Connections
from tests.simulation.registry import (
    ALL_REPOSITORIES,
    GITLAB_REPOSITORIES,
    IMAGES,
    NAMES,
    NEEDS,
    PULLED,
    DeadError,
    Process,
    Registry,
    body_of,
    digest_of,
)
from tests.simulation.scheduler import SECOND, Scheduler
from tests.simulation.store import Bucket

#: After so long what nothing refers to is reviewed.
REVIEWED_AFTER = 600 * SECOND
#: Rows of a page: few, so that others go on between two.
PAGE = 2
#: How long the database is away.
AWAY = (1 * SECOND, 61 * SECOND)


class Rows(MemoryGitlabDatabase):
    """The database of a history: each question of Baleen is a place where others go on, and may fail."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler.time, page=PAGE, before=self._be_asked)
        self._scheduler = scheduler
        #: How probably a question finds the database away, and until when it is.
        self.away: float = 0
        self._away_until = 0

    def end_failures(self) -> None:
        self.away = self._away_until = 0

    def needed_digests(self) -> set[Digest]:
        """What must be in the bucket for the manifests to be pulled: of theirs the bytes are in the rows."""
        return {digest for _, manifest in self.held() for digest in PULLED[manifest.row.digest] - NEEDS.keys()}

    def _be_asked(self) -> None:
        scheduler = self._scheduler
        scheduler.pause("store", "asks the registry's database")
        if scheduler.current is None:
            return
        if self._away_until <= scheduler.now and scheduler.roll(self.away):
            self._away_until = scheduler.now + scheduler.chance.choice(AWAY)
        if scheduler.now < self._away_until:
            scheduler.note_current("and the registry's database is away")
            raise UnavailableError("The registry's database does not answer: try again.")


class RowClaims:
    """The claims of the registered pods of this kind (coordinator/gc/claims.py): there is one at most."""

    def __init__(self, connections: Connections, rows: Rows) -> None:
        self._connections = connections
        self._rows = rows

    def find_claims(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:
        if not blobs:
            return {}
        with self._connections.use() as connection:
            found = connection.execute("SELECT name FROM pods WHERE kind = %s", (str(PodKind.GITLAB),)).fetchall()
        return {digest: PodName(name) for (name,) in found for digest in self._rows.find_known(blobs)}


class GitlabRegistry(Registry):
    def __init__(self, bucket: Bucket, scheduler: Scheduler, rows: Rows) -> None:
        super().__init__(bucket, scheduler)
        self.rows = rows
        #: Called with what a client was told to be there, and where, without a look at the bucket.
        self.confirmed: Callable[[str, Collection[Digest]], None] = lambda where, digests: None

    def upload(self, process: Process, where: str, name: str) -> bool:
        with self._request(process):
            digest = digest_of(name)
            self._store(f"ends an upload of {name} to {where}", name)
            self._report_blob(process, where, name)

            def write() -> bool:
                self.rows.add_blob(digest)
                return self.rows.add_link(_path(where), digest)

            return self._write(f"writes the rows of {name} in {where}", write)

    def mount(self, process: Process, where: str, name: str, source: str) -> bool:
        with self._request(process):
            digest = digest_of(name)
            self._see(f"mounts {name} from {source} to {where}: looks for rows")
            if self.rows.link(_path(source), digest) is None:
                return False
            self._report_blob(process, where, name)
            written = f"writes the rows of {name} in {where}"
            if not self._write(written, lambda: self.rows.add_link(_path(where), digest)):
                return False
            self.confirmed(where, [digest])
            return True

    def has(self, process: Process, where: str, name: str) -> bool:
        with self._request(process):
            digest = digest_of(name)
            self._see(f"is asked whether {where} has {name}: looks for rows")
            if self.rows.link(_path(where), digest) is None:
                return False
            self._see(f"looks whether the bytes of {name} are there")
            return self._bucket.has(blob_key(digest))

    def put_manifest(self, process: Process, where: str, name: str) -> bool:
        with self._request(process):
            image, path = IMAGES[name], _path(where)
            listed = [digest_of(each) for each in image.lists]
            blobs, children = ([], listed) if image.index else (listed, [])
            self._see(f"takes image {name} for {where}: looks for rows")
            if not self._is_accepted(path, blobs, children):
                self._scheduler.note_current(f"refuses image {name}: something is not there")
                return False
            if not self._write(
                f"writes the rows of image {name} in {where}",
                lambda: self.rows.add_manifest(path, image.digest, image.body, blobs, children),
            ):
                return False
            if self._scheduler.roll(self.lossy):
                self.lost = True
                self._scheduler.note_current(f"and fails: the client gets 500, without an event of {where}")
                return False
            self.confirmed(where, blobs)
            self._see(f"is about to tell that {where} has image {name}")
            at = self._now(process)
            self._send(process, where, ManifestPushed(path, image.digest, at, len(image.body), image.content))
            return True

    def delete_manifest(self, process: Process, where: str, name: str) -> bool:
        with self._request(process):
            digest, path = digest_of(name), _path(where)
            self._see(f"is asked to delete image {name} from {where}")
            if self.rows.manifest(path, digest) is None:
                return False
            self._see(f"removes the rows of image {name} in {where}")
            if not self.rows.remove_manifest(path, digest):
                self._scheduler.note_current("answers that it has gone, or that an index lists it")
                return False
            self._see(f"is about to tell that {where} has image {name} no more")
            self._send(process, where, Removed(path, digest, self._now(process)))
            return True

    def delete_blob(self, process: Process, where: str, name: str) -> bool:
        """The link goes, and no event says so."""
        with self._request(process):
            self._see(f"is asked to delete {name} from {where}")
            return self.rows.remove_link(_path(where), digest_of(name))

    def may_take(self, where: str, name: str) -> bool:
        """Whether nothing has to be brought before a manifest that lists the blob; True of others' repositories."""
        return where not in GITLAB_REPOSITORIES or self.rows.link(_path(where), digest_of(name)) is not None

    def holds(self, where: str, name: str) -> bool:
        return self.rows.manifest(_path(where), digest_of(name)) is not None

    def begin_with_blob(self, where: str, name: str, ago: timedelta) -> None:
        """Some time ago a client uploaded a blob, and no manifest lists it."""
        at = self._scheduler.time() - ago
        self.rows.add_blob(digest_of(name), at)
        self.rows.add_link(_path(where), digest_of(name), at)

    # What happens by itself

    def review_manifests(self, chosen: Callable[[Any], Any]) -> None:
        """Remove one that no tag names, and that no index lists: here nothing is tagged but image D."""
        found = [
            (path, manifest.row.digest)
            for path, manifest in self.rows.held()
            if self._is_old(manifest.row.created_at)
            and not self.rows.is_child(path, manifest.row.digest)
            and manifest.row.digest != digest_of("D")
        ]
        if found:
            path, digest = chosen(found)
            self.rows.remove_manifest(path, digest)
            self.lost = True
            self._scheduler.note("review", f"removes an untagged manifest of {path}")

    def review_blobs(self) -> None:
        for digest, blob in list(self.rows.blobs.items()):
            if blob.unlisted_since is not None and self._is_old(blob.unlisted_since):
                self.rows.remove_blob(digest)
                self._scheduler.note("review", "removes the row of a blob that no manifest lists")

    def _is_old(self, at: Any) -> bool:
        return self._scheduler.now - self._scheduler.at(at) >= REVIEWED_AFTER

    # Parts of requests

    def _is_accepted(self, path: RepositoryName, blobs: Collection[Digest], children: Collection[Digest]) -> bool:
        return all(self.rows.link(path, each) is not None for each in blobs) and all(
            self.rows.manifest(path, each) is not None for each in children
        )

    def _report_blob(self, process: Process, where: str, name: str) -> None:
        self._see(f"is about to tell that {where} has {name}")
        self._send(process, where, BlobLinked(_path(where), digest_of(name), self._now(process), len(body_of(name))))

    def _write(self, what: str, write: Callable[[], bool]) -> bool:
        """Commit a transaction; False if the database refuses it."""
        actor = self._actor
        if actor is not None:
            actor.writing = what, write
        self._see(what)
        is_written = write()
        if actor is not None:
            actor.writing = None
        if not is_written:
            self._scheduler.note_current("and fails: the database refuses it")
        return is_written


class Uploads:
    """The linker of this kind (mounts/linker.py): what the repository does not serve is uploaded to it."""

    def __init__(self, registry: GitlabRegistry, process: Callable[[], Process]) -> None:
        self._registry = registry
        self._process = process

    def is_relayed(self, pod: MountPod) -> bool:  # noqa: ARG002 - all are
        return True

    def link(self, job: MountJob) -> None:
        where, name = _names(job.repository, job.digest)
        try:
            done = self._registry.has(self._process(), where, name)
            if not done and not self._registry.upload(self._process(), where, name):
                raise UnavailableError("The registry fails: try again.")
        except DeadError as error:
            raise UnavailableError("The registry does not answer: try again.") from error


class SimulatedSources(Sources):
    """Asks the registry of kind `gitlab` what is there, and the bucket of all others."""

    def __init__(self, store: Any, registry: GitlabRegistry, process: Callable[[], Process]) -> None:
        super().__init__(store)
        self._registry = registry
        self._process = process

    def find(self, pod: MountPod, repository: RepositoryName, digest: Digest, authorization: str | None) -> Size:
        if pod.kind.links_in_store:
            return super().find(pod, repository, digest, authorization)
        where, name = _names(repository, digest)
        self._check(where, name)
        return lambda: len(body_of(name))

    def verify_source(self, job: MountJob) -> None:
        self._check(*_names(job.source_repository, job.digest))

    def _check(self, where: str, name: str) -> None:
        try:
            is_there = self._registry.has(self._process(), where, name)
        except DeadError as error:
            raise UnavailableError("The registry does not answer: try again.") from error
        if not is_there:
            raise NotMountedError(Reason.NOT_THERE)


def _names(repository: RepositoryName, digest: Digest) -> tuple[str, str]:
    where = next(where for where, each in GITLAB_REPOSITORIES.items() if each.name == repository)
    return where, NAMES[digest].rpartition(" ")[2]


def _path(where: str) -> RepositoryName:
    return ALL_REPOSITORIES[where].name
