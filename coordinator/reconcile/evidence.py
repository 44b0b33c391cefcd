"""Whether a pod keeps its links in this bucket and root: only there does an absent link prove anything.

Only a link is evidence. An unfinished upload is none: a registry that keeps its links in a database of its own leaves
one in the bucket, too. Bytes are none: other pods share them.
The search is bounded, and none of its places is one that clients can fill with uploads alone: the link that was found
the last time, the prober's image, some repositories that the caller names, then the first page below each prefix. A
link that it does not find is not proved to be absent: the caller removes nothing then.
"""

from collections.abc import Collection, Sequence
from itertools import islice

from coordinator.domain.names import RepositoryName
from coordinator.domain.own import PROBE_REPOSITORY
from coordinator.storage.layout import REPOSITORIES, is_link, link_folders, repository_prefix
from coordinator.storage.port import LIST_LIMIT, ObjectReader

#: Repositories that a caller names and that are searched.
NAMED_LIMIT = 4


class Evidence:
    """Remembers of each set of prefixes where it found a link. Safe to use from several threads."""

    def __init__(self, store: ObjectReader) -> None:
        self._store = store
        self._found: dict[Sequence[RepositoryName], str] = {}

    def has_link(self, prefixes: tuple[RepositoryName, ...], named: Collection[RepositoryName] = ()) -> bool:
        """Return whether a link of the pod with these prefixes was found. Raises UnavailableError.

        `named`: repositories in which there may be one; those of other pods are left out.
        """
        known = self._found.get(prefixes)
        if known is not None and self._first_link(known, 1) is not None:
            return True
        found = self._search(prefixes, named)
        if found is not None:
            self._found[prefixes] = found
        return found is not None

    def _search(self, prefixes: tuple[RepositoryName, ...], named: Collection[RepositoryName]) -> str | None:
        beginnings = tuple(map(repository_prefix, prefixes))
        owned = (each for each in named if repository_prefix(each).startswith(beginnings))
        # Probes use the first prefix by name.
        probes = [RepositoryName(f"{prefix}/{PROBE_REPOSITORY}") for prefix in sorted(prefixes)[:1]]
        for repository in (*probes, *islice(owned, NAMED_LIMIT)):
            for folder in link_folders(repository):
                if (found := self._first_link(folder, 1)) is not None:
                    return found
        for beginning in beginnings:
            if (found := self._first_link(beginning, LIST_LIMIT)) is not None:
                return found
        return None

    def _first_link(self, beginning: str, limit: int) -> str | None:
        assert beginning.startswith(REPOSITORIES)
        return next((entry.key for entry in self._store.list(beginning, limit=limit) if is_link(entry.key)), None)
