"""Which pod owns a repository: pods own name prefixes, and no two prefixes overlap.

Prefix `team` owns `team` and `team/…`, never `teams`.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from coordinator.domain.names import PodName, RepositoryName
from coordinator.errors import ConflictError


class PodMode(StrEnum):
    """What keeps a blob alive in a pod."""

    #: Manifests do; a direct link counts only for a grace period, as its removal is hardly ever announced.
    MANIFEST = "manifest"
    #: Links count until a delete event: for registries that emit only blob pushes and deletes.
    LINK = "link"


class Linker(StrEnum):
    """How a pod learns of a blob that was mounted for it."""

    #: The pod's link object is written in shared storage (distribution's layout).
    LINK = "link"
    #: The blob is pushed to the pod through the upload API; the pod's links are not in shared storage.
    RELAY = "relay"


def prefixes_of(repository: RepositoryName) -> list[str]:
    """Every prefix that would own the repository, the longest first: `a/b/c`, `a/b`, `a`."""
    parts = repository.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def owner_of(repository: RepositoryName, owners: Mapping[str, PodName]) -> PodName | None:
    """Return the pod whose prefix owns the repository, or None; `owners` maps prefix to pod."""
    for prefix in prefixes_of(repository):
        if (pod := owners.get(prefix)) is not None:
            return pod
    return None


def check_prefixes(wanted: Iterable[RepositoryName], owners: Mapping[str, PodName]) -> None:
    """Raise ConflictError if a wanted prefix contains, or lies in, one that is already owned."""
    taken = dict(owners)
    for prefix in wanted:
        for other, pod in taken.items():
            if prefix == other or prefix.startswith(f"{other}/") or other.startswith(f"{prefix}/"):
                raise ConflictError(f"Prefix {prefix!r} overlaps {other!r} of pod {pod}: choose another.")
        taken[prefix] = PodName("this request")
