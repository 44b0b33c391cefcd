"""Doubtful removals: remembered, and resolved by what is in storage."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from coordinator.db import locks
from coordinator.domain.facts import Removed, RepositoryRemoved
from coordinator.domain.lifecycle import BlobState
from coordinator.table import doubtful_removals, expiry
from coordinator.table.doubtful_removals import Confirmation
from tests.support.tables import set_kind
from tests.table.harness import Table, at

MARGIN = timedelta(seconds=10)


@pytest.fixture(autouse=True, params=["link", "gitlab"])
def checked_links(table: Table, request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the pods' links be checked, wherever they are."""
    statement = "UPDATE pods SET kind = %s WHERE name IN ('pod-a', 'pod-b')"
    table.connection.execute(statement, (request.param,))
    yield
    table.connection.execute(statement, ("relay",))


@pytest.fixture
def by_report(table: Table) -> None:
    """Let the pods' links be elsewhere, so that events decide."""
    set_kind(table.connection, "relay", "pod-a", "pod-b")


def resolve(table: Table, *, held: bool, linked: bool, limit: int = 100) -> int:
    """Resolve this test's doubtful removals as if storage had these links."""
    removed = 0
    with table.connection.transaction():
        locks.lock_facts(table.connection, alone=True)
        for pod in doubtful_removals.read_doubtful_pods(table.connection):
            after = doubtful_removals.FIRST_KEY
            while found := doubtful_removals.read_doubtful_removals(table.connection, pod.id, after, limit):
                own = [doubtful for doubtful in found if f"/{table.space}/" in doubtful.repository]
                results = [Confirmation(each, each.held and held, each.linked and linked) for each in own]
                removed += doubtful_removals.apply_confirmations(table.connection, results)
                after = found[-1].key
    return removed


def test_within_the_margin(table: Table) -> None:
    """A removal about the time of the push keeps what it would remove, and is remembered as doubtful."""
    applied = table.apply(
        table.push("a", "m", ["c"], 0),
        table.removed("a", "m", 10),
        table.link("a", "l", 20),
        table.removed("a", "l", 15),
        margin=MARGIN,
    )
    assert (applied.holdings_removed, applied.links_removed, applied.removals_doubtful) == (0, 0, 2)
    assert table.holds("a", "m")
    assert table.linked("a", "l")
    assert table.removal("a", "m") == (at(10), True)
    assert table.removal("a", "l") == (at(15), True)


def test_resolved_as_gone(table: Table) -> None:
    """What storage does not have is removed, also from the counts, and the removal is doubtful no more."""
    table.apply(
        table.push("a", "m", ["c", "l"], 0),
        table.push("b", "m", ["c", "l"], 0),
        table.removed("a", "m", 5),
        table.removed("b", "m", 5),
        table.link("a", "l", 0),
        table.removed("a", "l", 5),
        margin=MARGIN,
    )
    assert resolve(table, held=False, linked=False, limit=1) == 3
    assert table.holdings() == table.links() == set()
    for name in ("m", "c", "l"):
        assert table.row(name)[:4] == (0, 0, BlobState.UNREFERENCED, True)
    assert table.removal("a", "m") == (at(5), False)
    assert resolve(table, held=False, linked=False) == 0
    # A late push makes the removal doubtful again.
    table.apply(table.push("a", "m", ["c", "l"], 0), margin=MARGIN)
    assert table.removal("a", "m") == (at(5), True)
    assert table.check().is_healthy


def test_resolved_as_there(table: Table) -> None:
    """What storage has stays, and its removal is forgotten."""
    table.apply(table.push("a", "m", ["c"], 0), table.removed("a", "m", 5), margin=MARGIN)
    assert resolve(table, held=True, linked=True) == 0
    assert table.holds("a", "m")
    assert table.removals() == {}
    assert table.check().is_healthy


def test_resolved_for_one_of_two(table: Table) -> None:
    """Of a digest that was held as a manifest and linked as a blob, storage decides which one was removed."""
    table.apply(table.push("a", "m", ["c"], 0), table.link("a", "m", 0), table.removed("a", "m", 50), margin=MARGIN)
    assert table.removal("a", "m") == (at(50), True)
    assert resolve(table, held=True, linked=False) == 1
    assert table.holds("a", "m")
    assert not table.linked("a", "m")
    assert table.row("m")[:4] == (1, 0, BlobState.LIVE, False)
    assert table.check().is_healthy


def test_pods_without_links_in_storage(table: Table) -> None:
    """A doubtful removal of a pod whose links are elsewhere is not resolved."""
    table.apply(table.link("a", "l", 0, pod="pod-l"), table.removed("a", "l", 5, pod="pod-l"), margin=MARGIN)
    assert resolve(table, held=False, linked=False) == 0
    assert table.linked("a", "l", pod="pod-l")
    assert [doubtful for _, doubtful in table.removals().values()] == [True]


@pytest.mark.usefixtures("by_report")
def test_a_late_push(table: Table) -> None:
    """A late push that is older than an applied removal is held, and the removal becomes doubtful."""
    table.apply(table.push("a", "m", ["c"], 0), table.removed("a", "m", 50), margin=MARGIN)
    assert not table.holds("a", "m")
    table.apply(table.push("a", "m", ["c"], 20), margin=MARGIN)
    assert table.holds("a", "m")
    assert table.removal("a", "m") == (at(50), True)
    table.apply(table.push("a", "m", ["c"], 61), margin=MARGIN)
    assert table.removals() == {}


def test_links_in_storage_are_checked(table: Table) -> None:
    """A removal, however much newer, is applied only once the pod's links confirm it (scenario 20)."""
    table.apply(table.push("a", "m", ["c"], 0), table.link("a", "l", 0), margin=MARGIN)
    applied = table.apply(table.removed("a", "m", 5000), table.removed("a", "l", 5000), margin=MARGIN)
    assert (applied.holdings_removed, applied.links_removed, applied.removals_doubtful) == (0, 0, 2)
    assert resolve(table, held=True, linked=False) == 1
    assert table.holds("a", "m")
    assert not table.linked("a", "l")
    assert [doubtful for _, doubtful in table.removals().values()] == [False]


def test_an_emptied_repository_is_checked(table: Table) -> None:
    """All removals of an emptied repository are doubtful, except of what was surely added later."""
    table.apply(table.push("a", "m", ["c"], 0), table.link("a", "l", 0), table.push("a", "new", ["c"], 99))
    applied = table.apply(table.emptied("a", 50), margin=MARGIN)
    assert (applied.holdings_removed, applied.removals_doubtful) == (0, 2)
    assert resolve(table, held=False, linked=False) == 2
    assert [table.holds("a", name) for name in ("m", "new")] == [False, True]
    assert table.check().is_healthy


def gaps_of_renames(table: Table) -> int:
    found = table.rows("SELECT count(*) FROM gaps WHERE reason = 'renamed' AND resolved_at IS NULL")
    table.connection.execute("DELETE FROM gaps")
    return int(found[0][0])


def test_a_rename_in_another_order_is_a_gap(table: Table) -> None:
    """What may have the wrong name since a rename, because events came in another order, is a gap."""
    gaps_of_renames(table)
    renamed = table.renamed("old", "new", 50)
    table.apply(table.push("old", "m", ["c"], 0), renamed, table.push("old", "n", ["c"], 99), margin=MARGIN)
    assert gaps_of_renames(table) == 0
    table.apply(table.push("old/x", "late", ["c"], 20), margin=MARGIN)
    assert gaps_of_renames(table) == 1
    table.apply(table.push("other", "m", ["c"], 20), table.push("old", "later", ["c"], 98), margin=MARGIN)
    assert gaps_of_renames(table) == 0
    # Pushed again after the rename, which only then is seen: it may have been there before, too.
    table.apply(table.push("a", "m", ["c"], 60), margin=MARGIN)
    table.apply(table.renamed("a", "b", 50, below=False), margin=MARGIN)
    assert gaps_of_renames(table) == 1


#: Renames by what they have in common; those in `CROSSED` come in another order than they happened.
CROSSED = {
    "chain": [("b", "c", 50), ("a", "b", 20)],
    "from-below": [("b/x", "c", 50), ("a", "b", 20)],
    "to-below": [("b", "c", 50), ("a", "b/x", 20)],
    "from-within": [("a", "c", 50), ("a/x", "a/y", 20)],
    "from-around": [("a/x", "a/y", 50), ("a", "c", 20)],
    "onto-its-name": [("x", "a", 50), ("a", "b", 20)],
    "again": [("a", "b", 20), ("x", "a", 50), ("a", "b", 20)],
    "about-then": [("b", "c", 50), ("a", "b", 55)],
}
IN_ORDER = {
    "chain": [("a", "b", 20), ("b", "c", 50)],
    "onto-its-name": [("a", "b", 20), ("x", "a", 50)],
    "and-back": [("a", "b", 20), ("b", "a", 50)],
    "again": [("a", "b", 20), ("b", "c", 50), ("a", "b", 20), ("b", "c", 50)],
    "siblings": [("a/x", "b/x", 20), ("a/y", "b/y", 20), ("ab", "c", 20), ("a_", "d", 20)],
    "into-one": [("x", "b", 50), ("y", "b", 20)],
}


@pytest.mark.parametrize("renames", CROSSED.values(), ids=CROSSED)
def test_renames_in_another_order_are_a_gap(table: Table, renames: list[tuple[str, str, int]]) -> None:
    """A rename that comes after a later one which crosses it is a gap: things may have a wrong name."""
    gaps_of_renames(table)
    *before, last = (table.renamed(*each) for each in renames)
    table.apply(*before, margin=MARGIN)
    assert gaps_of_renames(table) == 0
    table.apply(last, margin=MARGIN)
    assert gaps_of_renames(table) == 1


@pytest.mark.parametrize("renames", IN_ORDER.values(), ids=IN_ORDER)
def test_renames_in_order_are_no_gap(table: Table, renames: list[tuple[str, str, int]]) -> None:
    """Renames that came as they happened, or do not cross, are no gap."""
    gaps_of_renames(table)
    for each in renames:
        table.apply(table.renamed(*each), margin=MARGIN)
    assert gaps_of_renames(table) == 0


@pytest.mark.usefixtures("by_report")
def test_a_delete_under_a_name_that_a_later_rename_gave_away(table: Table) -> None:
    """After two renames in another order a delete under the wrong name removes the only holding: there is a gap."""
    gaps_of_renames(table)
    table.apply(table.push("a", "m", ["c"], 0), margin=MARGIN)
    table.apply(table.renamed("b", "z", 50), margin=MARGIN)
    table.apply(table.renamed("a", "b", 20), margin=MARGIN)
    # The registry has it in z. A client takes the free name, pushes the same, and deletes it there.
    table.apply(table.push("b", "m", ["c"], 100), table.removed("b", "m", 150), margin=MARGIN)
    assert table.holdings() == set()
    assert gaps_of_renames(table) == 1


@pytest.mark.usefixtures("by_report")
@pytest.mark.parametrize("entirely", [False, True], ids=["one", "all"])
def test_a_removal_from_before_a_rename_onto_its_name(table: Table, *, entirely: bool) -> None:
    """A removal that comes after a later rename to its name does not take what was not there at the time."""

    def removed(repository: str, second: int) -> Removed | RepositoryRemoved:
        return table.emptied(repository, second) if entirely else table.removed(repository, "m", second)

    onto = table.renamed("x", "a", 50)
    table.apply(table.push("x", "m", ["c"], 0), table.push("x/y", "m", ["c"], 0), onto, margin=MARGIN)
    for second in (30, 60):
        applied = table.apply(removed("a/y", second), margin=MARGIN)
        assert (applied.holdings_removed, applied.removals_doubtful) == (0, 1)
    assert table.holds("a/y", "m")
    assert table.removal("a/y", "m") == (at(60), True)
    table.apply(removed("a", 61), margin=MARGIN)
    assert not table.holds("a", "m")
    assert table.check().is_healthy


def test_a_removal_before_its_push(table: Table) -> None:
    """A removal of something unknown is remembered, and makes an older push that comes later doubtful."""
    table.apply(table.removed("a", "m", 50), table.removed("a", "other", 50), margin=MARGIN)
    assert table.blob("m") is None
    table.apply(table.push("a", "m", ["c"], 0), margin=MARGIN)
    assert table.holds("a", "m")
    assert table.removal("a", "m") == (at(50), True)
    assert table.removal("a", "other") == (at(50), False)


@pytest.mark.usefixtures("by_report")
def test_an_emptied_repository(table: Table) -> None:
    """Emptying a repository removes what is surely older, and is doubtful for what may be newer."""
    table.apply(
        table.push("a", "old", ["c"], 0),
        table.link("a", "old", 0),
        table.push("a", "near", ["c"], 45),
        table.push("a", "new", ["c"], 99),
        table.push("b", "old", ["c"], 0),
        margin=MARGIN,
    )
    applied = table.apply(table.emptied("a", 50), margin=MARGIN)
    assert (applied.holdings_removed, applied.links_removed, applied.removals_doubtful) == (1, 1, 1)
    assert [table.holds("a", name) for name in ("old", "near", "new")] == [False, True, True]
    assert table.holds("b", "old")
    assert table.removal("a", "near") == (at(50), True)
    table.apply(table.emptied("never", 50), margin=MARGIN)
    assert table.check().is_healthy


def test_what_a_rename_leaves(table: Table) -> None:
    """A rename takes what was there at its time, also with its removals; what came later keeps the old name."""
    table.apply(
        table.push("old", "m", ["c"], 0),
        table.push("old", "late", ["c"], 99),
        table.removed("old", "gone", 5),
        table.removed("old", "gone-late", 98),
    )
    renamed = table.renamed("old", "new", 50, below=False)
    for _ in range(2):
        table.apply(renamed)
        assert table.holds("new", "m")
        assert table.holds("old", "late")
        assert table.removal("new", "gone") == (at(5), False)
        assert table.removal("old", "gone-late") == (at(98), False)
        assert len(table.holdings()) == len(table.removals()) == 2
    assert table.check().is_healthy


def test_what_both_of_two_merged_have(table: Table) -> None:
    """What both repositories had counts once after the merge, with the later time of the two."""
    for repository, second in (("old", 9), ("new", 1)):
        table.apply(table.push(repository, "m", ["c", "l"], second), table.link(repository, "l", second))
    assert table.row("l")[:2] == (2, 2)
    table.apply(table.renamed("old", "new", 50, below=False))
    for name, links in (("m", 0), ("c", 0), ("l", 1)):
        assert table.row(name)[:4] == (1, links, BlobState.LIVE, False)
    table.apply(table.removed("new", "m", 5), table.removed("new", "l", 5))
    assert table.holds("new", "m")
    assert table.linked("new", "l")
    assert table.check().is_healthy


@pytest.mark.parametrize("removed_in", ["old", "new"])
def test_a_rename_that_meets_a_removal(table: Table, removed_in: str) -> None:
    """Where one of two merged repositories saw removed what the other holds, the removal becomes doubtful."""
    held_in = "new" if removed_in == "old" else "old"
    table.apply(table.push(held_in, "m", ["c"], 5), table.removed(removed_in, "m", 20), table.link("new", "x", 1))
    assert table.removal(removed_in, "m") == (at(20), False)
    table.apply(table.renamed("old", "new", 50, below=False))
    assert table.holds("new", "m")
    assert table.removal("new", "m") == (at(20), True)
    assert table.check().is_healthy


def test_names_that_resemble_patterns(table: Table) -> None:
    """A namespace's rename moves what is below it, not what a pattern of its name would match."""
    table.apply(table.link("a_b/x", "l", 0), table.link("acb/x", "l", 0), table.link("a_bc", "l", 0))
    table.apply(table.renamed("a_b", "z", 50))
    assert {name for name, _ in table.links()} == {table.repository(name) for name in ("z/x", "acb/x", "a_bc")}


def test_a_rename_into_itself(table: Table) -> None:
    """A namespace that moves below itself moves once."""
    table.apply(table.link("a", "l", 0), table.link("a/b", "l2", 0), table.link("a/b/b", "l3", 0))
    table.apply(table.renamed("a", "a/b", 50))
    assert {name for name, _ in table.links()} == {table.repository(name) for name in ("a/b", "a/b/b", "a/b/b/b")}
    assert table.check().is_healthy


@pytest.mark.parametrize(
    ("source", "destination", "moves"),
    [
        ("a", "a/b", {"a/x": "a/b/x", "a/b/x": "a/b/b/x", "a/b/a/x": "a/b/b/a/x"}),
        ("a/b", "a", {"a/b/x": "a/x", "a/b/b/x": "a/b/x", "a/b/b/b/x": "a/b/b/x"}),
    ],
    ids=["down", "up"],
)
def test_a_rename_onto_names_that_it_moves(table: Table, source: str, destination: str, moves: dict[str, str]) -> None:
    """A namespace that moves along its own path moves each repository once, also if the event comes twice."""
    table.apply(*(table.link(before, f"of {before}", 0) for before in moves))
    table.apply(table.renamed(source, destination, 50))
    moved = {(table.repository(after), table.text(f"of {before}")) for before, after in moves.items()}
    assert table.links() == moved
    table.apply(table.renamed(source, destination, 50))
    assert table.links() == moved
    assert table.check().is_healthy


@pytest.mark.usefixtures("by_report")
def test_a_delete_after_a_rename_onto_names_that_it_moves(table: Table) -> None:
    """Of two repositories that hold one manifest and move one step down, a delete in one leaves it to the other."""
    table.apply(table.push("a/x", "m", ["c"], 0), table.push("a/b/x", "m", ["c"], 0), margin=MARGIN)
    renamed = table.renamed("a", "a/b", 50)
    table.apply(renamed, Removed(table.repository("a/b/b/x"), table.digest("m"), at(100)), margin=MARGIN)
    assert table.holdings() == {(table.repository("a/b/x"), table.text("m"))}
    assert table.blob("c").references == 1


def test_overtaken(table: Table) -> None:
    """A removal that the push overtook changes nothing and is counted."""
    table.apply(table.push("a", "m", ["c"], 50), margin=MARGIN)
    applied = table.apply(Removed(table.repository("a"), table.digest("m"), at(5)), margin=MARGIN)
    assert applied.removals_overtaken == 1
    assert table.removals() == {}


@pytest.mark.usefixtures("by_report")
def test_two_removals_that_a_rename_makes_one(table: Table) -> None:
    """The joined removal is kept as long as the later one of the two."""
    table.apply(table.removed("a", "m", 1), table.removed("b", "m", 2))
    table.connection.execute(
        "UPDATE removals r SET seen_at = now() - %s * 2 FROM repositories n"
        " WHERE n.id = r.repository_id AND n.name = %s",
        (expiry.REMOVALS_RETENTION, table.repository("b")),
    )
    table.apply(table.renamed("a", "b", 10, below=False))
    expiry.delete_old_removals(table.connection, timedelta(0))
    assert table.removal("b", "m") == (at(2), False)
