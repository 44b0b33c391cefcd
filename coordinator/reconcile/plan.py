"""Divide a pod's listing into parts, so that several can be listed at once and none twice.

A part is a prefix of keys. No key of a link belongs to two parts, and each key that exists when the plan is made
belongs to one. A repository that appears later may belong to none: its events report it.
Not here: what is done with a part (compare.py), that parts are done once (jobs/table.py).
"""

from collections.abc import Sequence

from coordinator.domain.names import RepositoryName
from coordinator.reconcile.sizes import PRODUCTION
from coordinator.storage.layout import LINK_FOLDERS, TAGS, repository_prefix
from coordinator.storage.port import ObjectStore

#: A folder with more subfolders is split by the first letter in which they differ: one part for each folder would cost
#: more than its listing.
FOLDERS_LIMIT = 64


def plan_parts(
    store: ObjectStore,
    prefixes: Sequence[RepositoryName],
    wanted: int = PRODUCTION.parts,
    folders_limit: int = FOLDERS_LIMIT,
) -> list[str]:
    """Return the parts of a pod with these prefixes, about as many as wanted; raises UnavailableError."""
    waiting = [repository_prefix(prefix) for prefix in prefixes]
    done: list[str] = []
    while waiting and len(done) + len(waiting) < wanted:
        children, names = _split_folder(store, waiting.pop(0), folders_limit)
        done += children
        waiting += names
    return sorted(done + waiting)


def _split_folder(store: ObjectStore, prefix: str, folders_limit: int) -> tuple[list[str], list[str]]:
    """Return the parts in a folder that are not split further, and folders that may be."""
    done: list[str] = []
    folders: list[str] = []
    beginnings = _CommonBeginning()
    for folder in store.list_folders(prefix):
        name = folder[len(prefix) :]
        if name.startswith("_"):
            # The folder is itself a repository. Its other subfolders, such as uploads, have no links.
            done += [prefix + links for links in (*LINK_FOLDERS.values(), TAGS) if links.startswith(name)]
            continue
        beginnings.add(name)
        if len(folders) <= folders_limit:
            folders.append(folder)
    if len(folders) <= folders_limit:
        return done, folders
    return done + [prefix + beginning for beginning in beginnings.list_beginnings()], []


class _CommonBeginning:
    """The common beginning of names, and each letter that follows it. Memory does not grow with the names."""

    def __init__(self) -> None:
        self._common: str | None = None
        self._characters: set[str] = set()

    def add(self, name: str) -> None:
        """Add a name. It ends with a slash, so that none is the beginning of another."""
        if self._common is None:
            self._common = name
        pairs = zip(self._common, name, strict=False)
        differ = next((at for at, (one, other) in enumerate(pairs) if one != other), len(self._common))
        if differ < len(self._common):
            self._characters = {self._common[differ]}
        self._common = name[:differ]
        self._characters.add(name[differ : differ + 1])

    def list_beginnings(self) -> list[str]:
        return [(self._common or "") + character for character in self._characters]
