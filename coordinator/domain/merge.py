"""Find differences between listed links and the table: a merge of two sorted streams.

Both are sorted by repository and then digest. If a listing is not in that order (some stores promise none), a known
link is given as unknown, and a linked row as unlisted. Both are checked again before anything changes, so disorder
costs time and nothing else.
Pure; it keeps only one item of each stream in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

from coordinator.domain.names import Digest

Left = TypeVar("Left")
Right = TypeVar("Right")


class LinkKind(IntEnum):
    """The kind of a link object. The numbers are stored: never reuse one."""

    #: The repository holds the manifest.
    REVISION = 1
    #: The repository links the blob.
    LAYER = 2


class Link(NamedTuple):
    """A link object, as it was listed."""

    repository_id: int
    digest: Digest
    #: By the store's clock.
    modified_at: datetime


class TableLink(NamedTuple):
    """A holding or a link, as the table has it."""

    repository_id: int
    digest: Digest
    #: It is older than the listing: if it was not listed, its link must be looked up.
    old: bool


def find_differences(listed: Iterable[Link], known: Iterable[TableLink]) -> Iterator[Link | TableLink]:
    """Give the listed links that are not known, and the known, old rows that are not listed."""
    for link, row in pair_items(listed, known, lambda item: item[:2]):
        if row is None:
            assert link is not None
            yield link
        elif link is None and row.old:
            yield row


def pair_items(
    left: Iterable[Left], right: Iterable[Right], key: Callable[[Left | Right], Any]
) -> Iterator[tuple[Left | None, Right | None]]:
    """Pair the items of two streams that are sorted by `key`; None where one of them has no item for a key.

    An item that is out of order is given alone, even if the other stream has it, too.
    """
    lefts, rights = iter(left), iter(right)
    one, other = next(lefts, None), next(rights, None)
    while one is not None or other is not None:
        if other is None or (one is not None and key(one) < key(other)):
            yield one, None
            one = next(lefts, None)
        elif one is None or key(other) < key(one):
            yield None, other
            other = next(rights, None)
        else:
            yield one, other
            one, other = next(lefts, None), next(rights, None)
