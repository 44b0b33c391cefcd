"""All kinds of pods, made from the settings of a process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Self

from coordinator.domain.names import Digest, PodName
from coordinator.domain.pods import PodKind
from coordinator.gc.claims import PodClaims
from coordinator.kinds.gitlab import GitlabPods
from coordinator.kinds.kind import Kind, MountParts, Services
from coordinator.kinds.link import LinkPods
from coordinator.kinds.relay import RelayPods
from coordinator.mounts.linker import BlobLinker
from coordinator.pods.of_kind import PodOfKind
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.settings import Settings
from coordinator.storage.port import ObjectStore

#: One class for each member of `PodKind`.
KINDS: Final[Sequence[type[Kind]]] = (LinkPods, RelayPods, GitlabPods)

#: Returns all pods.
ReadPods = Callable[[], Sequence[PodOfKind]]


class Kinds:
    """The kinds of one process; for several threads."""

    def __init__(self, settings: Settings, store: ObjectStore, kinds: Sequence[type[Kind]] = KINDS) -> None:
        self._bucket_links = BucketLinks(store)
        services = Services(settings, store, self._bucket_links)
        self._kinds: Mapping[PodKind, Kind] = {each.kind: each(services) for each in kinds}
        self.links = Links(self._bucket_links, {kind: each.read_links for kind, each in self._kinds.items()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for each in self._kinds.values():
            each.close()
        self._bucket_links.close()

    def still_holds(self, pod: PodOfKind) -> bool:
        """Return whether the pod has anything that keeps a blob; raises UnavailableError."""
        return self._kinds[pod.kind].still_holds(pod)

    def make_linkers(self, parts: MountParts) -> dict[PodKind, BlobLinker]:
        return {kind: each.make_linker(parts) for kind, each in self._kinds.items()}

    def make_claims(self, read_pods: ReadPods) -> "KindClaims":
        return KindClaims(self._kinds, read_pods)


class KindClaims:
    """The claims of all pods (gc/claims.py)."""

    def __init__(self, kinds: Mapping[PodKind, Kind], read_pods: ReadPods) -> None:
        self._kinds = kinds
        self._read_pods = read_pods

    def find_claims(self, blobs: Sequence[Digest]) -> Mapping[Digest, PodName]:
        if not blobs:
            return {}
        return {
            digest: pod.name for pod in self._read_pods() for digest in self._kinds[pod.kind].find_claimed(pod, blobs)
        }

    def read_claims(self) -> Iterator[PodClaims]:
        """Yield what each registry claims that claims anything."""
        yield from filter(None, (self._kinds[pod.kind].read_claims(pod) for pod in self._read_pods()))
