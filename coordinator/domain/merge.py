"""What differs between links that were listed and what the table knows: a merge of two sorted streams.

Both come by repository and then digest. Where a listing is not in that order (some stores promise none), a link is
given as unknown though it is known, and what is known as unlisted though it is linked: both are looked at again before
anything changes, so that disorder costs time and nothing else.
Pure, and nothing is remembered but one item of each stream.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

from coordinator.domain.names import Digest


class LinkKind(IntEnum):
    """What a link object says. The numbers are stored: never reuse one."""

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


class Known(NamedTuple):
    """A holding or a link, as the table has it."""

    repository_id: int
    digest: Digest
    #: From before the listing began: if it was not listed, its link is to be looked up.
    old: bool


def differences(listed: Iterable[Link], known: Iterable[Known]) -> Iterator[Link | Known]:
    """Give the links that are not known, and what is known, old, and not listed."""
    links, rows = iter(listed), iter(known)
    link, row = next(links, None), next(rows, None)
    while link is not None or row is not None:
        if row is None or (link is not None and link[:2] < row[:2]):
            assert link is not None
            yield link
            link = next(links, None)
        elif link is None or row[:2] < link[:2]:
            if row.old:
                yield row
            row = next(rows, None)
        else:
            link, row = next(links, None), next(rows, None)
