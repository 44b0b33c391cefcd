"""Push one of each kind that a registry reports: manifests and indexes of both families, and a mount.

A registry can be configured to ignore events by action and by media type: the event of one kind says nothing of
another kind.

Route: `push_kinds` (at one place: all kinds; then a last blob into each repository) -> `make_kinds_report` (their
events).
Not here: what it proves (events.py), the push of a whole image (visit.py).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from coordinator.doctor.scratch import Announcement, Scratch
from coordinator.domain.names import RepositoryName
from coordinator.kafka.tail import TailedRecord
from coordinator.registry.client import RegistryError
from coordinator.registry.images import DOCKER, OCI, Image, Index

if TYPE_CHECKING:
    from coordinator.doctor.visit import Place

#: Names of the manifests and indexes of each family in proofs.
FAMILIES: Final = {OCI: ("manifest", "index"), DOCKER: ("docker manifest", "docker manifest list")}
MOUNT: Final = "mount"
#: The media type in the event of any blob.
OCTETS: Final = "application/octet-stream"


class PushedKinds(NamedTuple):
    """What was done at one place. A process sends its events in order, so those of `lasts` prove the others."""

    place: "Place"
    manifests: dict[str, Image | Index]
    #: By kind. Without the mount if the registry does not mount.
    done: dict[str, Announcement]
    #: A blob in each repository, pushed last: events of one repository are read in order.
    lasts: dict[RepositoryName, Announcement]
    #: Why it ended early; None if it did not.
    error: str | None = None


class KindsReport(NamedTuple):
    """The events of all that: the first record of each."""

    kinds: PushedKinds
    entries: Mapping[str, TailedRecord]
    lasts: Mapping[RepositoryName, TailedRecord]

    @property
    def missing(self) -> list[str]:
        return [kind for kind in self.kinds.done if kind not in self.entries]

    @property
    def overdue(self) -> list[str]:
        """Kinds whose events will not come: the one process that sends events has sent those of something later."""
        processes = {entry.record.process for entry in (*self.entries.values(), *self.lasts.values())}
        if len(processes) != 1:
            return []
        return [kind for kind in self.missing if self.kinds.done[kind].repository in self.lasts]

    @property
    def is_over(self) -> bool:
        """Whether no more events are to come."""
        return self.missing == self.overdue and self.lasts.keys() == self.kinds.lasts.keys()


def push_kinds(scratch: Scratch, place: "Place") -> PushedKinds:
    """Push and mount one of each kind; an error is in the result."""
    client, layer = place.client, scratch.make_layer()
    kinds = PushedKinds(place, {}, {}, {})
    try:
        scratch.push_blob(client, layer)
        for family, names in FAMILIES.items():
            image = scratch.make_image([layer], family)
            scratch.push_blob(client, image.config)
            kinds.manifests.update(zip(names, (image, scratch.make_index([image], family)), strict=True))
        for kind, manifest in kinds.manifests.items():
            scratch.put_manifest(client, manifest)
            kinds.done[kind] = Announcement("push", scratch.repository, manifest.digest)
        if scratch.mount(client, layer):
            kinds.done[MOUNT] = Announcement("mount", scratch.other, layer.digest)
        for repository in dict.fromkeys(each.repository for each in kinds.done.values()):
            last = scratch.make_layer()
            scratch.push_blob(client, last, repository)
            kinds.lasts[repository] = Announcement("push", repository, last.digest)
    except RegistryError as error:
        return kinds._replace(error=str(error))
    return kinds


def make_kinds_report(kinds: PushedKinds, find_event: Callable[[Announcement], TailedRecord | None]) -> KindsReport:
    entries = {kind: found for kind, each in kinds.done.items() if (found := find_event(each)) is not None}
    lasts = {name: found for name, each in kinds.lasts.items() if (found := find_event(each)) is not None}
    return KindsReport(kinds, entries, lasts)


def listed_digests(manifest: Image | Index) -> set[str]:
    """The digests that a manifest or an index lists."""
    return {each.digest for each in (manifest.manifests if isinstance(manifest, Index) else manifest.blobs)}
