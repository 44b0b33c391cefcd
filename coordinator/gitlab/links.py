"""The links of a pod whose registry keeps them in GitLab's metadata database, with the keys of distribution.

A manifest's row is a link of its repository's revisions, a row of `repository_blobs` one of its layers. So a reconcile
compares such a pod like any other, and only this module knows that its links are rows. Tags are left out: here a tag
names a manifest that has a row of its own.
The time of a link is that of its row. The registry sends the event of a blob before it writes the row, and that of a
manifest after the row is committed: so a missing row proves that there is no manifest, and nothing about a blob that
was pushed just now, whose link counts for a grace period in any case.
Bytes of manifests are in the rows, too; all others in the shared bucket.
Not here: what a link, or its absence, means (reconcile).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.gitlab.database import GitlabDatabase, Repository
from coordinator.storage.layout import (
    LINK_FOLDERS,
    REPOSITORIES,
    link_key,
    parse_link_folder,
    parse_link_name,
    repository_prefix,
)
from coordinator.storage.manifests import StoredManifest, parse_stored_manifest
from coordinator.storage.port import ObjectInfo

#: Bytes of a link object: the digest's text.
_LINK_SIZE = len("sha256:") + 64

#: A worker asks between batches of events, which wait for it.
ANSWER_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0

Prefixes = tuple[RepositoryName, ...]
Named = tuple[RepositoryName, Digest]


class GitlabLinks:
    """The links of one pod; for several threads."""

    def __init__(self, database: GitlabDatabase) -> None:
        self._database = database

    def close(self) -> None:
        """The caller that opened the database closes it."""

    def check(self) -> None:
        self._database.ask_within(self._database.check, ANSWER_TIMEOUT_S)

    def plan(self, prefixes: Sequence[RepositoryName], wanted: int) -> list[str]:
        """Return a part for each prefix: one connection reads them one after another."""
        return sorted(map(repository_prefix, prefixes))

    def walk(self, part: str) -> Iterator[ObjectInfo]:
        """Yield the links of a prefix's repositories, or those of one folder of a repository."""
        name, own, folder = part.removeprefix(REPOSITORIES).partition("/_")
        for repository in self._read_repositories(RepositoryName(name.rstrip("/")), exactly=bool(own)):
            for kind in (LinkKind.LAYER, LinkKind.REVISION):
                if not own or LINK_FOLDERS[kind].startswith(f"_{folder}"):
                    for row in self._database.read_links(repository, kind):
                        yield _make_info(link_key(repository.path, kind, row.digest), row.created_at)

    def find(self, keys: Sequence[str], timeout_s: float | None = None) -> list[ObjectInfo | None]:
        named = [_parse_link(key) for key in keys]
        asked = list(dict.fromkeys(link[1:] for link in named if link is not None))
        links = self._database.ask_or_skip(lambda: self._database.find_links(asked), timeout_s) if asked else []
        found = dict(zip(asked, links, strict=True))
        times = [None if link is None else found[link[1:]].of(link[0]) for link in named]
        return [None if time is None else _make_info(key, time) for key, time in zip(keys, times, strict=True)]

    def find_proved(
        self, places: Iterable[Prefixes], named: Collection[RepositoryName] = (), timeout_s: float | None = None
    ) -> set[Prefixes]:
        asked = list(dict.fromkeys(places))
        return self._database.ask_or_skip(lambda: set(filter(self._database.has_link, asked)), timeout_s)

    def has_objects(self, prefixes: Sequence[RepositoryName]) -> bool:
        """Only links prove something here: what else is in the database says nothing of the pod."""
        return self._database.has_link(prefixes)

    def read_manifests(self, named: Collection[Named]) -> dict[Digest, StoredManifest]:
        found = self._database.ask_within(lambda: self._database.read_manifests(named), READ_TIMEOUT_S)
        return {
            digest: parse_stored_manifest(digest, found[digest])
            if digest in found
            else StoredManifest(
                None, None, could_be=False, why=f"The registry has no manifest {format_digest(digest)}."
            )
            for _, digest in named
        }

    def read_targets(self, keys: Sequence[str]) -> list[tuple[Digest, ObjectInfo] | None]:
        """Such links are not kept: the registry stores every blob by its sha256."""
        return [None] * len(keys)

    def _read_repositories(self, name: RepositoryName, *, exactly: bool) -> Iterator[Repository]:
        if not exactly:
            return self._database.read_repositories(name)
        found = self._database.read_repository(name)
        return iter(() if found is None else (found,))


def _parse_link(key: str) -> tuple[LinkKind, RepositoryName, Digest] | None:
    parsed = parse_link_folder(key)
    digest = None if parsed is None else parse_link_name(key[len(parsed[0]) :])
    return None if parsed is None or digest is None else (parsed[1].kind, parsed[1].repository, digest)


def _make_info(key: str, at: datetime) -> ObjectInfo:
    return ObjectInfo(key, _LINK_SIZE, at)
