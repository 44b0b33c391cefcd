"""How the directory adapter treats links, pipes, odd names and unreadable files."""

import os
import socket
from pathlib import Path

import pytest

from coordinator.errors import UnavailableError, UsageError
from coordinator.storage.files import FileObjectStore
from coordinator.storage.locations import FileLocation, S3Location, parse_location
from coordinator.storage.port import ObjectNotFoundError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one file, beside a directory that is none of it."""
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "file").write_bytes(b"inside")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_bytes(b"outside")
    return tmp_path / "root"


def keys(store: FileObjectStore, prefix: str = "") -> list[str]:
    walked = sorted(entry.key for entry in store.walk(prefix))
    assert walked == sorted(entry.key for entry in store.list(prefix))
    return walked


@pytest.mark.parametrize("target", ["../other", "../../other/secret", "file", "/etc/passwd", "nowhere", "loop"])
def test_symbolic_links_are_not_followed(root: Path, target: str) -> None:
    """A symbolic link is no object, whether it leads out of the root, to a file in it, or nowhere."""
    (root / "a" / "loop").symlink_to(target)
    store = FileObjectStore(root)
    assert keys(store) == ["a/file"]
    for prefix in ("a/loop", "a/loop/", "a/loop/secret"):
        assert keys(store, prefix) == []
    for key in ("a/loop", "a/loop/secret"):
        assert store.head(key) is None
        with pytest.raises(ObjectNotFoundError):
            store.get(key)
        with pytest.raises(ObjectNotFoundError), store.open(key):
            pass


def test_the_root_may_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    """An operator's own link to the root is followed."""
    (tmp_path / "by-link").symlink_to(root)
    store = FileObjectStore(tmp_path / "by-link")
    assert keys(store) == ["a/file"]
    assert store.get("a/file") == b"inside"


def test_what_is_no_file_is_passed_over(root: Path) -> None:
    """Pipes and sockets are no objects, and no call waits for one."""
    os.mkfifo(root / "a" / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(root / "a")  # a socket's path is short
        try:
            listening.bind("socket")
        finally:
            os.chdir(here)
        store = FileObjectStore(root)
        assert keys(store) == ["a/file"]
        for key in ("a/pipe", "a/socket", "a"):
            assert store.head(key) is None
            with pytest.raises(ObjectNotFoundError):
                store.get(key)


def test_names_that_are_no_keys_are_passed_over(root: Path) -> None:
    """A name that is not UTF-8 or has a backslash is not listed: no call could name it."""
    (root / "a" / "back\\slash").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root) + b"/a/latin\xe4")).write_bytes(b"")
    (root / "a" / "ä").write_bytes(b"")
    assert keys(FileObjectStore(root)) == ["a/file", "a/ä"]


@pytest.mark.parametrize("call", ["scandir", "open"])
def test_what_may_not_be_read_is_an_outage(root: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A directory or file that may not be read is an outage, not an empty or missing one."""
    real = getattr(os, call)

    def refused(path: object, *arguments: object, **options: object) -> object:
        if str(path).endswith(("a", "file")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, refused)
    store = FileObjectStore(root)
    with pytest.raises(UnavailableError, match="cannot be read"):
        list(store.walk_keys("")) if call == "scandir" else store.head("a/file")


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    """A wrong path is an outage to every call, and never an empty store."""
    store = FileObjectStore(tmp_path / "nowhere")
    for call in (store.check, lambda: store.head("a"), lambda: store.list(""), lambda: list(store.walk("a/b/"))):
        with pytest.raises(UnavailableError, match="no directory"):
            call()


def test_a_file_that_shrinks_while_it_is_read(root: Path) -> None:
    """A file that becomes shorter while it is read is an outage."""
    store = FileObjectStore(root)
    with store.open("a/file") as opened:
        (root / "a" / "file").write_bytes(b"in")
        with pytest.raises(UnavailableError, match="shorter"):
            list(opened.chunks)


def test_what_vanishes_while_it_is_listed(root: Path) -> None:
    """A directory that is removed during a listing is passed over."""
    for name in "bcdef":
        (root / name).mkdir()
        (root / name / "x").write_bytes(b"")
    store = FileObjectStore(root)
    listing = store.walk("")
    found = [next(listing).key]
    for path in list(root.iterdir()):
        if not found[0].startswith(path.name):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    assert found + [entry.key for entry in listing] == found


def test_a_file_that_vanishes_while_its_directory_is_listed(root: Path) -> None:
    """A file that is gone before its size was asked for is left out."""
    for name in "bcdef":
        (root / "a" / name).write_bytes(b"")
    listing = FileObjectStore(root).walk("")
    found = root / next(listing).key
    for path in (root / "a").iterdir():
        if path != found:
            path.unlink()
    assert list(listing) == []


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("s3://bucket", S3Location("bucket", "")),
        ("s3://bucket/", S3Location("bucket", "")),
        ("s3://bucket/some/root/", S3Location("bucket", "some/root")),
        ("s3://bucket/a%20b?c#d", S3Location("bucket", "a%20b?c#d")),
        ("file:///srv/registry", FileLocation(Path("/srv/registry"))),
        ("file:///srv/a%20b/", FileLocation(Path("/srv/a b"))),
        ("file://localhost/srv", FileLocation(Path("/srv"))),
        ("file:///", FileLocation(Path("/"))),
    ],
)
def test_locations(text: str, location: object) -> None:
    """A location is a bucket with a root, or a directory."""
    assert parse_location(text) == location


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/srv/registry", "not a location"),
        ("http://host/x", "not a location"),
        ("s3:/bucket", "not a location"),
        ("s3:///root", "names no bucket"),
        ("file://srv/registry", "another machine"),
        ("file://", "names no directory"),
        ("file:///a%00b", "names no directory"),
        ("s3://key:the-secret@bucket/x", "no credentials"),
    ],
)
def test_what_is_no_location(text: str, message: str) -> None:
    """Anything else is refused, with how to write one and without what may be secret."""
    with pytest.raises(UsageError, match=message) as raised:
        parse_location(text)
    assert "s3://bucket/root" in str(raised.value)
    assert "the-secret" not in str(raised.value)
