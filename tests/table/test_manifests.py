"""What manifests list: stored once, learned late, never narrowed by a report, and replaced by what bytes say."""

import pytest

from coordinator.domain.facts import ManifestPushed
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest
from coordinator.domain.references import ManifestContent, ManifestKind, Reference
from coordinator.pods import directory
from tests.table.harness import Row, Table, at


def references(table: Table, *names: str) -> list[int | None]:
    rows = [table.blob(name) for name in names]
    return [None if row is None else row.references for row in rows]


def lists(table: Table, manifest: str) -> tuple[int | None, list[Digest] | None]:
    """The stored kind and list of a manifest."""
    ((kind, listed),) = table.rows(
        "SELECT kind, (SELECT array_agg(c.digest ORDER BY x.n) FROM unnest(m.refs) WITH ORDINALITY x (id, n)"
        " JOIN blobs c ON c.id = x.id) FROM manifests m JOIN blobs b ON b.id = m.id WHERE b.digest = %s",
        (table.digest(manifest),),
    )
    return kind, listed


def test_stored_once(table: Table) -> None:
    """The list of a manifest is one row, however many repositories hold it, and each holding counts once per digest."""
    table.apply(*[table.push(f"r{n}", "m", ["c", "l", "l2"], n) for n in range(5)])
    table.apply(*[table.push(f"r{n}", "m", ["c", "l", "l2"], n, pod="pod-b") for n in range(5)])
    assert references(table, "m", "c", "l", "l2") == [10, 10, 10, 10]
    assert lists(table, "m") == (ManifestKind.IMAGE, [table.digest(name) for name in ("c", "l", "l2")])
    assert len(table.holdings()) == 10


def test_learned_later(table: Table) -> None:
    """A manifest that nobody could read counts only itself; once its list is known, all its holdings count."""
    table.apply(table.push("a", "m", None, 1), table.push("b", "m", None, 2))
    assert references(table, "m", "c", "l") == [2, None, None]
    assert lists(table, "m") == (None, None)
    table.apply(table.push("c", "m", ["c", "l"], 3))
    assert references(table, "m", "c", "l") == [3, 3, 3]
    table.apply(table.removed("a", "m", 9), table.push("d", "m", None, 9))
    assert references(table, "m", "c", "l") == [3, 3, 3]
    assert table.check().is_healthy


def test_learned_while_a_holding_goes(table: Table) -> None:
    """A list that becomes known in the batch that removes a holding counts for those that are left."""
    table.apply(table.push("a", "m", None, 1), table.push("b", "m", None, 2))
    table.apply(table.removed("a", "m", 5), table.push("b", "m", ["c"], 6), table.push("c", "m", ["c"], 7))
    assert references(table, "m", "c") == [2, 2]
    table.apply(table.removed("b", "m", 8), table.removed("c", "m", 8), table.push("c", "m", ["c", "d"], 9))
    assert references(table, "m", "c", "d") == [1, 1, 1]
    assert table.check().is_healthy


@pytest.mark.parametrize("together", [True, False])
def test_nobody_takes_away(table: Table, together: bool) -> None:
    """A push that lists fewer or other digests adds its own and removes none of other pods."""
    pushes = [
        table.push("a", "m", ["c", "l"], 1),
        table.push("b", "m", ["c"], 2, pod="pod-b"),
        table.push("c", "m", [], 3, pod="pod-b"),
        table.push("d", "m", ["x", "c"], 4, pod="pod-b"),
        table.push("e", "m", None, 5, pod="pod-b"),
    ]
    if together:
        table.apply(*pushes)
    else:
        for push in pushes:
            table.apply(push)
    assert references(table, "m", "c", "l", "x") == [5, 5, 5, 5]
    assert lists(table, "m") == (ManifestKind.IMAGE, [table.digest(name) for name in ("c", "l", "x")])
    assert table.check().is_healthy


def test_only_bytes_end_the_reading(table: Table) -> None:
    """What a manifest lists is known only once its own bytes were read, whatever pods report."""
    table.apply(table.push("a", "m", ["x"]), table.push("a", "n", None), table.push("a", "o", []))
    digests = {table.digest(name) for name in ("m", "n", "o", "never")}
    assert directory.find_verified_manifests(table.connection, digests) == set()
    table.apply(table.push("b", "m", ["c", "l"], pod="pod-b")._replace(read=True))
    table.apply(table.push("a", "o", [])._replace(read=True))
    assert directory.find_verified_manifests(table.connection, digests) == {table.digest("m"), table.digest("o")}
    assert references(table, "x", "c", "l") == [0, 2, 2]


def test_listing_itself(table: Table) -> None:
    """A manifest that is said to list itself counts its own holdings once."""
    table.apply(table.push("a", "m", ["m", "c"]))
    assert references(table, "m", "c") == [1, 1]
    table.apply(table.removed("a", "m", 5))
    assert references(table, "m", "c") == [0, 0]


def test_children(table: Table) -> None:
    """An index counts for its children as blobs, whether they are held themselves or not."""
    table.apply(table.push("a", "i", ["m", "n"], 1), table.push("a", "m", ["c"], 2))
    assert references(table, "i", "m", "n", "c") == [1, 2, 1, 1]
    table.apply(table.removed("a", "m", 5))
    assert references(table, "i", "m", "n", "c") == [1, 1, 1, 0]


def test_pushed_and_removed_at_once(table: Table) -> None:
    """What comes and goes within one batch is known, dated as unreferenced, and kept by nothing."""
    table.apply(
        table.push("a", "m", ["c"], 1), table.link("a", "l", 1), table.removed("a", "m", 2), table.removed("a", "l", 2)
    )
    for name in ("m", "c", "l"):
        assert table.row(name)[:4] == (0, 0, BlobState.UNREFERENCED, True)
    assert lists(table, "m")[1] == [table.digest("c")]


def test_sizes(table: Table) -> None:
    """A blob's size is the first that is reported, also when it is zero."""
    content = ManifestContent(
        ManifestKind.IMAGE,
        (Reference(table.digest("c"), None), Reference(table.digest("z"), None), Reference(table.digest("l"), 9)),
    )
    table.apply(ManifestPushed(table.repository("a"), table.digest("m"), at(1), None, content))
    assert [row and row.size for row in map(table.blob, ("m", "c", "z", "l"))] == [-1, -1, -1, 9]
    table.apply(
        table.link("a", "c", 2),
        table.link("a", "z", 2)._replace(size=0),
        table.link("a", "l", 2)._replace(size=8),
        ManifestPushed(table.repository("a"), table.digest("m"), at(1), 70, None),
    )
    assert [row and row.size for row in map(table.blob, ("m", "c", "z", "l"))] == [70, 7, 0, 9]


@pytest.mark.parametrize("state", [BlobState.HIDDEN, BlobState.PURGED])
def test_a_state_that_is_not_for_the_apply(table: Table, state: BlobState) -> None:
    """A hidden or purged blob keeps its state while its counts and date change."""
    table.apply(table.link("a", "l", 1))
    table.connection.execute("UPDATE blobs SET state = %s WHERE digest = %s", (int(state), table.digest("l")))
    table.apply(table.removed("a", "l", 5))
    assert table.blob("l") == Row(0, 0, state, unreferenced=True, size=7)
    table.apply(table.link("a", "l", 9))
    assert table.blob("l") == Row(0, 1, state, unreferenced=False, size=7)
