"""How facts change holdings and links: additions at once, removals only if they are surely newer."""

from collections.abc import Container, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.facts import BlobLinked, ManifestPushed, Removed
from coordinator.domain.fold import Before, Fold, Removal, RemovalDecision, decide_removal
from coordinator.domain.names import Digest, RepositoryName

REPOSITORY = RepositoryName("team/app")
DIGEST = Digest(bytes(32))
KEY = (REPOSITORY, DIGEST)
MARGIN = timedelta(seconds=10)
OneFact = ManifestPushed | BlobLinked | Removed


def at(second: float) -> datetime:
    return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=second)


def push(second: float) -> ManifestPushed:
    return ManifestPushed(REPOSITORY, DIGEST, at(second), None, None)


def link(second: float) -> BlobLinked:
    return BlobLinked(REPOSITORY, DIGEST, at(second), None)


def gone(second: float) -> Removed:
    return Removed(REPOSITORY, DIGEST, at(second))


def emptied(second: float) -> Removed:
    return Removed(REPOSITORY, DIGEST, at(second), entirely=True)


def fold(
    facts: Sequence[OneFact],
    margin: timedelta = MARGIN,
    before: Before | None = None,
    by_report: Container[RepositoryName] = (REPOSITORY,),
) -> Fold:
    result = Fold(Before() if before is None else before, margin, by_report)
    result.apply(facts)
    return result


#: What happens, in the order of arrival; when it is held from; when it is linked from; the removal, is it doubtful.
CASES: list[tuple[str, list[OneFact], float | None, float | None, tuple[float, bool] | None]] = [
    ("nothing", [], None, None, None),
    ("a push holds", [push(0)], 0, None, None),
    ("an upload links", [link(0)], None, 0, None),
    ("a repeated push changes nothing", [push(0), push(0)], 0, None, None),
    ("a late push changes nothing", [push(50), push(0)], 50, None, None),
    ("a later push is remembered", [push(0), push(50)], 50, None, None),
    ("both ways at once", [push(0), link(1)], 0, 1, None),
    ("a removal surely newer", [push(0), gone(11)], None, None, (11, False)),
    ("a removal just as far as the margin", [push(0), gone(10)], 0, None, (10, True)),
    ("a removal at the same time", [push(0), gone(0)], 0, None, (0, True)),
    ("a removal before it, within the margin", [push(10), gone(0)], 10, None, (0, True)),
    ("a removal overtaken by the push", [push(11), gone(0)], 11, None, None),
    ("a link surely gone", [link(0), gone(11)], None, None, (11, False)),
    ("a link perhaps gone", [link(0), gone(5)], None, 0, (5, True)),
    ("a removal of nothing is remembered", [gone(5)], None, None, (5, False)),
    ("the latest removal is remembered", [gone(5), gone(3)], None, None, (5, False)),
    ("a late push after its removal", [gone(50), push(0)], 0, None, (50, True)),
    ("a late push after an applied removal", [push(0), gone(50), push(0)], 0, None, (50, True)),
    ("a push about the time of a removal", [gone(50), push(55)], 55, None, (50, True)),
    ("a push surely after a removal", [gone(50), push(61)], 61, None, None),
    ("doubtful until a later push", [push(0), gone(5), push(16)], 16, None, None),
    ("doubtful after a push near it", [push(0), gone(5), push(15)], 15, None, (5, True)),
    ("doubtful after a repeated push", [push(0), gone(5), push(0)], 0, None, (5, True)),
    ("doubtful until a surer removal", [push(0), gone(5), gone(11)], None, None, (11, False)),
    ("doubtful after an older removal", [push(3), gone(5), gone(4)], 3, None, (5, True)),
    ("it is not known which of two was removed", [push(0), link(0), gone(50)], 0, 0, (50, True)),
    ("older than one of two: perhaps the other", [link(0), push(50), gone(20)], 50, 0, (20, True)),
    ("older than both", [link(50), push(60), gone(20)], 60, 50, None),
    ("a later push says nothing of the link", [link(0), push(0), gone(50), push(99)], 99, 0, (50, True)),
    ("later by both ways", [link(0), push(0), gone(50), push(99), link(99)], 99, 99, None),
    ("the other way, after an applied removal", [link(0), gone(20), push(50)], 50, None, None),
    ("an emptied repository has neither", [push(0), link(0), emptied(50)], None, None, (50, False)),
    ("emptied, and the link may be newer", [push(0), link(45), emptied(50)], None, 45, (50, True)),
    ("emptied, and the manifest may be newer", [push(45), link(0), emptied(50)], 45, None, (50, True)),
    ("emptied, and the link is newer", [push(0), link(99), emptied(50)], None, 99, (50, True)),
    ("emptied of one thing", [push(0), emptied(50)], None, None, (50, False)),
]


@pytest.mark.parametrize(
    ("facts", "held", "linked", "removal"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_table(
    facts: list[OneFact], held: float | None, linked: float | None, removal: tuple[float, bool] | None
) -> None:
    """Each sequence of facts about one digest has the result of the rules, also when it comes in two parts."""
    expected = (
        {} if held is None else {KEY: at(held)},
        {} if linked is None else {KEY: at(linked)},
        {} if removal is None else {KEY: Removal(at(removal[0]), removal[1])},
    )
    for cut in range(len(facts) + 1):
        first = fold(facts[:cut])
        second = fold(facts[cut:], before=Before(first.holdings, first.links, first.removals))
        assert (second.holdings, second.links, second.removals) == expected


def test_with_no_margin_a_tie_is_doubtful() -> None:
    """With a margin of zero a removal at the very time of the push proves nothing."""
    assert fold([push(0), gone(0)], timedelta()).removals == {KEY: Removal(at(0), doubtful=True)}
    assert fold([push(0), gone(1e-6)], timedelta()).holdings == {}


def test_overtaken_removals_are_counted() -> None:
    """Removals that are older than what they would remove are counted."""
    assert fold([push(50), gone(0), gone(1)]).overtaken == 2


#: Times at which everything meets everything: around each other, within and beyond the margin.
seconds = st.integers(0, 60)
digests = st.integers(0, 1).map(lambda n: Digest(bytes([n]) * 32))
margins = st.integers(0, 20).map(lambda n: timedelta(seconds=n))


def histories(*, both_ways: bool) -> st.SearchStrategy[list[OneFact]]:
    """Facts in any order of time. Without `both_ways` a digest is a manifest or a blob, never both."""

    def make(kind: int, digest: Digest, second: int) -> OneFact:
        if kind == 2:
            return Removed(REPOSITORY, digest, at(second))
        if kind == 3:
            return Removed(REPOSITORY, digest, at(second), entirely=True)
        manifest = kind == 0 if both_ways else digest[0] == 0
        if manifest:
            return ManifestPushed(REPOSITORY, digest, at(second), None, None)
        return BlobLinked(REPOSITORY, digest, at(second), None)

    return st.lists(st.builds(make, st.integers(0, 3), digests, seconds), max_size=12)


@given(st.datetimes(timezones=st.timezones()), st.datetimes(timezones=st.timezones()), margins)
def test_judge_is_total(added: datetime, removed: datetime, margin: timedelta) -> None:
    """Any two times and any margin have a result, and swapping the times swaps it."""
    turned = {
        RemovalDecision.APPLY: RemovalDecision.OVERTAKEN,
        RemovalDecision.OVERTAKEN: RemovalDecision.APPLY,
        RemovalDecision.DOUBTFUL: RemovalDecision.DOUBTFUL,
    }
    assert decide_removal(removed, added, margin) is turned[decide_removal(added, removed, margin)]


@given(histories(both_ways=True), margins)
def test_nothing_is_removed_without_storage(facts: list[OneFact], margin: timedelta) -> None:
    """A removal removes only what was added longer before it than the margin."""
    folded = Fold(Before(), margin, (REPOSITORY,))
    for fact in facts:
        holdings, links = dict(folded.holdings), dict(folded.links)
        folded.apply([fact])
        for before, after in ((holdings, folded.holdings), (links, folded.links)):
            for key in before.keys() - after.keys():
                assert isinstance(fact, Removed)
                assert fact.at - before[key] > margin


@given(histories(both_ways=True), margins)
def test_an_addition_is_never_lost(facts: list[OneFact], margin: timedelta) -> None:
    """An addition without a surely newer removal is there in the end."""
    folded = fold(facts, margin)
    for fact in facts:
        if isinstance(fact, Removed):
            continue
        present = folded.holdings if isinstance(fact, ManifestPushed) else folded.links
        removers = [other for other in facts if isinstance(other, Removed) and other.digest == fact.digest]
        if all(other.at - fact.at <= margin for other in removers):
            assert present[fact.repository, fact.digest] >= fact.at


@given(histories(both_ways=True), margins)
def test_a_doubtful_removal_is_never_silent(facts: list[OneFact], margin: timedelta) -> None:
    """What is held or linked although a removal may be newer is recorded as a doubtful removal."""
    folded = fold(facts, margin)
    for present in (folded.holdings, folded.links):
        for key, added in present.items():
            removal = folded.removals.get(key)
            if removal is not None and added - removal.at <= margin:
                assert removal.doubtful
    for removal in folded.removals.values():
        assert not removal.doubtful or folded.holdings or folded.links


@given(histories(both_ways=True), margins)
def test_each_fact_twice(facts: list[OneFact], margin: timedelta) -> None:
    """A fact that comes twice in a row is one fact."""
    once, twice = fold(facts, margin), fold([fact for fact in facts for _ in range(2)], margin)
    assert (twice.holdings, twice.links, twice.removals) == (once.holdings, once.links, once.removals)


@given(histories(both_ways=False), margins)
def test_replay_loses_nothing(facts: list[OneFact], margin: timedelta) -> None:
    """A replay of any history keeps what was there."""
    once = fold(facts, margin)
    again = fold(facts, margin, Before(once.holdings, once.links, once.removals))
    assert again.holdings.keys() >= once.holdings.keys()
    assert again.links.keys() >= once.links.keys()


@given(histories(both_ways=False))
def test_replay_in_order_changes_nothing(facts: list[OneFact]) -> None:
    """Where each fact is surely newer than the one before it, a replay ends with the same holdings and links."""
    ordered = [fact._replace(at=at(20 * n)) for n, fact in enumerate(facts)]
    once = fold(ordered)
    again = fold(ordered, before=Before(once.holdings, once.links, once.removals))
    assert (again.holdings, again.links) == (once.holdings, once.links)


@given(histories(both_ways=True), histories(both_ways=True), margins)
def test_changes_lead_from_before_to_after(earlier: list[OneFact], later: list[OneFact], margin: timedelta) -> None:
    """The difference, done to what was there, gives what is there, and names nothing that stayed as it was."""
    first = fold(earlier, margin)
    before = Before(first.holdings, first.links, first.removals)
    second = fold(later, margin, before)
    changes = second.changes()
    for old, new, difference in (
        (before.holdings, second.holdings, changes.holdings),
        (before.links, second.links, changes.links),
        (before.removals, second.removals, changes.removals),
    ):
        assert difference.added.keys().isdisjoint(old)
        assert all(old[key] != value for key, value in difference.changed.items())
        kept = {key: value for key, value in old.items() if key not in difference.removed}
        assert len(kept) == len(old) - len(difference.removed)
        assert kept | difference.added | difference.changed == new
