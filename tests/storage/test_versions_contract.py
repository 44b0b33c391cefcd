"""Versions, delete markers and unfinished uploads in parts, as the audit and the search for leftovers need them.

In memory, and on a real S3 server, each with and without versions. A directory keeps neither.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby

import pytest

from coordinator.errors import UnavailableError
from coordinator.storage.port import ObjectNotFoundError, ObjectStore, Target, UnfinishedUpload
from tests.storage.conftest import KINDS, ForbiddenError, Paged, allowed, forbidden


@pytest.mark.parametrize("store", KINDS, indirect=True)
class TestVersions:
    def test_versions(self, store: ObjectStore) -> None:
        """A store that keeps versions lists them, the newest first, and a delete as a marker; each can be read."""
        keeps = self.keeps_versions(store)
        assert list(store.list_versions("v/data")) == []
        for body in (b"1", b"22", b"333"):
            store.put("v/data", body)
        store.put("v/data.beside", b"other")
        found = store.list_versions("v/data")
        assert [(each.size, each.latest) for each in found] == (
            [(3, True), (2, False), (1, False)] if keeps else [(3, True)]
        )
        assert abs(found[0].modified_at - datetime.now(UTC)) < timedelta(minutes=2)
        for each in found:
            with store.open_version("v/data", each.version) as opened:
                assert b"".join(opened.chunks) == b"123"[each.size - 1 : each.size] * (each.size or 0)
        store.delete("v/data")
        marked = store.list_versions("v/data")
        assert [(each.size, each.latest) for each in marked][:1] == ([(None, True)] if keeps else [])
        assert {each.size for each in marked} == ({None, 1, 2, 3} if keeps else set())
        with pytest.raises(ObjectNotFoundError), store.open_version("v/data", "none-such"):
            pass

    def test_versions_are_paged(self, store: ObjectStore, paged: Paged) -> None:
        """Attempt 18: all states of an object are returned, however many pages they fill; with a limit the newest."""
        keeps = self.keeps_versions(store)
        small = paged(store, 10)
        for number in range(1, 36):
            store.put("v/many", bytes(number))
            if number % 7 == 0:
                store.delete("v/many")
        store.put("v/many", bytes(36))
        store.put("v/many.beside", b"other")
        found = small.list_versions("v/many")
        if not keeps:
            assert [each.size for each in found] == [36]
            return
        assert found[0].size == 36
        assert [each.latest for each in found] == [True] + [False] * 40
        assert sorted(each.size for each in found if each.size is not None) == list(range(1, 37))
        assert sum(each.is_marker for each in found) == 5
        assert len({each.version for each in found}) == 41
        for limit in (1, 9, 10, 25, 41):
            some = small.list_versions("v/many", limit)
            assert len(some) == limit
            assert some[0] == found[0]

    def test_a_marker_is_taken_away(self, store: ObjectStore) -> None:
        """Without its marker an object is served again; a version that is no marker is never removed."""
        if not self.keeps_versions(store):
            assert not store.remove_marker("v/data", "null")
            return
        store.put("v/data", b"kept")
        version = store.list_versions("v/data")[0].version
        assert not store.remove_marker("v/data", version)
        assert store.get("v/data") == b"kept"
        store.delete("v/data")
        assert store.head("v/data") is None
        marker = store.list_versions("v/data")[0]
        assert marker.is_marker
        assert not store.remove_marker("v/data", version)
        assert store.remove_marker("v/data", marker.version)
        assert store.get("v/data") == b"kept"
        assert [entry.key for entry in store.list("v/")] == ["v/data"]
        assert not store.remove_marker("v/data", marker.version)
        assert [each.version for each in store.list_versions("v/data")] == [version]

    def test_unfinished_uploads(self, store: ObjectStore, paged: Paged) -> None:
        """An upload in parts is listed from its beginning to its end, under its key and each prefix of the key."""
        small = paged(store, 2)
        seen: dict[str, list[str]] = {}

        def chunks(more: int) -> Iterator[bytes]:
            yield bytes(6 << 20)
            if more:
                store.put_chunks(f"u/{more}", chunks(more - 1), 7 << 20)
            else:
                seen.update(
                    {prefix: sorted(u.key for u in small.list_unfinished(prefix)) for prefix in ("", "u/", "u/2")}
                )
                assert all(
                    abs(u.begun_at - datetime.now(UTC)) < timedelta(minutes=2) for u in store.list_unfinished("u/")
                )
            yield bytes(1 << 20)

        store.put_chunks("u/3", chunks(2), 7 << 20)
        assert seen == {"": ["u/1", "u/2", "u/3"], "u/": ["u/1", "u/2", "u/3"], "u/2": ["u/2"]}
        assert list(store.list_unfinished("")) == []

    def test_a_walk_over_versions(self, store: ObjectStore, paged: Paged) -> None:
        """Each state of each key below a prefix is listed once, those of one key together, also over many pages."""
        keeps = self.keeps_versions(store)
        names = ("one/data", "one/hash/0", "one/hash/10", "one/started", "two/data", "two/started", "three/data", "z")
        keys = [f"w/{name}" for name in names]
        for turn in range(3):
            for key in keys[turn:]:
                store.put(key, bytes(turn + 1))
        for key in keys[::3]:
            store.delete(key)
        store.put("w-beside/a", b"1")
        small = paged(store, 4)
        for prefix in ("w/", "w/t", "w/one/", "w/one/hash/1", "w/none/"):
            found = list(small.walk_versions(prefix))
            assert len(set(found)) == len(found)
            assert set(found) == {
                (key, state) for key in keys if key.startswith(prefix) for state in store.list_versions(key)
            }
            together = [key for key, _ in groupby(found, key=lambda each: each.key)]
            assert len(set(together)) == len(together)
        # Eight, seven and six puts, and three deletes.
        assert len(list(small.walk_versions("w/"))) == (24 if keeps else 5)

    def test_folders_of_what_is_deleted(self, store: ObjectStore, paged: Paged) -> None:
        """Folders are listed, also those with nothing but versions; objects beside them are no folders."""
        keeps = self.keeps_versions(store)
        names = ("a", "b", "c", "d", "_e")
        for name in names:
            store.put(f"deleted/{name}/x/y", b"1")
            store.put(f"deleted/{name}/z", b"1")
        store.put("deleted/beside", b"1")
        for key in ("deleted/b/x/y", "deleted/b/z", "deleted/c/z"):
            store.delete(key)
        expected = {f"deleted/{name}/" for name in names if keeps or name != "b"}
        for pages in (1000, 2):
            small = paged(store, pages)
            found = list(small.list_version_folders("deleted/"))
            assert len(set(found)) == len(found)
            assert set(found) - {"deleted/b/"} == expected - {"deleted/b/"}
            assert not keeps or "deleted/b/" in found
            assert list(small.list_version_folders("deleted/c/")) == ["deleted/c/x/"]
            assert list(small.list_version_folders("deleted/none/")) == []

    def test_folders_that_begin_alike(self, store: ObjectStore) -> None:
        """Folders whose names begin alike are all listed, also with characters that sort before the slash."""
        names = ("a", "a-b", "a.b", "a0", "b--c", "b")
        for name in names:
            store.put(f"alike/{name}/x", b"1")
        assert sorted(store.list_version_folders("alike/")) == sorted(f"alike/{name}/" for name in names)

    def test_a_walk_goes_on_after_deletes(self, store: ObjectStore, paged: Paged) -> None:
        """A walk lists everything, also while what it has listed is deleted."""
        keys = [f"g/{n:02}/data" for n in range(12)]
        for key in [*keys, *keys]:
            store.put(key, b"1")
        expected = {(key, state.version) for key in keys for state in store.list_versions(key)}
        seen: set[tuple[str, str]] = set()
        for key, states in groupby(paged(store, 5).walk_versions("g/"), key=lambda each: each.key):
            versions = {(key, each.state.version) for each in states}
            seen |= versions
            store.delete_many([Target(*each) for each in versions], allowed)
        assert seen == expected
        assert list(store.walk_versions("g/")) == []

    def test_an_upload_is_given_up(self, store: ObjectStore) -> None:
        """A permitted abort ends exactly one upload and leaves nothing of it; an ended upload can be aborted again."""
        begun: list[UnfinishedUpload] = []

        def chunks(*, give_up: bool) -> Iterator[bytes]:
            yield bytes(6 << 20)
            (upload,) = store.list_unfinished("u/a")
            begun.append(upload)
            assert store.count_stored_bytes(upload) >= 5 << 20
            if give_up:
                with pytest.raises(ForbiddenError):
                    store.abort_upload(upload, forbidden)
                assert list(store.list_unfinished("u/a")) == [upload]
                store.abort_upload(upload, allowed)
                store.abort_upload(upload, allowed)
                assert list(store.list_unfinished("u/a")) == []
                assert store.count_stored_bytes(upload) == 0
            yield bytes(6 << 20)

        store.put_chunks("u/a", chunks(give_up=False), 12 << 20)
        store.abort_upload(begun[0], allowed)
        known = store.head("u/a")
        assert known.size == 12 << 20
        with pytest.raises(UnavailableError):
            store.put_chunks("u/a", chunks(give_up=True), 12 << 20)
        assert begun[0].upload != begun[1].upload
        assert store.head("u/a") == known

    def keeps_versions(self, store: ObjectStore) -> bool:
        store.put("keeps-versions", b"1")
        store.delete("keeps-versions")
        return bool(store.list_versions("keeps-versions"))
