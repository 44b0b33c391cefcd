"""Where the table's blobs and the stored ones part: a merge of two streams that are both sorted by digest.

Route: audit/audit.py -> `differing` gives what looks wrong -> each is looked at again -> `doubts` says what is.
Table and storage are read at different times, so what parts them in the merge may be a push on its way; and a listing
in another order than ours makes more of them, and no wrong ones.
Pure, and nothing is remembered but one item of each stream.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from coordinator.domain.lifecycle import CONCEALED, BlobState
from coordinator.domain.merge import paired
from coordinator.domain.names import Digest

#: Their bytes are not served, and are kept or about to be: who brings them back is the restorer.
_KEPT_HIDDEN = CONCEALED - {BlobState.PURGED}


class TableBlob(NamedTuple):
    """A blob as the table has it."""

    digest: Digest
    #: Bytes; -1 while nobody has said.
    size: int
    state: BlobState
    referenced: bool


class StoredBlob(NamedTuple):
    """A blob as it is in storage."""

    digest: Digest
    #: Bytes.
    size: int
    #: By the store's clock, in seconds since 1970.
    modified: float


class Doubt(StrEnum):
    """Why the two part."""

    #: Stored, and the table does not know of it, or has it as purged.
    ORPHAN = "orphan"
    #: Needed, and not stored.
    MISSING = "missing"
    #: Known as missing, and stored.
    FOUND = "found"
    #: The table says that it is served, though nothing needs it, and it is not stored.
    UNSERVED = "unserved"
    #: Stored with another size than is known.
    WRONG_SIZE = "wrong-size"


class Pair(NamedTuple):
    """One digest as the table and the store have it, each None where it is not there."""

    known: TableBlob | None
    stored: StoredBlob | None

    @property
    def digest(self) -> Digest:
        some = self.known or self.stored
        assert some is not None
        return some.digest


def doubts(known: TableBlob | None, stored: StoredBlob | None) -> list[Doubt]:
    """Return what is wrong with one digest."""
    if known is None:
        return [] if stored is None else [Doubt.ORPHAN]
    if stored is None:
        # A hidden blob is to be like this.
        if known.referenced:
            return [Doubt.MISSING] if known.state not in _KEPT_HIDDEN else []
        return [Doubt.UNSERVED] if known.state is BlobState.UNREFERENCED else []
    if known.state is BlobState.PURGED and not known.referenced:
        return [Doubt.ORPHAN]
    found = [Doubt.FOUND] if known.state in {BlobState.MISSING, BlobState.PURGED} else []
    if known.size not in {-1, stored.size}:
        found.append(Doubt.WRONG_SIZE)
    return found


def differing(table: Iterable[TableBlob], storage: Iterable[StoredBlob]) -> Iterator[Pair]:
    """Give the digests about which there is a doubt."""
    for row, item in paired(table, storage, lambda blob: blob.digest):
        if doubts(row, item):
            yield Pair(row, item)
