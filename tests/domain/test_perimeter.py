"""A listing of the root for the present pods, as sentences, and with names of any kind."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.perimeter import NAME_LIMIT, Listing, block_reasons, evaluate_listing, make_name_safe

NOW = datetime(2030, 1, 10, tzinfo=UTC)


def listing(unowned: list[str], before: list[str], now: list[str], complete: bool = True) -> Listing | None:
    return evaluate_listing(NOW, before, unowned, complete, now)


def test_a_pod_that_was_added_resolves_what_it_owns() -> None:
    """A prefix that was added since removes its repositories from the listing, and no others."""
    found = listing(["team", "teams", "x/y"], ["a"], ["a", "team", "x/y/z"])
    assert found == Listing(NOW, ["teams", "x/y"])


@pytest.mark.parametrize(
    ("now", "known"),
    [(["a", "b/c"], True), (["a"], False), (["a", "b"], True), (["a", "b/c/d"], False), (["a", "b/c", "d"], True)],
)
def test_a_pod_that_was_removed_makes_the_listing_unknown(now: list[str], known: bool) -> None:
    """A listing is unknown once a prefix that it skipped belongs to no pod any more."""
    assert (listing([], ["a", "b/c"], now) is not None) is known


def test_sentences() -> None:
    """The hold names stored repositories of no pod, says how many more there are, and what to do."""
    assert block_reasons(Listing(NOW)) == []
    assert "was not listed" in block_reasons(None)[0]
    for found, message in (
        (Listing(NOW, ["x"]), "no pod owns x, which is stored"),
        (Listing(NOW, ["x", "y/z"]), "no pod owns x, y/z, which are stored"),
        (Listing(NOW, [f"r{n:02}" for n in range(12)]), "r09 and 2 more, which are stored"),
        (Listing(NOW, [f"r{n:02}" for n in range(100)], complete=False), "r09 and more, which are stored"),
        (Listing(NOW, [], complete=False), "no pod owns some repositories and more, which are stored"),
    ):
        (sentence,) = block_reasons(found)
        assert message in sentence
        assert "baleen pods add" in sentence
        assert "--unmanaged" in sentence


@given(name=st.text(min_size=1, max_size=2000))
def test_any_name_can_be_shown(name: str) -> None:
    """A name from a bucket is printable, of bounded length, and itself if it is an ordinary one."""
    shown = make_name_safe(name)
    assert shown.isprintable()
    assert len(shown) <= NAME_LIMIT + 1
    assert make_name_safe("team/app") == "team/app"


@given(data=st.data())
def test_what_a_pod_owns_now_is_never_named(data: st.DataObject) -> None:
    """Exactly the listed repositories that no present prefix owns are named."""
    part = st.sampled_from(["a", "b", "ab"])
    names = st.lists(st.lists(part, min_size=1, max_size=3).map("/".join), max_size=5, unique=True)
    unowned, now = data.draw(names), data.draw(names)
    found = listing(unowned, now[:1], now)
    assert found is not None

    def owners(name: str) -> Iterator[str]:
        parts = name.split("/")
        return ("/".join(parts[:end]) for end in range(1, len(parts) + 1))

    assert list(found.unowned) == [name for name in unowned if not set(owners(name)) & set(now)]
