"""Read the links of a pod, wherever its registry keeps them: `PodLinks` is the interface, one class for each place.

    BucketLinks      in the shared bucket
    GitlabLinks      rows of the metadata database of GitLab's registry (coordinator/gitlab/links.py)

A link has the key that distribution gives it (storage/layout.py), also where it is a row of a database.
Not here: what a link, or its absence, means (compare.py, resolve.py).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

from coordinator.domain.names import Digest, PodName, RepositoryName, parse_digest
from coordinator.domain.pods import PodKind
from coordinator.errors import InvalidNameError, UnavailableError, UsageError
from coordinator.reconcile.evidence import Evidence
from coordinator.reconcile.plan import plan_parts
from coordinator.storage.layout import repository_prefix
from coordinator.storage.manifests import StoredManifest, read_stored_manifest
from coordinator.storage.port import ObjectInfo, ObjectNotFoundError, ObjectStore

LOOKUPS_AT_ONCE: Final = 16
#: Largest content of a link, which is a digest.
LINK_BYTES: Final = 300

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Below one of these names there is a link, if the pod keeps its links there.
Prefixes = tuple[RepositoryName, ...]
#: A manifest that a repository may have.
Named = tuple[RepositoryName, Digest]


class PodLinks(Protocol):
    """The links of a pod; for several threads. Each call has a timeout, and raises UnavailableError after it."""

    def close(self) -> None: ...

    def check(self) -> None:
        """Return if the place answers; else raise."""
        ...

    def plan(self, prefixes: Sequence[RepositoryName], wanted: int) -> list[str]:
        """Return the parts of a listing, about as many as wanted: prefixes of keys, which no two parts share."""
        ...

    def walk(self, part: str) -> Iterator[ObjectInfo]:
        """Yield each object of a part, perhaps also such as are no links; those of one repository together."""
        ...

    def find(self, keys: Sequence[str], timeout_s: float | None = None) -> list[ObjectInfo | None]:
        """Return for each key its link, if there is one."""
        ...

    def find_proved(
        self, places: Iterable[Prefixes], named: Collection[RepositoryName] = (), timeout_s: float | None = None
    ) -> set[Prefixes]:
        """Return those places where a link is found; elsewhere the absence of others proves nothing (evidence.py)."""
        ...

    def has_objects(self, prefixes: Sequence[RepositoryName]) -> bool:
        """Return whether there is anything below these prefixes, links or not."""
        ...

    def read_manifests(self, named: Collection[Named]) -> dict[Digest, StoredManifest]:
        """Read manifests that these repositories hold, by their digest."""
        ...

    def read_targets(self, keys: Sequence[str]) -> list[tuple[Digest, ObjectInfo] | None]:
        """Return for each link by a digest of another algorithm the sha256 that it names, if it is there and does."""
        ...


class BucketLinks:
    """Links that are objects of the shared bucket."""

    def __init__(self, store: ObjectStore, lookups_at_once: int = LOOKUPS_AT_ONCE) -> None:
        self._store = store
        self._lookups = ThreadPoolExecutor(lookups_at_once, thread_name_prefix="links")
        #: For those with a timeout, whose caller may hold a lock: they wait for no body that is read meanwhile.
        self._urgent = ThreadPoolExecutor(lookups_at_once, thread_name_prefix="links-urgent")
        self._evidence = Evidence(store)

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._urgent.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        self._store.check()

    def plan(self, prefixes: Sequence[RepositoryName], wanted: int) -> list[str]:
        return plan_parts(self._store, prefixes, wanted)

    def walk(self, part: str) -> Iterator[ObjectInfo]:
        return self._store.walk(part)

    def find(self, keys: Sequence[str], timeout_s: float | None = None) -> list[ObjectInfo | None]:
        return self._map(self._store.head, keys, timeout_s)

    def find_proved(
        self, places: Iterable[Prefixes], named: Collection[RepositoryName] = (), timeout_s: float | None = None
    ) -> set[Prefixes]:
        asked = list(dict.fromkeys(places))
        found = self._map(lambda place: self._evidence.has_link(place, named), asked, timeout_s)
        return {place for place, there in zip(asked, found, strict=True) if there}

    def has_objects(self, prefixes: Sequence[RepositoryName]) -> bool:
        return any(self._store.list(repository_prefix(prefix), limit=1) for prefix in prefixes)

    def read_manifests(self, named: Collection[Named]) -> dict[Digest, StoredManifest]:
        digests = list(dict.fromkeys(digest for _, digest in named))
        found = self._map(lambda digest: read_stored_manifest(self._store, digest), digests)
        return dict(zip(digests, found, strict=True))

    def read_targets(self, keys: Sequence[str]) -> list[tuple[Digest, ObjectInfo] | None]:
        return self._map(self._read_target, keys)

    def _read_target(self, key: str) -> tuple[Digest, ObjectInfo] | None:
        try:
            content = self._store.get(key, limit=LINK_BYTES)
            digest = parse_digest(content.decode(errors="replace").strip())
        except (ObjectNotFoundError, UsageError, InvalidNameError):
            return None
        link = self._store.head(key)
        return None if link is None else (digest, link)

    def _map(self, ask: Callable[[_T], _R], asked: Sequence[_T], timeout_s: float | None = None) -> list[_R]:
        try:
            pool = self._lookups if timeout_s is None else self._urgent
            return list(pool.map(ask, asked, timeout=timeout_s))
        except TimeoutError as error:
            raise UnavailableError("The object store answers too slowly to look up links: try again.") from error


class Links:
    """The links of each pod: in the shared bucket, unless its kind keeps them elsewhere."""

    def __init__(
        self, bucket: PodLinks, elsewhere: Mapping[PodKind, Callable[[PodName], PodLinks]] = MappingProxyType({})
    ) -> None:
        self.bucket = bucket
        self._elsewhere = elsewhere

    def close(self) -> None:
        self.bucket.close()

    def of(self, kind: PodKind, pod: PodName) -> PodLinks:
        elsewhere = self._elsewhere.get(kind)
        return self.bucket if elsewhere is None else elsewhere(pod)
