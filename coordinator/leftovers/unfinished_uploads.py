"""Find unfinished upload sessions in storage.

A registry keeps a session under `repositories/<name>/_uploads/<uuid>/`, and deletes it when the upload ends. One that
was given up, or whose registry died, stays for ever. Its age is that of its `startedat`, or else of its newest object:
an unknown age counts as young.
Folders of repositories are listed side by side, a window at a time, so that memory does not grow with their number.
"""

import datetime
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from itertools import chain, groupby, islice
from typing import NamedTuple, TypeVar

from coordinator.storage.layout import REPOSITORIES
from coordinator.storage.port import ObjectInfo, ObjectStore

T = TypeVar("T")

#: Folders that are listed at once.
WINDOW = 64
_UPLOADS = "_uploads/"
_STARTED = "startedat"


class Session(NamedTuple):
    """One upload session."""

    #: The beginning of all its keys.
    prefix: str
    begun_at: datetime.datetime
    #: Size of all its objects.
    bytes: int


def list_sessions(store: ObjectStore, pool: Executor) -> Iterator[Session]:
    """Give every upload session in storage."""
    folders = list_folders_named({_UPLOADS}, store.list_folders, pool)
    while window := list(islice(folders, WINDOW)):
        for found in pool.map(lambda folder: _prefetch(_list_sessions_in(store, folder)), window):
            yield from found


def list_folders_named(
    names: Collection[str], children: Callable[[str], Iterator[str]], pool: Executor, below: Iterator[str] | None = None
) -> Iterator[str]:
    """Give the folders of these names, such as `_uploads/`, in all repositories; `children` lists a folder."""
    folders = children(REPOSITORIES) if below is None else below
    while window := list(islice(folders, WINDOW)):
        yield from (folder for folder in window if _last_part(folder) in names)
        outer = [folder for folder in window if not _last_part(folder).startswith("_")]
        for found in pool.map(lambda folder: _prefetch(children(folder)), outer):
            yield from list_folders_named(names, children, pool, iter(found))


def _last_part(folder: str) -> str:
    """The last part of a folder's path, with its slash."""
    return folder[folder.rfind("/", 0, -1) + 1 :]


def _prefetch(found: Iterator[T]) -> Iterable[T]:
    """Fetch the first WINDOW items here, in the pool's thread, and the rest as they are read."""
    return chain(list(islice(found, WINDOW)), found)


def _list_sessions_in(store: ObjectStore, folder: str) -> Iterator[Session]:
    def session(entry: ObjectInfo) -> str:
        return entry.key[: entry.key.find("/", len(folder)) + 1] or entry.key

    for prefix, entries in groupby(store.walk(folder), key=session):
        objects = list(entries)
        started = [entry.modified_at for entry in objects if entry.key == prefix + _STARTED]
        begun_at = started[0] if started else max(entry.modified_at for entry in objects)
        yield Session(prefix, begun_at, sum(entry.size for entry in objects))
