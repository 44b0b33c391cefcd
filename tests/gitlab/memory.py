"""The rows of a GitLab registry's metadata database, in memory: what Baleen asks, and what a registry writes.

For tests that decide what happens when. Questions are those of coordinator/gitlab/database.py, with the same contract
(test_memory.py). A write is one transaction, and returns whether the database accepts it: a link needs a row in
`blobs`, a manifest the links of what it lists, and a manifest that an index lists stays.
Not here: how a registry behaves (tests/simulation/gitlab.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName
from coordinator.gitlab.database import MANIFESTS_PAGE, PAGE, LinkTimes, Named, Repository, Row

T = TypeVar("T")

#: A repository's id and a digest.
Key = tuple[int, Digest]


class Manifest(NamedTuple):
    row: Row
    payload: bytes
    #: Its configuration and layers; of an index, its children.
    blobs: frozenset[Digest]
    children: frozenset[Digest]


class Blob(NamedTuple):
    created_at: datetime
    #: Since when no manifest lists it; None while one does.
    unlisted_since: datetime | None


class MemoryGitlabDatabase:
    def __init__(
        self, now: Callable[[], datetime] = lambda: datetime.now(UTC), *, page: int = PAGE, before: Any = lambda: None
    ) -> None:
        """`before` is called before each question, and may raise UnavailableError."""
        self._now = now
        self._page = page
        self._before = before
        #: Grows with every write.
        self.changes = 0
        self.load(({}, {}, {}, {}, 0))

    def save(self) -> tuple[Any, ...]:
        return dict(self.repositories), dict(self.blobs), dict(self.links), dict(self.manifests), self._last

    def load(self, saved: tuple[Any, ...]) -> None:
        self.repositories: dict[RepositoryName, Repository] = dict(saved[0])
        self.blobs: dict[Digest, Blob] = dict(saved[1])
        self.links: dict[Key, Row] = dict(saved[2])
        self.manifests: dict[Key, Manifest] = dict(saved[3])
        self._last: int = saved[4]

    # What Baleen asks

    def close(self) -> None:
        pass

    def check(self) -> None:
        self._before()

    def ask_within(self, ask: Callable[[], T], timeout_s: float | None) -> T:  # noqa: ARG002 - time is simulated
        return ask()

    def ask_or_skip(self, ask: Callable[[], T], timeout_s: float | None) -> T:
        return self.ask_within(ask, timeout_s)

    def read_repository(self, path: RepositoryName) -> Repository | None:
        self._before()
        return self.repositories.get(path)

    def read_repositories(self, prefix: RepositoryName) -> Iterator[Repository]:
        return self._read_pages(
            lambda: [each for path, each in self.repositories.items() if f"{path}/".startswith(f"{prefix}/")]
        )

    def read_links(self, repository: Repository, kind: LinkKind) -> Iterator[Row]:
        def read() -> list[Row]:
            if kind is LinkKind.LAYER:
                return [row for (number, _), row in self.links.items() if number == repository.id]
            return [each.row for (number, _), each in self.manifests.items() if number == repository.id]

        return self._read_pages(read)

    def find_links(self, named: Sequence[Named]) -> list[LinkTimes]:
        self._before()
        return [LinkTimes(self._time(self.manifest(*each)), self._time(self.link(*each))) for each in named]

    def has_link(self, prefixes: Collection[RepositoryName]) -> bool:
        return any(
            next(self.read_links(repository, kind), None) is not None
            for prefix in prefixes
            for repository in self.read_repositories(prefix)
            for kind in LinkKind
        )

    def read_manifests(self, named: Collection[Named]) -> dict[Digest, bytes]:
        found: dict[Digest, bytes] = {}
        asked = list(named)
        for first in range(0, len(asked), MANIFESTS_PAGE):
            self._before()
            for path, digest in asked[first : first + MANIFESTS_PAGE]:
                if (manifest := self.manifest(path, digest)) is not None:
                    found[digest] = manifest.payload
        return found

    def find_known(self, digests: Sequence[Digest]) -> set[Digest]:
        self._before()
        return {digest for digest in digests if digest in self.blobs}

    def _read_pages(self, read: Callable[[], list[Any]]) -> Iterator[Any]:
        after = 0
        while True:
            self._before()
            found = sorted((each for each in read() if each.id > after), key=lambda each: each.id)[: self._page]
            yield from found
            if len(found) < self._page:
                return
            after = found[-1].id

    @staticmethod
    def _time(found: Manifest | Row | None) -> datetime | None:
        if found is None:
            return None
        return found.row.created_at if isinstance(found, Manifest) else found.created_at

    # What a registry reads

    def manifest(self, path: RepositoryName, digest: Digest) -> Manifest | None:
        repository = self.repositories.get(path)
        return None if repository is None else self.manifests.get((repository.id, digest))

    def link(self, path: RepositoryName, digest: Digest) -> Row | None:
        repository = self.repositories.get(path)
        return None if repository is None else self.links.get((repository.id, digest))

    def held(self) -> Iterator[tuple[RepositoryName, Manifest]]:
        """Give all manifests, with their repositories."""
        paths = {each.id: path for path, each in self.repositories.items()}
        return ((paths[number], manifest) for (number, _), manifest in self.manifests.items())

    def is_child(self, path: RepositoryName, digest: Digest) -> bool:
        return any(where == path and digest in manifest.children for where, manifest in self.held())

    # What it writes

    def add_repository(self, path: RepositoryName) -> Repository:
        if path not in self.repositories:
            self.repositories[path] = Repository(path, 1, self._number())
        return self.repositories[path]

    def add_blob(self, digest: Digest, at: datetime | None = None) -> None:
        self.changes += 1
        at = at or self._now()
        self.blobs.setdefault(digest, Blob(at, at))

    def add_link(self, path: RepositoryName, digest: Digest, at: datetime | None = None) -> bool:
        if digest not in self.blobs:
            return False
        self.changes += 1
        key = self.add_repository(path).id, digest
        if key not in self.links:
            self.links[key] = Row(self._number(), digest, at or self._now(), 0)
        return True

    def add_manifest(
        self,
        path: RepositoryName,
        digest: Digest,
        payload: bytes,
        blobs: Collection[Digest] = (),
        children: Collection[Digest] = (),
    ) -> bool:
        lacking = [each for each in blobs if self.link(path, each) is None]
        lacking += [each for each in children if self.manifest(path, each) is None]
        if lacking:
            return False
        self.changes += 1
        key = self.add_repository(path).id, digest
        if key not in self.manifests:
            row = Row(self._number(), digest, self._now(), len(payload))
            self.manifests[key] = Manifest(row, payload, frozenset(blobs), frozenset(children))
            for each in blobs:
                self.blobs[each] = self.blobs[each]._replace(unlisted_since=None)
        return True

    def remove_link(self, path: RepositoryName, digest: Digest) -> bool:
        self.changes += 1
        return self.links.pop((self.add_repository(path).id, digest), None) is not None

    def remove_manifest(self, path: RepositoryName, digest: Digest) -> bool:
        if self.manifest(path, digest) is None or self.is_child(path, digest):
            return False
        self.changes += 1
        removed = self.manifests.pop((self.add_repository(path).id, digest))
        listed = {each for manifest in self.manifests.values() for each in manifest.blobs}
        for each in removed.blobs - listed:
            self.blobs[each] = self.blobs[each]._replace(unlisted_since=self._now())
        return True

    def remove_blob(self, digest: Digest) -> bool:
        """Remove the row of a blob, and with it its links; False while a manifest lists it."""
        if digest not in self.blobs or self.blobs[digest].unlisted_since is None:
            return False
        self.changes += 1
        del self.blobs[digest]
        self.links = {key: row for key, row in self.links.items() if key[1] != digest}
        return True

    def _number(self) -> int:
        self._last += 1
        return self._last
