"""What Baleen asks of an object store. Every adapter, and every fake of the tests, passes the same contract tests.

Keys are relative to the root that the adapter was given. A key is a path: `a/b`, with no empty part, no `.` or `..`,
and no backslash, since not every store keeps such keys apart. Nor may both `a` and `a/b` be keys: SeaweedFS may then
lose one.

The order of a listing is the store's own: by the keys' UTF-8 bytes on S3 itself, by their parts on stores that keep
directories (SeaweedFS: `a/x` comes before `a-b`), by neither on SeaweedFS with versions. So `walk` is what lists
everything; pages by `start_after` are for prefixes below which all names of a level have one length, as below
`blobs/`: there all stores agree.
Not here: versions, markers and copies; garbage collection brings them.
"""

import datetime
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from coordinator.errors import NotFoundError, UsageError

LIST_LIMIT = 1000


class ObjectNotFoundError(NotFoundError):
    """There is no such object now."""


class ObjectInfo(NamedTuple):
    key: str
    #: Bytes.
    size: int
    #: By the store's clock.
    modified_at: datetime.datetime


class ObjectStore(Protocol):
    """Safe to use from several threads. Every call has a timeout; UnavailableError when the store does not answer.

    A store that answers with an error is *unavailable*, never *not found*: an outage must not look like a loss.
    """

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the object's bytes; raises ObjectNotFoundError. Over `limit` bytes: UsageError."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of the object, or None if there is none."""
        ...

    def put(self, key: str, body: bytes) -> None:
        """Store the object, whole or not at all, in place of one that is there."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object; that there is none is not an error."""
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

    def check(self) -> None:
        """Return if the store answers and the bucket is there; else raises UnavailableError."""
        ...


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
