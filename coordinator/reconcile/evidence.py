"""Find evidence that a pod keeps its links in this bucket and root: else an absent link proves nothing.

Only a link is evidence. An unfinished upload is not: a registry that keeps its links in its own database leaves uploads
in the bucket, too. Bytes are not: pods share them.
The search is bounded, and clients cannot fill all its places with uploads alone: the link that was found the last time,
the prober's image, some repositories that the caller names, then the first page below each prefix. If it finds no link,
that proves no absence: the caller then removes nothing.
"""

from collections.abc import Collection, Sequence
from itertools import islice

from coordinator.domain.names import RepositoryName
from coordinator.domain.own import PROBE_REPOSITORY
from coordinator.storage.layout import REPOSITORIES, is_link, link_folders, repository_prefix
from coordinator.storage.port import LIST_LIMIT, ObjectReader

#: Repositories of those named by the caller that are searched.
NAMED_LIMIT = 4


class Evidence:
    """Searches for links; remembers the last one found for each set of prefixes. Safe to use from several threads."""

    def __init__(self, store: ObjectReader) -> None:
        self._store = store
        self._found: dict[Sequence[RepositoryName], str] = {}

    def has_link(self, prefixes: tuple[RepositoryName, ...], named: Collection[RepositoryName] = ()) -> bool:
        """Return whether a link of the pod with these prefixes was found. Raises UnavailableError.

        `named`: repositories that may have one; those of other pods are left out.
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
