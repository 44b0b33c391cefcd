"""The read-only object store on a directory, as distribution's `filesystem` driver writes it.

A file below the root is an object, and its path the key. Symbolic links below the root are never followed, and what is
neither a file nor a directory is skipped: write access to the tree must not expose other files of this machine. An
unreadable directory raises UnavailableError, because a listing without it would look complete. Names that cannot be
part of a key (not UTF-8, or with a backslash) are skipped too.
Not here: writing. The shared layer is an S3 store.
"""

import datetime
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from coordinator.errors import UnavailableError, UsageError
from coordinator.storage.port import (
    CHUNK_BYTES,
    LIST_LIMIT,
    ObjectInfo,
    ObjectNotFoundError,
    OpenObject,
    check_key,
    check_page_size,
)

#: The system's errors when there is no such file: also when a part of the path is a file or a symbolic link.
_ABSENT_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY


class FileObjectStore:
    """Reads objects from a directory. The path to it may contain symbolic links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"FileObjectStore({str(self.root)!r})"

    def get(self, key: str, limit: int | None = None) -> bytes:
        with self._open_file(key) as (file, known):
            if limit is not None and known.st_size > limit:
                raise UsageError(f"{key} has {known.st_size} bytes, more than {limit}.")
            return b"".join(_read_chunks(key, file, known.st_size))

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._open_file(key) as (_, known):
                return _make_info(key, known)
        except ObjectNotFoundError:
            return None

    @contextmanager
    def open(self, key: str) -> Iterator[OpenObject]:
        with self._open_file(key) as (file, known):
            yield OpenObject(known.st_size, None, _read_chunks(key, file, known.st_size))

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        after = tuple((start_after or "").split("/"))
        found = (each for each in self._walk_files(prefix, ordered=True) if tuple(each[0].split("/")) > after)
        return list(islice(_stat_files(found), check_page_size(limit)))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        return _stat_files(self._walk_files(prefix, ordered=False))

    def walk_keys(self, prefix: str) -> Iterator[str]:
        return (key for key, _ in self._walk_files(prefix, ordered=False))

    def check(self) -> None:
        if not self.root.is_dir():
            raise UnavailableError(f"There is no directory {str(self.root)!r}: check the path.")

    def _walk_files(self, prefix: str, *, ordered: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield keys and files whose key begins with prefix, if `ordered` in the order of the keys' parts.

        Unordered, memory does not depend on how many files a directory holds.
        """
        self.check()
        folder, slash, name = prefix.rpartition("/")
        if folder and not self._is_folder(folder):
            return
        # One listing for each level of the path, and what its keys begin with.
        levels = [(folder + slash, _list_entries(self.root / folder, name, ordered=ordered))]
        try:
            while levels:
                base, entries = levels[-1]
                for entry in entries:
                    if _is_kind(entry, os.DirEntry.is_file):
                        yield base + entry.name, entry
                    elif _is_kind(entry, os.DirEntry.is_dir):
                        levels.append((f"{base}{entry.name}/", _list_entries(entry.path, "", ordered=ordered)))
                        break
                else:
                    levels.pop()
        finally:
            for _, entries in levels:
                entries.close()

    def _is_folder(self, path: str) -> bool:
        """Whether a path below the root leads to a directory without a symbolic link."""
        here = self.root
        for part in check_key(path).split("/"):
            here /= part
            try:
                if not stat.S_ISDIR(here.lstat().st_mode):
                    return False
            except OSError as error:
                if error.errno in _ABSENT_ERRORS:
                    return False
                raise _unreadable(error) from error
        return True

    @contextmanager
    def _open_file(self, key: str) -> Iterator[tuple[BinaryIO, os.stat_result]]:
        """Open a file part by part of its path, so that none of the parts is a symbolic link."""
        *folders, name = check_key(key).split("/")
        self.check()
        try:
            here = os.open(self.root, _OPEN_FOLDER)
            for folder in folders:
                here = _open_entry(here, folder, _OPEN_FOLDER)
            # Without blocking: it may be a pipe without a writer.
            file = _open_entry(here, name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _ABSENT_ERRORS:
                raise ObjectNotFoundError(f"There is no file {key!r} in {str(self.root)!r}.") from error
            raise _unreadable(error) from error
        known = os.fstat(file)
        if not stat.S_ISREG(known.st_mode):
            os.close(file)
            raise ObjectNotFoundError(f"{key!r} in {str(self.root)!r} is not a regular file.")
        with os.fdopen(file, "rb", buffering=0) as stream:
            yield stream, known


def _open_entry(folder: int, name: str, flags: int) -> int:
    """Open an entry of a directory by its name; the directory is closed."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def _list_entries(path: str | Path, name: str, *, ordered: bool) -> Generator[os.DirEntry[str], None, None]:
    """Yield the entries of a directory whose names begin with `name`; none if the directory has gone meanwhile."""
    try:
        with os.scandir(path) as scan:
            found = (entry for entry in scan if entry.name.startswith(name) and _is_part(entry.name))
            yield from sorted(found, key=lambda entry: entry.name.encode()) if ordered else found
    except OSError as error:
        if error.errno not in _ABSENT_ERRORS:
            raise _unreadable(error) from error


def _stat_files(files: Iterable[tuple[str, os.DirEntry[str]]]) -> Iterator[ObjectInfo]:
    """Yield size and time of files, without those that have gone meanwhile."""
    for key, entry in files:
        if (known := _stat_or_none(entry)) is not None:
            yield _make_info(key, known)


def _is_kind(entry: os.DirEntry[str], kind: Callable[..., bool]) -> bool:
    try:
        return kind(entry, follow_symlinks=False)
    except OSError as error:
        raise _unreadable(error) from error


def _stat_or_none(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT_ERRORS:
            return None
        raise _unreadable(error) from error


def _read_chunks(key: str, file: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left:
        try:
            chunk = file.read(min(CHUNK_BYTES, left))
        except OSError as error:
            raise _unreadable(error) from error
        if not chunk:
            raise UnavailableError(f"{key} became shorter while it was read: try again.")
        left -= len(chunk)
        yield chunk


def _make_info(key: str, known: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, known.st_size, datetime.datetime.fromtimestamp(known.st_mtime, datetime.UTC))


def _is_part(name: str) -> bool:
    return "\\" not in name and (name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name))


def _unreadable(error: OSError) -> UnavailableError:
    return UnavailableError(f"{error.filename!r} cannot be read ({error.strerror}): check its permissions.")
