"""What a history of events comes to, worked out with plain sets: the reading that the table is held against.

Shares nothing with the code under test: it neither knows times nor margins, and takes the events in the order in which
they happened, each repository's own in sequence. Histories of several repositories may be interleaved in any way.
Not here: doubt. A delete of a digest that a repository has both as a manifest and as a blob changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.records import RegistryEvent

_BLOB = "application/octet-stream"
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}


@dataclass(frozen=True, slots=True)
class Counts:
    """What the refcount API says of one digest."""

    reference_count: int = 0
    link_count: int = 0
    repositories: frozenset[str] = frozenset()
    pods: frozenset[str] = frozenset()


@dataclass(slots=True)
class Oracle:
    """Feed it with `take`. `contents` tells what manifests list where no event says it."""

    contents: dict[str, set[str]] = field(default_factory=dict)
    #: Manifests that were ever pushed, and those of them that are indexes.
    manifests: set[str] = field(default_factory=set)
    indexes: set[str] = field(default_factory=set)
    #: (repository, digest) pairs: of what the repository has a link.
    holdings: set[tuple[str, str]] = field(default_factory=set)
    links: set[tuple[str, str]] = field(default_factory=set)
    #: Which pod speaks of a repository.
    pods: dict[str, str] = field(default_factory=dict)
    #: Every digest that was ever pushed, mounted or listed.
    digests: set[str] = field(default_factory=set)

    def take(self, events: Iterable[RegistryEvent]) -> "Oracle":
        for event in events:
            self._take(event)
        return self

    def held(self) -> set[tuple[str, str]]:
        """(repository, digest) pairs of what repositories need as manifests: holdings, and children of indexes."""
        held: set[tuple[str, str]] = set()
        new = set(self.holdings)
        while new:
            held |= new
            children = {
                (repository, child)
                for repository, manifest in new
                if manifest in self.indexes
                for child in self.contents.get(manifest, set()) & self.manifests
            }
            new = children - held
        return held

    def counts(self) -> Mapping[str, Counts]:
        """The counts of every digest that was ever named, also of those that nothing references."""
        needed: dict[str, list[str]] = {digest: [] for digest in self.digests}
        for repository, manifest in self.held():
            for digest in {manifest} | self.contents.get(manifest, set()):
                needed[digest].append(repository)
        linked: dict[str, list[str]] = {digest: [] for digest in self.digests}
        for repository, blob in self.links:
            linked[blob].append(repository)
        return {
            digest: Counts(
                len(needed[digest]),
                len(linked[digest]),
                frozenset(needed[digest] + linked[digest]),
                frozenset(self.pods[repository] for repository in needed[digest] + linked[digest]),
            )
            for digest in self.digests
        }

    def _take(self, event: RegistryEvent) -> None:
        repository, digest = event.repository, event.digest
        if event.action == "rename":
            self._rename(event)
        elif event.action == "delete":
            if digest is not None:
                self._delete(repository, digest)
            elif event.tag is None:
                self.holdings = {pair for pair in self.holdings if pair[0] != repository}
                self.links = {pair for pair in self.links if pair[0] != repository}
        elif digest is not None:
            self.pods[repository] = event.pod
            self.digests.add(digest)
            if event.action == "mount" or event.media_type == _BLOB:
                self.links.add((repository, digest))
            else:
                listed = {reference.digest for reference in event.references or ()}
                self.contents.setdefault(digest, set()).update(listed - {digest})
                self.digests |= self.contents[digest]
                self.holdings.add((repository, digest))
                self.manifests.add(digest)
                if event.media_type in _INDEXES:
                    self.indexes.add(digest)

    def _delete(self, repository: str, digest: str) -> None:
        pair = (repository, digest)
        if not (pair in self.holdings and pair in self.links):
            self.holdings.discard(pair)
            self.links.discard(pair)

    def _rename(self, event: RegistryEvent) -> None:
        rename = event.rename
        assert rename is not None

        def renamed(name: str) -> str:
            below = name.startswith(rename.source + "/")
            return rename.destination + name[len(rename.source) :] if below or name == rename.source else name

        self.holdings = {(renamed(name), digest) for name, digest in self.holdings}
        self.links = {(renamed(name), digest) for name, digest in self.links}
        self.pods = {name: pod for old, pod in self.pods.items() for name in (old, renamed(old))}
