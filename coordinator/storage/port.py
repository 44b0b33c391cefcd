"""What Baleen asks of an object store. Every adapter, and every fake of the tests, passes the same contract tests.

Keys are relative to the root that the adapter was given. Listings are in the order of the keys' UTF-8 bytes.
Not here: versions, markers and copies; garbage collection brings them.
"""

import datetime
from typing import NamedTuple, Protocol

from coordinator.errors import NotFoundError

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

    def put(self, key: str, body: bytes) -> None: ...

    def delete(self, key: str) -> None:
        """Delete the object; that there is none is not an error."""
        ...

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        """Return up to `limit` (at most 1000) objects whose key begins with prefix, after `start_after`."""
        ...

    def check(self) -> None:
        """Return if the store answers and the bucket is there; else raises UnavailableError."""
        ...
