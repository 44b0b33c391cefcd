"""Rows that expire."""

from datetime import timedelta

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.references import ManifestContent, ManifestKind, Reference
from coordinator.table import expiry
from tests.table.harness import Row, Table, at

DAY = timedelta(days=1)


def age(table: Table, what: str, column: str, days: int) -> None:
    """Make what this test did in a table older."""
    table.connection.execute(
        f"UPDATE {what} SET {column} = now() - %s"
        " WHERE repository_id IN (SELECT id FROM repositories WHERE name LIKE %s)",
        (timedelta(days=days), f"%/{table.space}/%"),
    )


def test_links_expire(fresh: Table) -> None:
    """A link older than the grace stops counting in a pod of mode manifest; in mode link it counts for ever."""
    table = fresh
    table.apply(
        table.link("a", "l"),
        table.link("b", "l"),
        table.link("a", "kept"),
        table.push("a", "m", ["kept"]),
        table.link("a", "l", pod="pod-l"),
        table.link("a", "only-l", pod="pod-l"),
        table.link("a", "gone"),
    )
    age(table, "repository_blobs", "linked_at", 2)
    table.apply(table.link("b", "young"), partition=1)
    assert expiry.delete_expired_links(table.connection, DAY) == 4
    assert table.blob("l") == Row(0, 1, BlobState.LIVE, unreferenced=False, size=7)
    assert table.blob("only-l") == Row(0, 1, BlobState.LIVE, unreferenced=False, size=7)
    assert table.blob("kept") == Row(1, 0, BlobState.LIVE, unreferenced=False, size=7)
    assert table.blob("gone") == Row(0, 0, BlobState.UNREFERENCED, unreferenced=True, size=7)
    assert table.blob("young") == Row(0, 1, BlobState.LIVE, unreferenced=False, size=7)
    assert expiry.delete_expired_links(table.connection, DAY) == 0
    assert table.check().is_healthy


def test_the_link_of_what_is_also_a_manifest(table: Table) -> None:
    """Where links cannot be checked, the delete of a blob that is also a manifest never removes the holding."""
    table.apply(table.link("a", "m", 0), table.push("a", "m", ["c"], 0), table.link("a", "l", 0))
    age(table, "repository_blobs", "linked_at", 2)
    expiry.delete_expired_links(table.connection, DAY)
    assert not table.linked("a", "l")
    table.apply(table.removed("a", "m", 600))
    assert table.holds("a", "m")
    assert table.removal("a", "m") == (at(600), True)
    # Both are removed.
    table.apply(table.emptied("a", 700))
    assert table.holdings() == table.links() == set()
    assert table.check().is_healthy


def test_links_of_a_repository_with_a_manifest_that_needs_links(fresh: Table) -> None:
    """Where links cannot be listed, none expires while the repository holds a manifest that needs its links."""
    table = fresh
    kept_by_links = table.push("a", "m", None)._replace(by_links=True)
    table.apply(table.link("a", "l"), table.link("b", "other"), kept_by_links)
    age(table, "repository_blobs", "linked_at", 2)
    assert expiry.delete_expired_links(table.connection, DAY) == 1
    # One that is reported later, by another process, stays, too.
    table.apply(table.link("a", "late"), partition=1)
    age(table, "repository_blobs", "linked_at", 2)
    assert expiry.delete_expired_links(table.connection, DAY) == 0
    assert table.linked("a", "l")
    assert table.linked("a", "late")
    table.apply(table.removed("a", "m", 600))
    assert expiry.delete_expired_links(table.connection, DAY) == 2
    assert table.check().is_healthy


def test_a_link_made_again(table: Table) -> None:
    """A link that was made again counts for another grace; the same event again does not prolong it."""
    table.apply(table.link("a", "again", 1), table.link("a", "same", 1))
    age(table, "repository_blobs", "linked_at", 2)
    table.apply(table.link("a", "again", 2), table.link("a", "same", 1))
    expiry.delete_expired_links(table.connection, DAY)
    assert table.linked("a", "again")
    assert not table.linked("a", "same")


def test_doubtful_removals_about_nothing_end(table: Table) -> None:
    """A doubtful removal ends when the link expires; one of what is still held stays."""
    margin = timedelta(minutes=5)
    table.apply(
        table.link("a", "expires", 0),
        table.removed("a", "expires", 60),
        table.push("a", "m", [], 0),
        table.removed("a", "m", 60),
        margin=margin,
    )
    assert expiry.resolve_needless_removals(table.connection) == 0
    age(table, "repository_blobs", "linked_at", 2)
    expiry.delete_expired_links(table.connection, DAY)
    assert expiry.resolve_needless_removals(table.connection) == 1
    assert {name: doubtful for (_, name), (_, doubtful) in table.removals().items()} == {
        table.text("expires"): False,
        table.text("m"): True,
    }


def test_in_batches(fresh: Table) -> None:
    """A sweep takes a bounded number of rows at a time, and goes on until none is left."""
    fresh.apply(
        *[fresh.link(f"r{n}", f"l{n % 4}") for n in range(10)], *[fresh.removed("x", f"x{n}") for n in range(10)]
    )
    age(fresh, "repository_blobs", "linked_at", 2)
    age(fresh, "removals", "seen_at", 32)
    assert expiry.delete_expired_links(fresh.connection, DAY, batch=3) == 10
    assert expiry.delete_old_removals(fresh.connection, DAY, batch=3) == 10
    assert fresh.check().is_healthy


def test_rows_that_a_batch_has_locked(fresh: Table) -> None:
    """A sweep skips rows that a batch has locked, and takes them the next time."""
    fresh.apply(*[fresh.link("a", f"l{n}") for n in range(3)], *[fresh.removed("a", f"x{n}") for n in range(3)])
    age(fresh, "repository_blobs", "linked_at", 2)
    age(fresh, "removals", "seen_at", 32)
    with fresh.connect() as other, other.transaction():
        other.execute(
            "SELECT FROM repository_blobs l JOIN blobs b ON b.id = blob_id WHERE digest = %s FOR UPDATE OF l",
            (fresh.digest("l0"),),
        )
        other.execute("SELECT FROM removals WHERE digest = %s FOR UPDATE", (fresh.digest("x0"),))
        fresh.connection.execute("SET lock_timeout = '2s'")
        assert expiry.delete_expired_links(fresh.connection, DAY) == 2
        assert expiry.delete_old_removals(fresh.connection, DAY) == 2
    assert expiry.delete_expired_links(fresh.connection, DAY) == 1
    assert expiry.delete_old_removals(fresh.connection, DAY) == 1


def test_removals_are_forgotten(fresh: Table) -> None:
    """A removal is deleted once no late event can meet it any more; a doubtful one never."""
    fresh.apply(fresh.removed("a", "old", 1), fresh.link("a", "doubtful", 1), fresh.removed("a", "doubtful", 1))
    age(fresh, "removals", "seen_at", 32)
    fresh.apply(fresh.removed("a", "young", 1))
    assert expiry.delete_old_removals(fresh.connection, 3 * DAY) == 0
    assert expiry.delete_old_removals(fresh.connection, DAY) == 1
    assert {digest for _, digest in fresh.removals()} == {fresh.text("doubtful"), fresh.text("young")}


def unsized_list(table: Table) -> ManifestContent:
    return ManifestContent(ManifestKind.IMAGE, (Reference(table.digest("l"), None),))


def test_unreferenced_since(table: Table) -> None:
    """The date is that of the moment when the last reference went, and stays while nothing references it."""

    def since() -> object:
        return table.rows("SELECT unreferenced_since FROM blobs WHERE digest = %s", (table.digest("l"),))[0][0]

    unsized = table.link("a", "l", 1)._replace(size=None)
    table.apply(unsized, table.push("a", "m", None, 1)._replace(content=unsized_list(table)))
    assert since() is None
    table.apply(table.removed("a", "m", 2))
    assert since() is None
    table.apply(table.removed("a", "l", 3))
    first = since()
    assert first is not None
    # Its size becomes known, and nothing references it after that batch.
    table.apply(table.push("a", "n", ["l"], 4), table.removed("a", "n", 5))
    assert since() == first
    assert table.blob("l") == Row(0, 0, BlobState.UNREFERENCED, unreferenced=True, size=7)
    table.apply(table.push("a", "n", ["l"], 6))
    assert since() is None
    table.apply(table.removed("a", "n", 7))
    assert since() != first
