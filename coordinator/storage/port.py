"""What Baleen asks of an object store. Every adapter, and every fake of the tests, passes the same contract tests.

Keys are relative to the root that the adapter was given. A key is a path: `a/b`, with no empty part, no `.` or `..`,
and no backslash, since not every store keeps such keys apart. Nor may both `a` and `a/b` be keys: SeaweedFS may then
lose one.

The order of a listing is the store's own: by the keys' UTF-8 bytes on S3 itself, by their parts on stores that keep
directories (SeaweedFS: `a/x` comes before `a-b`), by neither on SeaweedFS with versions. So `walk` is what lists
everything; pages by `start_after` are for prefixes below which all names of a level have one length, as below
`blobs/`: there all stores agree.
`ObjectReader` is what a store that is only looked at has to offer, `ObjectStore` is the shared layer.
Versions: a store may keep what is overwritten or deleted; a *marker* is what a delete then leaves on top.
A delete is the one call that can lose something. Garbage collection's go by `delete_many`, and by `abort` of an upload
that nobody ended; both demand a `Permit`: it is asked at the last moment, after the request was signed. A store refuses
a request whose signature is older than SIGNATURE_S, so nothing that was permitted takes effect much later than that,
however long its sender slept.
Not here: when to delete what (gc).
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from coordinator.errors import NotFoundError, UsageError

LIST_LIMIT = 1000
#: Of one `delete_many` that is one request.
DELETE_LIMIT = 1000
#: S3 refuses a request that was signed longer ago, or will be (RequestTimeTooSkewed); SeaweedFS does, too.
SIGNATURE_S = 15 * 60
CHUNK_BYTES = 1 << 20
#: States of one key that `versions` returns at most, the newest: what has more is worked through in several rounds.
VERSIONS_LIMIT = 10_000
#: What S3 calls the version, or the marker, that is written while a bucket keeps none: the only name given twice.
UNVERSIONED = "null"


class ObjectNotFoundError(NotFoundError):
    """There is no such object now."""


class UnsafeStoreError(UsageError):
    """The store cannot do what garbage collection needs; the message says which it is, and why."""


class ObjectInfo(NamedTuple):
    key: str
    #: Bytes.
    size: int
    #: By the store's clock.
    modified_at: datetime.datetime


class ObjectVersion(NamedTuple):
    """One state of an object that the store keeps."""

    #: The store's name for it; one that keeps no versions calls the only one something too.
    version: str
    #: Bytes; None of a marker: the object was deleted here, and what lies below it is not served.
    size: int | None
    #: By the store's clock.
    modified_at: datetime.datetime
    #: This is what is served; nothing is, if it is a marker.
    latest: bool

    @property
    def is_marker(self) -> bool:
        return self.size is None


class Unfinished(NamedTuple):
    """An upload in parts that was begun, and neither ended nor given up."""

    key: str
    #: By the store's clock.
    begun_at: datetime.datetime
    #: The store's name for it: no other upload ever has it.
    upload: str


class KeyVersion(NamedTuple):
    """One state of one object, of a listing of many."""

    key: str
    state: ObjectVersion


#: Returns while deleting is allowed; raises, and nothing is deleted.
Permit = Callable[[], None]


class Target(NamedTuple):
    """What is to be deleted: exactly this version; without one, whatever is served under the key."""

    key: str
    version: str | None = None


class Deleted(NamedTuple):
    """What became of a target. Not to be there any more is no error."""

    target: Target
    #: The marker that is on top now; None where a version was named, and where the store keeps none.
    marker: str | None = None
    #: What the store said, if it did not delete.
    error: str | None = None
    #: The store says that it deleted it, and not that there is none, nor nothing at all.
    done: bool = True


class OpenObject(NamedTuple):
    """An object that is being read."""

    size: int
    #: The store's name for just these bytes, for `copy_from`; None where it has none.
    etag: str | None
    #: All of the bytes, in pieces of at most CHUNK_BYTES. What breaks off raises UnavailableError, and never just ends.
    chunks: Iterator[bytes]


class ObjectReader(Protocol):
    """Safe to use from several threads. Every call has a timeout; UnavailableError when the store does not answer.

    A store that answers with an error is *unavailable*, never *not found*: an outage must not look like a loss.
    """

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the object's bytes; raises ObjectNotFoundError. Over `limit` bytes: UsageError."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of the object, or None if there is none."""
        ...

    def open(self, key: str) -> AbstractContextManager[OpenObject]:
        """Give the object to read piece by piece, whatever its size; raises ObjectNotFoundError."""
        ...

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        """Return the first `limit` (at most 1000) objects whose key begins with prefix; fewer if there are no more.

        With `start_after` those whose keys are greater; see above for which prefixes that may be relied on.
        """
        ...

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Give every object whose key begins with prefix, once, in the store's own order.

        What is put or deleted meanwhile may be among them or not.
        """
        ...

    def walk_keys(self, prefix: str) -> Iterator[str]:
        """As `walk`, of each object only its key, where more would take a look at each, as in a directory."""
        ...

    def check(self) -> None:
        """Return if the store answers and the bucket is there; else raises UnavailableError."""
        ...


class ObjectStore(ObjectReader, Protocol):
    def put(self, key: str, body: bytes) -> None:
        """Store the object, whole or not at all, in place of one that is there."""
        ...

    def put_chunks(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        """As `put`, for `size` bytes that come piece by piece; little of them is held in memory at once.

        Nothing is stored if they are not as many (UsageError), or if getting them raises: that is raised.
        """
        ...

    def copy_from(self, source: ObjectReader, source_key: str, key: str, *, etag: str | None = None) -> bool:
        """Copy an object within the service that both stores are on, without its bytes travelling here.

        False, with nothing done, if the service cannot: then the bytes have to be read and put. With `etag` only
        the bytes that have it are copied; raises ConflictError if it is another object by now, ObjectNotFoundError if
        there is none.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete the object; that there is none is not an error."""
        ...

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[Deleted]:
        """Delete up to DELETE_LIMIT targets by one request, and return what became of each, in order.

        `permit` is asked at the last moment before the request is sent, each time that it is sent. After an
        UnavailableError any of them may be deleted, or be deleted until SIGNATURE_S later.
        """
        ...

    def keeps_versions(self) -> bool:
        """Whether what is deleted without a version stays, below a marker.

        Raises UnsafeStoreError where that is so for some objects and not for others (versioning is suspended), and
        where the store deletes by itself what collection relies on to stay (a rule that expires versions).
        """
        ...

    def folders(self, prefix: str) -> Iterator[str]:
        """Give the beginnings `<prefix>…/`, up to the next slash, of all keys that begin with prefix and go on so.

        Each once; also one that has just lost its last key may be among them.
        """
        ...

    def versions(self, key: str, limit: int = VERSIONS_LIMIT) -> Sequence[ObjectVersion]:
        """Return the newest `limit` states of an object, the newest first; none if it never was.

        As many as were asked for means that there may be more. Read page by page: a small limit costs one request. A
        store that keeps no versions has one of an object that is there. Markers and versions that are not the latest
        may change places if they are of the same second.
        """
        ...

    def open_version(self, key: str, version: str) -> AbstractContextManager[OpenObject]:
        """As `open`, of a version with bytes that `versions` gave; raises ObjectNotFoundError if it is gone."""
        ...

    def remove_marker(self, key: str, version: str) -> bool:
        """Take a marker away, so that what lies below it is served again; False if there is no such marker.

        Never takes away a version with bytes.
        """
        ...

    def walk_versions(self, prefix: str) -> Iterator[KeyVersion]:
        """Give every state of every object whose key begins with prefix, markers too; those of one key together.

        In the store's own order, page by page, so that memory does not grow with them. A store that keeps no versions
        has one of each object, as in `versions`. Only for prefixes below which no name begins as another and goes on
        with a character before the slash (`a/x`, `a-b`), as below `_uploads/` and `_layers/`: with versions SeaweedFS
        goes through directories, leaves out what is not greater than the last key of the page before, and so loses
        some of those.
        """
        ...

    def version_folders(self, prefix: str) -> Iterator[str]:
        """As `folders`, also where all that is below is deleted, and kept as versions.

        Of folders that begin as others do SeaweedFS may lose one where a page ends, as above.
        """
        ...

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """Give every unfinished upload in parts of a key that begins with prefix, in no order."""
        ...

    def stored_parts(self, upload: Unfinished) -> int:
        """Return how many bytes the store holds of an unfinished upload; none if it is over."""
        ...

    def abort(self, upload: Unfinished, permit: Permit) -> None:
        """Give up exactly this upload, and what the store holds of it; that it is over already is not an error.

        `permit` is asked as in `delete_many`. What was completed is an object, and is never touched.
        """
        ...


def copy_within(store: ObjectStore, source: str, key: str) -> None:
    """Copy an object by the service, or where that cannot, through here; raises as `copy_from` and `put_chunks`."""
    if not store.copy_from(store, source, key):
        with store.open(source) as opened:
            store.put_chunks(key, opened.chunks, opened.size)


def put_on_top(store: ObjectStore, key: str, version: str) -> None:
    """Put the bytes of a version on top of all others, as a new version; raises as `open_version` and `put_chunks`."""
    with store.open_version(key, version) as opened:
        store.put_chunks(key, opened.chunks, opened.size)


def check_key(key: str) -> str:
    """Return the key; raises UsageError if it is not a path as all stores understand it."""
    if "\\" in key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise UsageError(f"{key!r} is not a key: write a path without empty parts, `.`, `..` and backslashes.")
    return key


def page_size(limit: int) -> int:
    """Return how many objects to list; raises UsageError if that is none."""
    if limit < 1:
        raise UsageError(f"A listing of {limit} objects says nothing: ask for 1 to {LIST_LIMIT}.")
    return min(limit, LIST_LIMIT)
