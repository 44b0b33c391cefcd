"""The check finds every way in which a count, state or date can differ from the facts."""

import pytest

from coordinator.audit.check import DIFFERENCES_SHOWN
from tests.table.harness import Table

#: What is broken, and the difference's name.
CORRUPTIONS = [
    ("UPDATE blobs SET reference_count = reference_count + 1 WHERE digest = %(c)s", "blob"),
    ("UPDATE blobs SET reference_count = reference_count - 1 WHERE digest = %(c)s", "blob"),
    ("UPDATE blobs SET link_count = link_count + 1 WHERE digest = %(c)s", "blob"),
    ("UPDATE blobs SET link_count = 0 WHERE digest = %(l)s", "blob"),
    ("UPDATE blobs SET state = 1 WHERE digest = %(c)s", "blob"),
    ("UPDATE blobs SET state = 0 WHERE digest = %(free)s", "blob"),
    ("UPDATE blobs SET state = 9 WHERE digest = %(free)s", "blob"),
    ("UPDATE blobs SET reference_count = 1, unreferenced_since = NULL WHERE digest = %(free)s", "blob"),
    ("UPDATE blobs SET reference_count = 0, unreferenced_since = now() WHERE digest = %(c)s", "blob"),
    ("UPDATE manifests SET refs = refs[2:] WHERE id = (SELECT id FROM blobs WHERE digest = %(m)s)", "blob"),
    ("UPDATE manifests SET refs = NULL WHERE id = (SELECT id FROM blobs WHERE digest = %(m)s)", "blob"),
    ("UPDATE manifests SET refs = refs || 999999999::bigint", "reference to no blob"),
    ("DELETE FROM manifests WHERE id = (SELECT id FROM blobs WHERE digest = %(m)s)", "holding of no manifest"),
    (
        "DELETE FROM repository_manifests WHERE repository_id = (SELECT min(repository_id) FROM repository_manifests)",
        "blob",
    ),
    ("DELETE FROM repository_blobs", "blob"),
    (
        "INSERT INTO repository_manifests SELECT id, now(), 999999 FROM manifests LIMIT 1",
        "holding of no repository",
    ),
    (
        "INSERT INTO repository_manifests SELECT 999999999, now(), id FROM repositories LIMIT 1",
        "holding of no manifest",
    ),
    ("UPDATE blobs SET state = 2 WHERE digest = %(free)s", "hidden blob without a hide"),
    (
        "INSERT INTO hides (blob_id, run_id, taken, unreferenced_since) SELECT id, 1, 1, now() FROM blobs LIMIT 1",
        "hide of a blob that is not hidden",
    ),
]


@pytest.fixture
def filled(table: Table) -> Table:
    table.connection.execute(
        "TRUNCATE blobs, claims, hides, manifests, repositories, repository_manifests, repository_blobs, removals"
    )
    table.apply(
        table.push("a", "m", ["c", "l"], 1),
        table.push("b", "m", ["c", "l"], 1),
        table.link("a", "l", 1),
        table.link("a", "free", 1),
        table.removed("a", "free", 2),
    )
    return table


def test_agrees(filled: Table) -> None:
    """An untouched table agrees, and the report says how large it is."""
    report = filled.check()
    assert report.is_healthy
    assert (report.blobs, report.references, report.differences) == (4, 6, [])


@pytest.mark.parametrize(("statement", "what"), CORRUPTIONS)
def test_finds(filled: Table, statement: str, what: str) -> None:
    """A change of any count, state or date, and a row that points at nothing, is a difference."""
    digests = {name: filled.digest(name) for name in ("m", "c", "l", "free")}
    filled.connection.execute(statement, digests)
    report = filled.check()
    assert not report.is_healthy
    assert what in {difference.what for difference in report.differences}


def test_counts_all_and_shows_some(filled: Table) -> None:
    """Every difference is counted, also beyond those that are shown."""
    filled.apply(*(filled.link("a", f"more{number}") for number in range(DIFFERENCES_SHOWN)))
    filled.connection.execute("UPDATE blobs SET link_count = link_count + 1, unreferenced_since = NULL")
    report = filled.check()
    assert (report.differences_count, len(report.differences)) == (4 + DIFFERENCES_SHOWN, DIFFERENCES_SHOWN)


def test_changes_nothing(filled: Table) -> None:
    """The check reports, and repairs nothing."""
    filled.connection.execute("UPDATE blobs SET link_count = 7 WHERE digest = %s", (filled.digest("l"),))
    assert [filled.check().differences_count for _ in range(2)] == [1, 1]
