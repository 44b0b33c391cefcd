"""The interface of an object store. Every adapter, and every fake of the tests, passes the same contract tests.

Keys are relative to the adapter's root. A key is a path: `a/b`, with no empty part, no `.` or `..`, and no backslash,
because not every store keeps such keys apart. `a` and `a/b` must not both be keys: SeaweedFS may then lose one.

The order of a listing depends on the store: by the keys' UTF-8 bytes on S3 itself, by their parts on stores that keep
directories (SeaweedFS: `a/x` comes before `a-b`), by neither on SeaweedFS with versions. So use `walk` to list
everything; pages by `start_after` are only for prefixes below which all names of a level have one length, as below
`blobs/`: there all stores agree.
`ObjectReader` is a store that is only read, `ObjectStore` is the shared layer.
Versions: a store may keep what is overwritten or deleted; a *marker* is what a delete then leaves on top.
A delete is the only call that can lose data. Garbage collection deletes by `delete_many`, and by `abort` of an
unfinished upload. Both need a `Permit`, which is asked at the last moment, after the request was signed. A store
refuses a request whose signature is older than SIGNATURE_S, so no permitted delete takes effect much later than that,
however long its sender was paused.
Not here: when to delete what (gc).
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from coordinator.errors import NotFoundError, UsageError

LIST_LIMIT = 1000
#: The most targets of one `delete_many`, which is one request.
DELETE_LIMIT = 1000
#: S3 and SeaweedFS refuse a request signed longer ago, or as far in the future (RequestTimeTooSkewed).
SIGNATURE_S = 15 * 60
CHUNK_BYTES = 1 << 20
#: The most states of one key that `list_versions` returns, the newest first; a key with more takes several rounds.
VERSIONS_LIMIT = 10_000
#: S3's name of the version, or marker, written while a bucket keeps no versions: the only name that is used again.
UNVERSIONED = "null"


class ObjectNotFoundError(NotFoundError):
    """There is no such object now."""


class UnsafeStoreError(UsageError):
    """The store cannot do what garbage collection needs; the message says what, and why."""


class ObjectInfo(NamedTuple):
    key: str
    #: Bytes.
    size: int
    #: By the store's clock.
    modified_at: datetime.datetime


class ObjectVersion(NamedTuple):
    """One state of an object that the store keeps."""

    #: The store's name for it; a store without versions names the only state, too.
    version: str
    #: Bytes; None for a marker: the object was deleted here, and what is below the marker is not served.
    size: int | None
    #: By the store's clock.
    modified_at: datetime.datetime
    #: This state is served, or nothing if it is a marker.
    latest: bool

    @property
    def is_marker(self) -> bool:
        return self.size is None


class UnfinishedUpload(NamedTuple):
    """A multipart upload that was started, and neither completed nor aborted."""

    key: str
    #: By the store's clock.
    begun_at: datetime.datetime
    #: The store's name for it, unique among all uploads.
    upload: str


class KeyVersion(NamedTuple):
    """One state of one object in a listing of many."""

    key: str
    state: ObjectVersion


#: Returns while deleting is permitted; if it raises, nothing is deleted.
Permit = Callable[[], None]


class Target(NamedTuple):
    """What to delete: exactly this version; without one, whatever is served under the key."""

    key: str
    version: str | None = None


class DeleteResult(NamedTuple):
    """The result for one target. That it was gone already is not an error."""

    target: Target
    #: The marker that is on top now; None if a version was named, or the store keeps none.
    marker: str | None = None
    #: What the store said, if it did not delete.
    error: str | None = None
    #: The store confirmed the delete, and did not say that there was none, or nothing at all.
    done: bool = True


class OpenObject(NamedTuple):
    """An object that is being read."""

    size: int
    #: The store's name for exactly these bytes, for `copy_from`; None if it has none.
    etag: str | None
    #: All bytes, in pieces of at most CHUNK_BYTES. An interrupted read raises UnavailableError, and never just ends.
    chunks: Iterator[bytes]


class ObjectReader(Protocol):
    """Reads objects; for several threads. Every call has a timeout, and raises UnavailableError after it.

    A store that answers with an error is *unavailable*, never *not found*: an outage must not look like a loss.
    """

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the object's bytes; raises ObjectNotFoundError. Over `limit` bytes: UsageError."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return the object's metadata, or None if there is no such object."""
        ...

    def open(self, key: str) -> AbstractContextManager[OpenObject]:
        """Open the object to read it piece by piece, whatever its size; raises ObjectNotFoundError."""
        ...

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        """Return the first `limit` (at most 1000) objects whose key begins with prefix; fewer if there are no more.

        With `start_after` only those whose keys are greater; the module's docstring says for which prefixes that works.
        """
        ...

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with prefix, once, in the store's own order.

        Objects put or deleted meanwhile may be included or not.
        """
        ...

    def walk_keys(self, prefix: str) -> Iterator[str]:
        """Yield only keys, as `walk` does objects, where sizes and times would take a call for each (a directory)."""
        ...

    def check(self) -> None:
        """Return if the store answers and the bucket is there; else raises UnavailableError."""
        ...


class ObjectStore(ObjectReader, Protocol):
    def put(self, key: str, body: bytes) -> None:
        """Store the object, completely or not at all, replacing an existing one."""
        ...

    def put_chunks(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        """Store `size` bytes that come piece by piece, as `put`, with few of them in memory at once.

        Nothing is stored if there are more or fewer bytes (UsageError), or if the iterator raises: that is raised.
        """
        ...

    def copy_from(self, source: ObjectReader, source_key: str, key: str, *, etag: str | None = None) -> bool:
        """Copy an object within the service of both stores, without transferring its bytes to this process.

        Returns False, with nothing done, if the service cannot: then read and put the bytes. With `etag` only bytes
        with that etag are copied; raises ConflictError if the object has changed since, ObjectNotFoundError if there
        is none.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete the object; that there is none is not an error."""
        ...

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
        """Delete up to DELETE_LIMIT targets by one request, and return the result for each, in order.

        `permit` is asked at the last moment before the request is sent, each time that it is sent. After an
        UnavailableError any of them may have been deleted, or may still be deleted until SIGNATURE_S later.
        """
        ...

    def keeps_versions(self) -> bool:
        """Whether the store keeps an object, below a marker, that is deleted without naming a version.

        Raises UnsafeStoreError if it does so for some objects only (versioning is suspended), or if it deletes by
        itself what GC needs to stay (a rule that expires versions).
        """
        ...

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Yield the folders `<prefix>…/`, up to the next slash, of all keys that begin with prefix and have one.

        Each once. A folder that has just lost its last key may be included.
        """
        ...

    def list_versions(self, key: str, limit: int = VERSIONS_LIMIT) -> Sequence[ObjectVersion]:
        """Return the newest `limit` states of an object, the newest first; none if it never existed.

        A result of `limit` states means that there may be more. Read page by page: a small limit costs one request. A
        store without versions has one state of an existing object. Markers and versions that are not the latest may
        change places if they are of the same second.
        """
        ...

    def open_version(self, key: str, version: str) -> AbstractContextManager[OpenObject]:
        """Open a version with bytes, of those that `list_versions` returned, as `open`.

        Raises ObjectNotFoundError if it is gone.
        """
        ...

    def remove_marker(self, key: str, version: str) -> bool:
        """Remove a marker, so that what is below it is served again; False if there is no such marker.

        Never removes a version with bytes.
        """
        ...

    def walk_versions(self, prefix: str) -> Iterator[KeyVersion]:
        """Yield every state of every object whose key begins with prefix, also markers; those of one key together.

        In the store's own order, page by page, so that memory does not grow with them. A store without versions has one
        state of each object, as in `list_versions`. Only for prefixes below which no name is another one's continuation
        by a character that sorts before the slash (`a/x`, `a-b`), as below `_uploads/` and `_layers/`: with versions
        SeaweedFS walks directories, skips keys that are not greater than the last key of the previous page, and so
        loses some of those.
        """
        ...

    def list_version_folders(self, prefix: str) -> Iterator[str]:
        """Yield folders as `list_folders` does, also those in which everything is deleted and kept as versions.

        Of folders whose names begin alike SeaweedFS may lose one at the end of a page, as in `walk_versions`.
        """
        ...

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Yield every unfinished multipart upload of a key that begins with prefix, in no order."""
        ...

    def count_stored_bytes(self, upload: UnfinishedUpload) -> int:
        """Return how many bytes the store holds of an unfinished upload; 0 if it has ended."""
        ...

    def abort_upload(self, upload: UnfinishedUpload, permit: Permit) -> None:
        """Abort exactly this upload and delete its parts; that it has ended already is not an error.

        `permit` is asked as in `delete_many`. A completed upload is an object, and is never touched.
        """
        ...


def copy_within(store: ObjectStore, source: str, key: str) -> None:
    """Copy an object by the service, or else through this process; raises as `copy_from` and `put_chunks`."""
    if not store.copy_from(store, source, key):
        with store.open(source) as opened:
            store.put_chunks(key, opened.chunks, opened.size)


def put_on_top(store: ObjectStore, key: str, version: str) -> None:
    """Write a version's bytes again as the newest version; raises as `open_version` and `put_chunks`."""
    with store.open_version(key, version) as opened:
        store.put_chunks(key, opened.chunks, opened.size)


def check_key(key: str) -> str:
    """Return the key; raises UsageError if it is not a path as all stores understand it."""
    if "\\" in key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise UsageError(f"{key!r} is not a key: write a path without empty parts, `.`, `..` and backslashes.")
    return key


def check_page_size(limit: int) -> int:
    """Return a valid page size of a listing; raises UsageError if it is out of range."""
    if limit < 1:
        raise UsageError(f"A listing cannot have {limit} objects: ask for 1 to {LIST_LIMIT}.")
    return min(limit, LIST_LIMIT)
