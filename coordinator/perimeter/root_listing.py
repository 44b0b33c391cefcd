"""List the root for repositories that no pod owns.

Route: a GC run, again and again (gc/collect.py), and the scheduler -> `update_listing` -> the row that status, plans
and runs read (root_listing_table.py). An audit makes its own listing, and so does `baleen pods suggest-prefixes`.
Only folders are listed: those at the top, and those above a pod's prefix. So it takes one request if prefixes have one
part each, and one more for each folder that several prefixes share, however much is stored.
A registry that keeps its links in a database shows no folder, but it writes a lock file into the root.
Not here: what follows (domain/perimeter.py).
"""

from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from itertools import chain, islice
from typing import Protocol

from coordinator.db.connection import Connections
from coordinator.domain.perimeter import DATABASE_REGISTRY, NAMES_LIMIT, Listing, make_name_safe
from coordinator.perimeter import root_listing_table as table
from coordinator.perimeter.root_listing_table import ListingStart
from coordinator.storage.layout import DATABASE_LOCK, REPOSITORIES
from coordinator.storage.port import ObjectInfo


class FolderStore(Protocol):
    """The operations of an object store that a listing of the root needs."""

    def list_folders(self, prefix: str) -> Iterator[str]: ...

    def list(self, prefix: str, start_after: str | None = None, limit: int = ...) -> "list[ObjectInfo]": ...


def update_listing(connections: Connections, store: FolderStore) -> Listing:
    """List the root and write the result. Raises UnavailableError, and leaves the last result."""
    with connections.use() as connection:
        begun = table.begin_listing(connection)
    found = list_root(store, begun)
    with connections.use() as connection:
        table.write_listing(connection, begun, found.unowned, complete=found.complete)
    return found


def update_listing_if_due(connections: Connections, store: FolderStore, every: timedelta) -> bool:
    """List the root if the last listing is older than `every`, or the pods changed; return whether it was listed."""
    with connections.use() as connection:
        due = table.is_listing_due(connection, every)
    if due:
        update_listing(connections, store)
    return due


def list_root(store: FolderStore, begun: ListingStart) -> Listing:
    """List the root; raises UnavailableError."""
    unowned = find_unowned(store, begun.prefixes)
    if not begun.database_pods and any(each.key == DATABASE_LOCK for each in store.list(DATABASE_LOCK, limit=1)):
        # Its repositories are rows, so no folder shows them.
        unowned = chain([DATABASE_REGISTRY], unowned)
    names = list(islice(unowned, NAMES_LIMIT + 1))
    return Listing(begun.at, names[:NAMES_LIMIT], len(names) <= NAMES_LIMIT)


def find_unowned(store: FolderStore, prefixes: Sequence[str]) -> Iterator[str]:
    """Give repositories, and folders of repositories, that are not empty and that no pod with these prefixes owns.

    A folder may have several repositories below it. A folder above a prefix is given if it is a repository itself.
    """
    owned = set(prefixes)
    above = _folders_above(owned)
    waiting = [REPOSITORIES]
    while waiting:
        folder = waiting.pop()
        is_given = False
        for each in store.list_folders(folder):
            name = each[len(REPOSITORIES) :].rstrip("/")
            if name in owned:
                continue
            if name in above:
                waiting.append(each)
                continue
            # No component of a repository's name begins with `_`: it is a folder of the repository above it.
            parent, _, last = name.rpartition("/")
            if parent and last.startswith("_"):
                if is_given:
                    continue
                name = parent
            # The store may still show a folder that has just lost its last key.
            if store.list(each, limit=1):
                is_given |= name == parent
                yield make_name_safe(name)


def count_repositories(store: FolderStore, name: str, limit: int) -> tuple[int, bool]:
    """Count the repositories in a folder, itself included; return whether these are all.

    Counts at most `limit`, and reads no more folders than that.
    """
    waiting, found, read = [f"{REPOSITORIES}{name}/"], 0, 0
    while waiting and found < limit and read < limit:
        folder = waiting.pop()
        read += 1
        below = list(islice(store.list_folders(folder), limit))
        # No component of a repository's name begins with `_`: it is a folder of the repository.
        parts = [each for each in below if each[len(folder) :].startswith("_")]
        found += bool(parts)
        waiting += [each for each in below if not each[len(folder) :].startswith("_")]
    return found, not waiting


def _folders_above(prefixes: Collection[str]) -> set[str]:
    """Return every folder above a prefix: `a` and `a/b` of `a/b/c`."""
    return {prefix[:end] for prefix in prefixes for end, character in enumerate(prefix) if character == "/"}
