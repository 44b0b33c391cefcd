"""What everything that stores and looks up objects relies on: in memory, in a directory, and on a real S3 server.

On S3: below a root of its own, at the top of a bucket, and in a bucket that keeps versions.
"""

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.domain.names import Digest
from coordinator.errors import ConflictError, UsageError
from coordinator.storage.layout import BLOBS, blob_key
from coordinator.storage.port import CHUNK_BYTES, LIST_LIMIT, ObjectNotFoundError, ObjectStore
from coordinator.storage.s3 import S3ObjectStore
from tests.storage.conftest import Paged

ODD_KEYS = [
    "odd/a b",
    "odd/a+b",
    "odd/a%20b",
    "odd/%41",
    "odd/a&b=c?d#e",
    "odd/'\"<>;:@,",
    "odd/..a/b..",
    "odd/Ä/ü",
    "odd/日本/😀",
    "odd/Z",
    "odd/_manifests",
]


def fill(store: ObjectStore, keys: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))


def keys_of(store: ObjectStore, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[str]:
    return [entry.key for entry in store.list(prefix, start_after, limit)]


def walked(store: ObjectStore, prefix: str) -> list[str]:
    return [entry.key for entry in store.walk(prefix)]


def make_repositories(seed: int) -> list[str]:
    """Keys whose parts begin alike, also with characters that sort before the slash; no key is a directory."""
    rnd = random.Random(seed)
    keys: set[str] = set()
    while len(keys) < 16:
        depth = rnd.randint(1, 4)
        key = "/".join(rnd.choice(["t", "t-a", "t.b", "ta", "t0", "t-", "u", "_l"]) for _ in range(depth))
        if not any(other.startswith(f"{key}/") or key.startswith(f"{other}/") for other in keys):
            keys.add(key)
    return sorted(keys)


class TestObjectStore:
    def test_what_is_put_is_got_back(self, store: ObjectStore) -> None:
        """An object has the bytes, the size and about the time of its put; it may be empty."""
        for body in (b"", b"\x00\xffbytes", bytes(100_000)):
            store.put("a/b", body)
            assert store.get("a/b") == body
            known = store.head("a/b")
            assert (known.key, known.size) == ("a/b", len(body))
            assert abs(known.modified_at - datetime.now(UTC)) < timedelta(minutes=2)
            assert [(entry.key, entry.size) for entry in store.list("a/")] == [("a/b", len(body))]

    def test_put_replaces(self, store: ObjectStore) -> None:
        """The last put wins, and there is one object."""
        store.put("a", b"first")
        store.put("a", b"2")
        assert store.get("a") == b"2"
        assert keys_of(store, "") == ["a"]

    def test_what_is_not_there(self, store: ObjectStore) -> None:
        """An object that never existed or was deleted is not found; neither is a folder of other keys."""
        store.put("here/too/x", b"1")
        store.put("gone", b"1")
        store.delete("gone")
        for key in ("never", "gone", "here", "here/too", "here/too/x/y", "here/too/"[:-1]):
            assert store.head(key) is None
            with pytest.raises(ObjectNotFoundError):
                store.get(key)

    def test_delete_of_what_is_not_there(self, store: ObjectStore) -> None:
        """Deleting twice, or what never was, is no error, and takes nothing else along."""
        store.put("d/x", b"1")
        for key in ("d", "d/x/y", "never", "d/y", "d/y"):
            store.delete(key)
        assert keys_of(store, "") == ["d/x"]
        store.delete("d/x")
        store.delete("d/x")
        assert keys_of(store, "") == []

    def test_the_limit_of_a_get(self, store: ObjectStore) -> None:
        """An object of just the limit is read, a larger one is refused."""
        store.put("a", b"12345")
        assert store.get("a", limit=5) == b"12345"
        with pytest.raises(UsageError, match="a has 5 bytes, more than 4"):
            store.get("a", limit=4)
        store.put("empty", b"")
        assert store.get("empty", limit=0) == b""

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
    def test_what_is_opened_is_read_in_pieces(self, store: ObjectStore, size: int) -> None:
        """An object of any size is read completely, in pieces of bounded size."""
        body = random.Random(size).randbytes(size)
        store.put("a/b", body)
        with store.open("a/b") as opened:
            pieces = list(opened.chunks)
            assert opened.size == size
        assert b"".join(pieces) == body
        assert all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)
        for key in ("a", "a/c", "a/b/c"):
            with pytest.raises(ObjectNotFoundError), store.open(key):
                pass

    @pytest.mark.parametrize("size", [0, 5, 8 << 20, (16 << 20) + 7])
    def test_what_is_put_in_pieces(self, store: ObjectStore, size: int) -> None:
        """Bytes that come in pieces of any length become one object."""
        body = random.Random(size).randbytes(size)
        store.put("a/b", b"before")
        store.put_chunks("a/b", (body[start : start + 999_983] for start in range(0, size, 999_983)), size)
        assert store.get("a/b") == body
        assert keys_of(store, "a/") == ["a/b"]

    @pytest.mark.parametrize("size", [10, 17 << 20])
    def test_pieces_that_are_not_all(self, store: ObjectStore, size: int) -> None:
        """With too few or many bytes, or an error of their source, nothing is stored and an earlier object stays."""

        def broken() -> Iterator[bytes]:
            yield bytes(size - 1)
            raise RuntimeError("no more")

        store.put("a/b", b"before")
        for key in ("a/b", "a/c"):
            with pytest.raises(UsageError, match="should have"):
                store.put_chunks(key, [bytes(size - 1)], size)
            with pytest.raises(UsageError, match="should have"):
                store.put_chunks(key, [bytes(size), b"1"], size)
            with pytest.raises(RuntimeError, match="no more"):
                store.put_chunks(key, broken(), size)
        assert store.get("a/b") == b"before"
        assert keys_of(store, "a/") == ["a/b"]

    def test_what_is_copied(self, store: ObjectStore) -> None:
        """A copy has the bytes of exactly the object that was read; a copy that cannot be made changes nothing."""
        for limit in (5 << 30, 5 << 20):
            if isinstance(store, S3ObjectStore):
                store.copy_bytes = limit
            body = random.Random(limit).randbytes((11 << 20) + 3)
            for source in ("odd/a b+%20/Ä&?#", "from"):
                store.put(source, body)
                with store.open(source) as opened:
                    etag = opened.etag
                for given in (etag, None):
                    store.put("to", b"before")
                    if not store.copy_from(store, source, "to", etag=given):
                        assert etag is None
                        assert store.get("to") == b"before"
                        return
                    assert store.get("to") == body
                    assert store.get(source) == body
                store.put(source, body[1:])
                with pytest.raises(ConflictError, match="has changed since"):
                    store.copy_from(store, source, "to", etag=etag)
                assert store.get("to") == body
            with pytest.raises(ObjectNotFoundError):
                store.copy_from(store, "never", "to")

    def test_odd_keys(self, store: ObjectStore) -> None:
        """Keys with characters that URLs and listings escape are kept as they are."""
        for key in ODD_KEYS:
            store.put(key, key.encode())
        for key in ODD_KEYS:
            assert store.get(key) == key.encode()
            assert store.head(key) is not None
        assert sorted(keys_of(store, "odd/")) == sorted(walked(store, "odd/")) == sorted(ODD_KEYS)
        for key in ODD_KEYS:
            assert keys_of(store, key) == [key]
            store.delete(key)
        assert keys_of(store, "") == []

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a/../b", "..", ".", "a/./b", "a\\b"])
    def test_what_is_no_key(self, store: ObjectStore, key: str) -> None:
        """A key that some store would take for another one is refused by every call."""
        store.put("b", b"1")
        for call in (store.get, store.head, store.delete, lambda key: store.put(key, b"2")):
            with pytest.raises(UsageError, match="is not a key"):
                call(key)
        assert store.get("b") == b"1"

    def test_prefixes(self, store: ObjectStore) -> None:
        """A prefix may end inside a name, after a name, or after the slash."""
        keys = ["team/app/x", "team/apple/x", "team/app-2/x", "team-b/x", "teams"]
        fill(store, keys)
        assert set(keys_of(store, "")) == set(keys)
        assert set(keys_of(store, "team")) == set(keys)
        assert set(keys_of(store, "team/")) == {"team/app/x", "team/apple/x", "team/app-2/x"}
        assert set(keys_of(store, "team/app")) == {"team/app/x", "team/apple/x", "team/app-2/x"}
        assert keys_of(store, "team/app/") == ["team/app/x"]
        assert keys_of(store, "team/app/x") == ["team/app/x"]
        assert keys_of(store, "teams") == ["teams"]
        assert keys_of(store, "eam") == keys_of(store, "team/app/x/") == keys_of(store, "TEAM") == []

    @pytest.mark.parametrize("seed", range(3))
    def test_walk_gives_everything_once(self, store: ObjectStore, seed: int, paged: Paged) -> None:
        """A walk gives each key once, also with names that begin alike and with small pages."""
        keys = make_repositories(seed)
        fill(store, keys)
        for size in (1, 3, LIST_LIMIT):
            small = paged(store, size)
            for prefix in ("", "t", "t/", "t-", "t-a", "t-a/t"):
                below = [key for key in keys if key.startswith(prefix)]
                assert sorted(walked(small, prefix)) == sorted(small.walk_keys(prefix)) == below

    def test_folders(self, store: ObjectStore, paged: Paged) -> None:
        """Each folder below a prefix is listed once, also with small pages; keys without a further slash are none."""
        fill(store, ["f/team/app/x", "f/team/app/y/z", "f/team/app-2/x", "f/team/_layers/a", "f/team/file", "f/u/v/w"])
        for size in (1, 2, LIST_LIMIT):
            small = paged(store, size)
            # Others may linger at the top, where all tests are.
            assert list(small.list_folders("")).count("f/") == 1
            for prefix, found in (
                ("f/", ["f/team/", "f/u/"]),
                ("f/team/", ["f/team/_layers/", "f/team/app-2/", "f/team/app/"]),
                ("f/team/app", ["f/team/app-2/", "f/team/app/"]),
                ("f/team", ["f/team/"]),
                ("f/team/app/", ["f/team/app/y/"]),
                ("f/team/file", []),
                ("f/team/file/", []),
                ("none/", []),
            ):
                assert sorted(small.list_folders(prefix)) == found

    def test_walk_goes_on_while_what_it_gave_is_deleted(self, store: ObjectStore, paged: Paged) -> None:
        """A caller that deletes each listed object at once gets every object once."""
        keys = make_repositories(7)
        fill(store, keys)
        seen: list[str] = []
        for entry in paged(store, 3).walk(""):
            seen.append(entry.key)
            store.delete(entry.key)
        assert sorted(seen) == keys
        assert walked(store, "") == []

    def test_blobs_are_listed_in_the_order_of_their_digests(self, store: ObjectStore) -> None:
        """Below blobs/ keys are in the order of digests, and a page may begin after any digest, stored or not."""
        digests = sorted(Digest(hashlib.sha256(bytes([number])).digest()) for number in range(40))
        present = digests[::2]
        fill(store, [blob_key(digest) for digest in present])
        wanted = [blob_key(digest) for digest in present]
        assert keys_of(store, BLOBS) == wanted
        for digest in digests:
            assert keys_of(store, BLOBS, blob_key(digest)) == [key for key in wanted if key > blob_key(digest)]
            assert keys_of(store, BLOBS, blob_key(digest), 1) == [key for key in wanted if key > blob_key(digest)][:1]
        store.delete(wanted[5])
        assert keys_of(store, BLOBS, wanted[5], 2) == wanted[6:8]

    @pytest.mark.lengthy
    def test_more_than_one_page(self, store: ObjectStore) -> None:
        """A call returns as many keys as its limit, and never more than 1000."""
        keys = [f"many/{number:04}" for number in range(LIST_LIMIT + 5)]
        fill(store, keys)
        assert keys_of(store, "many/") == keys_of(store, "many/", None, 5000) == keys[:LIST_LIMIT]
        assert keys_of(store, "many/", None, LIST_LIMIT - 1) == keys[: LIST_LIMIT - 1]
        assert keys_of(store, "many/", keys[LIST_LIMIT - 1]) == keys[LIST_LIMIT:]
        assert sorted(walked(store, "many/")) == keys
        for limit in (0, -1):
            with pytest.raises(UsageError, match="1 to 1000"):
                store.list("many/", limit=limit)

    def test_emptied_directories_are_no_objects(self, store: ObjectStore) -> None:
        """A deleted key leaves no trace in listings and heads."""
        keys = ["r/_uploads/1/data", "r/_uploads/1/startedat", "r/_layers/x/link"]
        fill(store, keys)
        for key in keys[:2]:
            store.delete(key)
        for prefix in ("", "r", "r/", "r/_uploads/", "r/_uploads"):
            assert keys_of(store, prefix) == [key for key in keys[2:] if key.startswith(prefix)]
            assert keys_of(store, prefix, None, 1) == [key for key in keys[2:] if key.startswith(prefix)]
            assert walked(store, prefix) == [key for key in keys[2:] if key.startswith(prefix)]
        assert store.head("r/_uploads") is store.head("r/_uploads/1") is None
        store.delete(keys[2])
        assert keys_of(store, "") == []

    def test_several_threads(self, store: ObjectStore) -> None:
        """One store serves many threads at once."""

        def work(number: int) -> bool:
            store.put(f"t/{number}", str(number).encode())
            return store.get(f"t/{number}") == str(number).encode() and store.head(f"t/{number}") is not None

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(work, range(64)))
        assert len(keys_of(store, "t/")) == 64

    def test_a_store_that_is_there_is_checked(self, store: ObjectStore) -> None:
        """The check of a store that answers raises nothing."""
        store.check()
