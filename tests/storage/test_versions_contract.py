"""What the audit relies on beside: versions and their markers, and uploads in parts that nobody ended.

In memory, and on a real S3 server, each with and without versions. A directory keeps neither.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.storage.port import ObjectNotFoundError, ObjectStore


@pytest.mark.parametrize("store", ["memory", "memory-versioned", "s3", "s3-rootless", "s3-versioned"], indirect=True)
class TestVersions:
    def test_versions(self, store: ObjectStore) -> None:
        """A store that keeps versions tells them, the newest first, and a delete as a marker; each can be read."""
        keeps = self.keeps_versions(store)
        assert list(store.versions("v/data")) == []
        for body in (b"1", b"22", b"333"):
            store.put("v/data", body)
        store.put("v/data.beside", b"other")
        found = store.versions("v/data")
        assert [(each.size, each.latest) for each in found] == (
            [(3, True), (2, False), (1, False)] if keeps else [(3, True)]
        )
        assert abs(found[0].modified_at - datetime.now(UTC)) < timedelta(minutes=2)
        for each in found:
            with store.open_version("v/data", each.version) as opened:
                assert b"".join(opened.chunks) == b"123"[each.size - 1 : each.size] * (each.size or 0)
        store.delete("v/data")
        marked = store.versions("v/data")
        assert [(each.size, each.latest) for each in marked][:1] == ([(None, True)] if keeps else [])
        assert {each.size for each in marked} == ({None, 1, 2, 3} if keeps else set())
        with pytest.raises(ObjectNotFoundError), store.open_version("v/data", "none-such"):
            pass

    def test_a_marker_is_taken_away(self, store: ObjectStore) -> None:
        """Without its marker an object is served again; what is no marker is never taken away."""
        if not self.keeps_versions(store):
            assert not store.remove_marker("v/data", "null")
            return
        store.put("v/data", b"kept")
        version = store.versions("v/data")[0].version
        assert not store.remove_marker("v/data", version)
        assert store.get("v/data") == b"kept"
        store.delete("v/data")
        assert store.head("v/data") is None
        marker = store.versions("v/data")[0]
        assert marker.is_marker
        assert not store.remove_marker("v/data", version)
        assert store.remove_marker("v/data", marker.version)
        assert store.get("v/data") == b"kept"
        assert [entry.key for entry in store.list("v/")] == ["v/data"]
        assert not store.remove_marker("v/data", marker.version)
        assert [each.version for each in store.versions("v/data")] == [version]

    def test_unfinished_uploads(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """An upload in parts is told from its beginning to its end, under its key and the beginnings of that."""
        monkeypatch.setattr("coordinator.storage.s3.PART_BYTES", 5 << 20)
        monkeypatch.setattr("coordinator.storage.s3.LIST_LIMIT", 2)
        seen: dict[str, list[str]] = {}

        def chunks(more: int) -> Iterator[bytes]:
            yield bytes(6 << 20)
            if more:
                store.put_chunks(f"u/{more}", chunks(more - 1), 7 << 20)
            else:
                seen.update({prefix: sorted(u.key for u in store.unfinished(prefix)) for prefix in ("", "u/", "u/2")})
                assert all(abs(u.begun_at - datetime.now(UTC)) < timedelta(minutes=2) for u in store.unfinished("u/"))
            yield bytes(1 << 20)

        store.put_chunks("u/3", chunks(2), 7 << 20)
        assert seen == {"": ["u/1", "u/2", "u/3"], "u/": ["u/1", "u/2", "u/3"], "u/2": ["u/2"]}
        assert list(store.unfinished("")) == []

    def keeps_versions(self, store: ObjectStore) -> bool:
        store.put("keeps-versions", b"1")
        store.delete("keeps-versions")
        return bool(store.versions("keeps-versions"))
