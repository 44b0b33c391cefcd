"""Differences between the table's blobs and the stored ones."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.inventory import Discrepancy, Pair, StoredBlob, TableBlob, find_differing, find_discrepancies
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest

digests = st.integers(0, 15).map(lambda number: Digest(bytes([number]) * 32))
rows = st.builds(TableBlob, digests, st.sampled_from([-1, 7, 8]), st.sampled_from(BlobState), st.booleans())
objects = st.builds(StoredBlob, digests, st.sampled_from([7, 8]), st.just(0.0))


@given(st.lists(rows, unique_by=lambda row: row.digest), st.lists(objects, unique_by=lambda item: item.digest))
def test_the_merge_gives_every_difference_once(table: list[TableBlob], storage: list[StoredBlob]) -> None:
    """Each digest that differs comes once, in order, with what both sides have; no other comes."""
    known, stored = {row.digest: row for row in table}, {item.digest: item for item in storage}
    pairs = [Pair(known.get(digest), stored.get(digest)) for digest in sorted(known.keys() | stored.keys())]
    assert list(find_differing(sorted(table), sorted(storage))) == [pair for pair in pairs if find_discrepancies(*pair)]


@given(rows, st.none() | objects)
def test_what_a_difference_is(row: TableBlob, item: StoredBlob | None) -> None:
    """Each difference has the right kind, for every state of a blob."""
    found = find_discrepancies(row, item)
    needed = row.referenced and row.state not in {BlobState.HIDING, BlobState.HIDDEN, BlobState.PURGING}
    assert (Discrepancy.MISSING in found) == (item is None and needed)
    left = item is not None and row.state is BlobState.PURGED and not row.referenced
    assert (Discrepancy.ORPHAN in found) == left
    assert (Discrepancy.FOUND in found) == (
        item is not None and not left and row.state in {BlobState.MISSING, BlobState.PURGED}
    )
    assert (Discrepancy.WRONG_SIZE in found) == (item is not None and not left and row.size not in {-1, item.size})


def test_what_only_the_store_has() -> None:
    """A stored blob that the table does not know is an orphan."""
    assert find_discrepancies(None, StoredBlob(Digest(bytes(32)), 7, 0.0)) == [Discrepancy.ORPHAN]
    assert find_discrepancies(None, None) == []
