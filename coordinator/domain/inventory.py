"""Find blobs for which table and storage differ: a merge of two streams, both sorted by digest.

Route: audit/audit.py -> `find_differing` gives candidates -> each is read again -> `find_discrepancies` says what is
wrong.
Table and storage are read at different times, so a candidate may be a push under way. A listing that is not in order
gives more candidates, and no wrong result.
Pure; it keeps only one item of each stream in memory.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from coordinator.domain.lifecycle import CONCEALED, BlobState
from coordinator.domain.merge import pair_items
from coordinator.domain.names import Digest

#: Their bytes are not served and are kept, or about to be: the restorer serves them again.
_KEPT_HIDDEN = CONCEALED - {BlobState.PURGED}


class TableBlob(NamedTuple):
    """A blob in the table."""

    digest: Digest
    #: Bytes; -1 while it is not known.
    size: int
    state: BlobState
    referenced: bool


class StoredBlob(NamedTuple):
    """A blob in storage."""

    digest: Digest
    #: Bytes.
    size: int
    #: By the store's clock, in seconds since 1970.
    modified: float


class Discrepancy(StrEnum):
    """How table and storage differ."""

    #: Stored, and the table does not know of it, or has it as purged.
    ORPHAN = "orphan"
    #: Needed, and not stored.
    MISSING = "missing"
    #: Known as missing, and stored.
    FOUND = "found"
    #: Unreferenced and served, by the table, and not stored.
    UNSERVED = "unserved"
    #: Stored with another size than the table has.
    WRONG_SIZE = "wrong-size"


class Pair(NamedTuple):
    """One digest in the table and in the store; None where it is absent."""

    known: TableBlob | None
    stored: StoredBlob | None

    @property
    def digest(self) -> Digest:
        some = self.known or self.stored
        assert some is not None
        return some.digest


def find_discrepancies(known: TableBlob | None, stored: StoredBlob | None) -> list[Discrepancy]:
    """Return what is wrong with one digest."""
    if known is None:
        return [] if stored is None else [Discrepancy.ORPHAN]
    if stored is None:
        # The bytes of a hidden blob are elsewhere.
        if known.referenced:
            return [Discrepancy.MISSING] if known.state not in _KEPT_HIDDEN else []
        return [Discrepancy.UNSERVED] if known.state is BlobState.UNREFERENCED else []
    if known.state is BlobState.PURGED and not known.referenced:
        return [Discrepancy.ORPHAN]
    found = [Discrepancy.FOUND] if known.state in {BlobState.MISSING, BlobState.PURGED} else []
    if known.size not in {-1, stored.size}:
        found.append(Discrepancy.WRONG_SIZE)
    return found


def find_differing(table: Iterable[TableBlob], storage: Iterable[StoredBlob]) -> Iterator[Pair]:
    """Give the digests for which table and storage differ."""
    for row, item in pair_items(table, storage, lambda blob: blob.digest):
        if find_discrepancies(row, item):
            yield Pair(row, item)
