"""The merge of listed links with known ones."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.merge import Link, TableLink, find_differences
from coordinator.domain.names import Digest

BASE = datetime(2026, 11, 1, tzinfo=UTC)

places = st.tuples(st.integers(1, 3), st.integers(0, 5).map(lambda n: Digest(bytes([n]) * 32)))
times = st.integers(0, 3).map(lambda n: BASE + timedelta(seconds=n))
links = st.dictionaries(places, times, max_size=12)
rows = st.dictionaries(places, st.booleans(), max_size=12)


def known(table: dict[tuple[int, Digest], bool]) -> list[TableLink]:
    return [TableLink(*place, old) for place, old in sorted(table.items())]


@given(links, rows)
def test_sorted_streams(listed: dict[tuple[int, Digest], datetime], table: dict[tuple[int, Digest], bool]) -> None:
    """Unknown links, and known old ones that are not listed, are given once and in order."""
    found = list(find_differences([Link(*place, time) for place, time in sorted(listed.items())], known(table)))
    assert [each for each in found if isinstance(each, Link)] == [
        Link(*place, time) for place, time in sorted(listed.items()) if place not in table
    ]
    assert [each for each in found if isinstance(each, TableLink)] == [
        TableLink(*place, old=True) for place, old in sorted(table.items()) if old and place not in listed
    ]


@given(st.data(), links, rows)
def test_disorder_hides_nothing(
    data: st.DataObject, listed: dict[tuple[int, Digest], datetime], table: dict[tuple[int, Digest], bool]
) -> None:
    """In any order of a listing all unknown links are given, and all known old ones that were not listed."""
    order = data.draw(st.permutations(sorted(listed.items())))
    found = list(find_differences([Link(*place, time) for place, time in order], known(table)))
    assert {each[:2] for each in found if isinstance(each, Link)} >= listed.keys() - table.keys()
    unlisted = {each[:2] for each in found if isinstance(each, TableLink)}
    assert unlisted >= {place for place, old in table.items() if old} - listed.keys()
    assert unlisted <= {place for place, old in table.items() if old}
