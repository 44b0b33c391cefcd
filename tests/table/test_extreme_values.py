"""Extreme values: nothing that was accepted may stop the table."""

from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest

from coordinator.domain.facts import BlobLinked, ManifestPushed, Removed, RepositoryRemoved, RepositoryRenamed
from tests.table.harness import Table, at

MARGIN = timedelta(minutes=5)
EAST, WEST = timezone(timedelta(hours=23, minutes=59)), timezone(-timedelta(hours=23, minutes=59))

TIMES = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=EAST),
    datetime(1, 1, 1, tzinfo=WEST),
    datetime(1969, 12, 31, tzinfo=UTC),
    datetime(2026, 11, 1, 3, 30, tzinfo=EAST),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=EAST),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=WEST),
]


@pytest.mark.parametrize("when", TIMES, ids=str)
def test_times(table: Table, when: datetime) -> None:
    """Events with any time are applied; what was pushed is held, and the table can still be read."""
    repository, other = table.repository("a"), table.repository("b")
    facts = [
        ManifestPushed(repository, table.digest("m"), when, 5, table.content(["c"])),
        BlobLinked(repository, table.digest("l"), when, 5),
        Removed(repository, table.digest("never"), when),
        ManifestPushed(other, table.digest("m"), when, 5, table.content(["c"])),
    ]
    for _ in range(2):
        table.apply(*facts, margin=MARGIN)
        assert table.holds("a", "m")
        assert table.linked("a", "l")
    table.apply(RepositoryRenamed(repository, table.repository("c"), below=True, at=when), margin=MARGIN)
    assert table.holds("c", "m")
    table.apply(RepositoryRenamed(other, table.repository("c"), below=True, at=when), margin=MARGIN)
    table.apply(Removed(table.repository("c"), table.digest("m"), when), margin=MARGIN)
    assert table.holds("c", "m")
    table.apply(RepositoryRemoved(table.repository("c"), when), margin=MARGIN)
    assert table.holds("c", "m")
    assert table.linked("c", "l")
    assert table.check().is_healthy


def test_offsets_of_zones(table: Table) -> None:
    """The same moment in two zones is one moment."""
    moment = at(0)
    table.apply(table.push("a", "m", ["c"])._replace(at=moment.astimezone(EAST)))
    table.apply(table.push("a", "m", ["c"])._replace(at=moment.astimezone(WEST)))
    statement = "SELECT pushed_at FROM repository_manifests h JOIN blobs b ON b.id = manifest_id WHERE digest = %s"
    assert table.rows(statement, (table.digest("m"),)) == [(moment,)]


def test_sizes(table: Table) -> None:
    """The largest size that the record's schema allows can be stored."""
    table.apply(table.link("a", "l")._replace(size=2**63 - 1))
    assert table.row("l").size == 2**63 - 1


def test_a_size_beyond_the_column(table: Table) -> None:
    """A size beyond the column is refused as data, and the table is unchanged."""
    piece = table.slice([table.link("a", "l")._replace(size=2**63), table.link("a", "l2")])
    with pytest.raises(psycopg.DataError):
        table.apply_slices([piece])
    assert table.links() == set()
    table.apply(table.link("a", "l2"))


def test_a_session_of_another_kind(table: Table) -> None:
    """Sessions are read committed and in UTC, whatever the server's defaults."""
    name = table.connection.info.dbname
    table.connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    table.connection.execute(f"ALTER DATABASE {name} SET timezone = 'Pacific/Kiritimati'")
    try:
        with table.connect() as connection:
            assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
            assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
    finally:
        table.connection.execute(f"ALTER DATABASE {name} RESET ALL")


def test_many_at_once(table: Table) -> None:
    """A manifest with very many references is applied and removed like others."""
    names = [f"l{number}" for number in range(10_000)]
    table.apply(table.push("a", "m", names, 1))
    table.apply(table.removed("a", "m", 2))
    assert table.row("l9999").references == 0
