"""Make and remove a visit's scratch data: random blobs and images in repositories that only doctors use.

Objects on which the pod's key is tried are below no repository: nothing that lists repositories or links sees them.
Invariants: a blob is hidden, and its bytes are deleted, only if this visit made it of random bytes and nothing else in
the table needs it; keys are deleted only below the scratch repositories, and of those blobs.
The next visit finds what a killed visit left: it removes the links and holdings, and leaves the bytes to garbage
collection, which asks the whole table first.
In a registry's database the rows of a visit's repositories stay, which are then empty, and those of its blobs: no
request removes them.
Not here: the experiments.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from coordinator.db.connection import Connections
from coordinator.doctor import scratch_table as scratch
from coordinator.doctor.table import ExaminedPod
from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName, format_digest, parse_digest, parse_repository
from coordinator.domain.own import is_scratch
from coordinator.errors import BaleenError, ConflictError
from coordinator.gitlab.database import GitlabDatabase
from coordinator.registry.client import RegistryClient, RegistryError, RegistryNotFoundError
from coordinator.registry.images import OCI, Image, ImageFormat, Index, Layer, make_image, make_index, make_layer
from coordinator.storage.layout import MARK, MARK_COPY, QUARANTINE, REPOSITORIES, blob_key, repository_prefix
from coordinator.storage.trial import TrialStore

#: Reserved for repositories of doctors, below `<first prefix>/` of every pod.
NAME = "baleen-doctor-"
#: Follows NAME; and the suffix of a visit's second repository.
_MARK = "[0-9a-f]{16}"
OTHER = "-other"
#: Follows the mark in the name of an object on which the pod's key is tried, before the pod's name; and its content.
BY = "-by-"
CONTENT = b"A doctor's scratch object: it may be deleted."
LAYER_BYTES = 2000
#: Prefixes of one pod on which its key is tried.
PREFIXES_TRIED = 100
#: The answer of a registry that refuses deletes.
METHOD_NOT_ALLOWED = 405


class Announcement(NamedTuple):
    """Something that a registry did, and has to report."""

    action: str
    repository: RepositoryName
    digest: str


class Scratch:
    """One visit's scratch repositories, and a record of all that may be in them."""

    def __init__(self, pod: ExaminedPod, store: TrialStore, connections: Connections) -> None:
        self._pod = pod
        self._store = store
        self._connections = connections
        mark = secrets.token_hex(8)
        self.repository = parse_repository(f"{pod.prefix}/{NAME}{mark}")
        #: For mounts.
        self.other = parse_repository(f"{pod.prefix}/{NAME}{mark}{OTHER}")
        self.repositories = (self.repository, self.other)
        self._object = f"{NAME}{mark}{BY}{pod.name}"
        #: Objects on which the pod's key is tried: in the quarantine, but no copy; beside the mark; and outside of
        #: every pod's prefixes, but no repository, as it has no folder.
        self.quarantined = f"{QUARANTINE}{self._object}"
        self.beside_mark = f"{MARK}.{self._object}"
        self.outside = f"{REPOSITORIES}{self._object}"
        #: What registries did, by their answers.
        self.done: set[Announcement] = set()
        self._contents: dict[Digest, bytes] = {}
        #: What may be in the repositories, also if no answer came.
        self._layers: dict[tuple[RepositoryName, str], None] = {}
        self._manifests: dict[tuple[RepositoryName, str], None] = {}
        self._objects: dict[str, None] = {}
        #: Our blobs that others need by now: they are not deleted.
        self._needed: set[Digest] = set()

    # Making

    def make_layer(self) -> Layer:
        return self._remember(make_layer(secrets.token_hex(32), LAYER_BYTES))

    def make_image(self, layers: Sequence[Layer], family: ImageFormat = OCI) -> Image:
        image = make_image(secrets.token_hex(32), layers, kind=family)
        self._remember(image.config)
        self._contents[parse_digest(image.digest)] = image.content
        return image

    def make_index(self, children: Sequence[Image], family: ImageFormat = OCI) -> Index:
        index = make_index(children, family)
        self._contents[parse_digest(index.digest)] = index.content
        return index

    def push_blob(self, client: RegistryClient, blob: Layer, repository: RepositoryName | None = None) -> None:
        """Upload a blob into one of our repositories, by default the first."""
        name = repository or self.repository
        self.finish_upload(client, client.begin_upload(name), blob, name)

    def finish_upload(
        self, client: RegistryClient, session: str, blob: Layer, repository: RepositoryName | None = None
    ) -> None:
        name = repository or self.repository
        self._layers[name, blob.digest] = None
        client.finish_upload(session, blob.digest, iter((blob.content,)), len(blob.content))
        self.done.add(Announcement("push", name, blob.digest))

    def mount(self, client: RegistryClient, blob: Layer) -> bool:
        """Mount a blob into the other repository; return whether the registry did it."""
        self._layers[self.other, blob.digest] = None
        mounted = client.mount_blob(self.other, blob.digest, self.repository)
        if mounted:
            self.done.add(Announcement("mount", self.other, blob.digest))
        return mounted

    def put_manifest(self, client: RegistryClient, image: Image | Index, user_agent: str | None = None) -> None:
        self._manifests[self.repository, image.digest] = None
        client.put_manifest(self.repository, image.digest, image.media_type, image.content, user_agent=user_agent)
        self.done.add(Announcement("push", self.repository, image.digest))

    def delete_manifest(self, client: RegistryClient, digest: str) -> None:
        client.delete_manifest(self.repository, digest)
        self.done.add(Announcement("delete", self.repository, digest))

    def _remember(self, layer: Layer) -> Layer:
        self._contents[parse_digest(layer.digest)] = layer.content
        return layer

    # In storage, with Baleen's own key

    def store_blob(self, blob: Layer) -> str:
        """Store a blob that no repository links, and return its key."""
        key = self._own_key(blob.digest)
        self._store.put(key, blob.content)
        return key

    def store_object(self, key: str) -> str:
        """Store `CONTENT` under a key of `quarantined`, `beside_mark` or `outside`."""
        self._objects[key] = None
        self._store.put(key, CONTENT)
        return key

    def absent_key(self, prefix: RepositoryName) -> str:
        """Return a key below a prefix at which nothing is ever stored.

        An object there would pass for the pod's own: with any object below its prefixes, a reconcile takes it that the
        pod stores its links here.
        """
        key = f"{REPOSITORIES}{prefix}/{self._object}"
        self._objects[key] = None  # A permitted delete leaves a marker.
        return key

    def is_stored(self, blob: Layer) -> bool:
        return self._store.head(blob_key(parse_digest(blob.digest))) is not None

    @contextmanager
    def remove_for_block(self, blob: Layer) -> Iterator[None]:
        """Delete a blob, and restore it at the end of the block; raises ConflictError if anything else needs it."""
        key = self._own_key(blob.digest)
        self._store.delete(key)
        try:
            yield
        finally:
            self._restore_blob(key, blob.content)

    def _restore_blob(self, key: str, content: bytes) -> None:
        for version in self._store.list_versions(key):
            if version.latest and version.is_marker:
                self._store.remove_marker(key, version.version)
        if self._store.head(key) is None:
            self._store.put(key, content)

    def _own_key(self, digest: str) -> str:
        """Return the key of a blob that this visit made and nothing else needs; raises ConflictError for any other."""
        ours = parse_digest(digest)
        if ours not in self._contents:
            raise ConflictError(f"This visit did not make {digest}: the doctor does not touch it.")
        with self._connections.use() as connection:
            if scratch.find_needed_elsewhere(connection, [ours], self.repositories):
                raise ConflictError(f"Other repositories need {digest} too: the doctor does not touch it.")
        return blob_key(ours)

    # Removing

    def clean(self, clients: Sequence[RegistryClient], is_quiet: Callable[[], bool]) -> list[str]:
        """Remove everything that can be removed; return sentences about what could not be.

        `is_quiet` waits until all of `done` is reported and applied, and returns whether it is. Does not raise.
        """
        problems: list[str] = []

        def try_step(step: Callable[[], None]) -> bool:
            try:
                step()
            except BaleenError as error:
                problems.append(str(error))
                return False
            return True

        def await_quiet() -> None:
            if not is_quiet():
                raise BaleenError(
                    "Not all events of the visit came and were applied: a reconcile removes what comes later."
                )

        try_step(lambda: self._delete_by_registry(clients))
        quiet = try_step(await_quiet)
        erased = try_step(self._erase_objects)
        try_step(lambda: self._delete_rows(entirely=quiet and erased))
        try_step(self._check_nothing_left)
        return problems

    def _delete_by_registry(self, clients: Sequence[RegistryClient]) -> None:
        """Delete the scratch manifests and layers through the first registry process that answers."""
        for client in clients:
            try:
                # An index before what it lists.
                for repository, digest in reversed(self._manifests):
                    self._delete_if_permitted(client.delete_manifest, repository, digest)
                for repository, digest in self._layers:
                    self._delete_if_permitted(
                        client.delete_blob, repository, digest, is_reported=self._pod.kind.reports_blob_deletes
                    )
            except RegistryError:
                continue
            return

    def _delete_if_permitted(
        self, call: Callable[[str, str], None], repository: RepositoryName, digest: str, *, is_reported: bool = True
    ) -> None:
        """Delete something, if it exists and the registry permits deletes."""
        try:
            call(repository, digest)
        except RegistryNotFoundError:
            return
        except RegistryError as error:
            if error.registry_status != METHOD_NOT_ALLOWED:
                raise
        else:
            if is_reported:
                self.done.add(Announcement("delete", repository, digest))

    def _erase_objects(self) -> None:
        for repository in self.repositories:
            self._store.erase_below(repository_prefix(repository))
        self._store.erase(self._objects)
        with self._connections.use() as connection:
            needed = self._needed = scratch.find_needed_elsewhere(connection, self._contents, self.repositories)
        self._store.erase(blob_key(digest) for digest in self._contents if digest not in needed)
        if needed:
            raise ConflictError(
                f"Other repositories need {len(needed)} blobs of the visit by now: they were not deleted."
            )

    def _delete_rows(self, *, entirely: bool) -> None:
        with self._connections.use() as connection:
            if entirely:
                scratch.delete_repositories(connection, self.repositories, self._contents)
            else:
                scratch.empty_repositories(connection, self.repositories)

    def _check_nothing_left(self) -> None:
        """Check that nothing is left: a registry that was asked to delete may still be writing."""
        keys = [key.key for name in self.repositories for key in self._store.list(repository_prefix(name), limit=1)]
        blobs = [blob_key(digest) for digest in self._contents if digest not in self._needed]
        keys += [key for key in (*blobs, *self._objects) if self._store.head(key) is not None]
        with self._connections.use() as connection:
            rows = scratch.count_rows(connection, self.repositories)
        if keys or rows:
            raise BaleenError(f"The visit left {len(keys)} objects, such as {keys[:1]}, and {rows} rows of the table.")


def clean_up_after(pod: ExaminedPod, store: TrialStore, connections: Connections) -> int:
    """Remove what killed visits left; return the number of repositories. Only call this while no other visit runs."""
    beginning = f"{pod.prefix}/{NAME}"
    with connections.use() as connection:
        names = set(scratch.find_repositories(connection, pod.id, beginning))
    folders = store.list_folders(f"{REPOSITORIES}{beginning}")
    names |= {RepositoryName(f"{pod.prefix}/{folder.rstrip('/').rpartition('/')[2]}") for folder in folders}
    # No listing shows a repository that has only deleted versions: take both names of a pair.
    ours = {
        RepositoryName(match[0] + other)
        for name in names
        if (match := re.match(rf"{re.escape(beginning)}{_MARK}(?=(?:{OTHER})?$)", name)) is not None
        for other in ("", OTHER)
    }
    cleaned = 0
    for name in sorted(ours):
        with connections.use() as connection:
            rows = scratch.count_rows(connection, [name])
            scratch.empty_repositories(connection, [name])
        cleaned += bool(rows + store.erase_below(repository_prefix(name)))
    for mark in (MARK, MARK_COPY):
        store.abort_uploads(mark)
    for beginning in _object_prefixes(pod):
        store.erase(store.list_matching(beginning, re.compile(rf"{NAME}{_MARK}{BY}{re.escape(pod.name)}$")))
    return cleaned


def clean_registry_after(
    pod: ExaminedPod, client: RegistryClient, database: GitlabDatabase, connections: Connections, own: Scratch
) -> int:
    """Delete, through the registry, what killed visits left in its database; return the number of repositories.

    Raises RegistryError and UnavailableError. Without this a reconcile would bring it back into the table.
    """
    with connections.use() as connection:
        known = scratch.find_repositories(connection, pod.id, f"{pod.prefix}/{NAME}")
    cleaned = 0
    for name in known:
        repository = database.read_repository(name)
        if name in own.repositories or not is_scratch(name.rpartition("/")[2]) or repository is None:
            continue
        manifests = [format_digest(row.digest) for row in database.read_links(repository, LinkKind.REVISION)]
        layers = [format_digest(row.digest) for row in database.read_links(repository, LinkKind.LAYER)]
        # An index has a later row than what it lists.
        for digest in reversed(manifests):
            client.delete_manifest(name, digest)
        for digest in layers:
            client.delete_blob(name, digest)
        cleaned += bool(manifests or layers)
    return cleaned


def _object_prefixes(pod: ExaminedPod) -> list[str]:
    """Return the beginnings of the keys of objects on which a visit may have tried the pod's key."""
    own = [f"{REPOSITORIES}{prefix}/{NAME}" for prefix in pod.prefixes[:PREFIXES_TRIED]]
    return [f"{QUARANTINE}{NAME}", f"{MARK}.{NAME}", f"{REPOSITORIES}{NAME}", *own]
