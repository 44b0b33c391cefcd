"""What questions answer: the shapes that the refcount API and the command show.

A figure that is not known is null, never a guess. Bytes are bytes, times are the database's clock in UTC.
"""

import datetime as dt
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from coordinator.domain.lifecycle import BlobState

StateName = Literal["live", "unreferenced", "hidden", "purged", "missing"]
STATES: dict[int, StateName] = {
    BlobState.LIVE: "live",
    BlobState.UNREFERENCED: "unreferenced",
    BlobState.HIDDEN: "hidden",
    BlobState.PURGED: "purged",
    BlobState.MISSING: "missing",
}
STATE_NUMBERS = {name: number for number, name in STATES.items()}

Next = Annotated[
    str | None,
    Meta(description="Pass it as `cursor` for the next page; null after the last. A page may be short."),
]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Something shown to a user."""


class BlobSummary(View, frozen=True, kw_only=True):
    digest: str
    size: Annotated[int | None, Meta(description="Bytes; null while no registry has said.")]
    state: StateName
    reference_count: Annotated[int, Meta(description="Holdings that need it.")]
    link_count: Annotated[int, Meta(description="Repositories whose direct link to it still counts.")]
    first_seen: dt.datetime
    unreferenced_since: dt.datetime | None
    pinned: bool


class Blob(View, frozen=True, kw_only=True):
    digest: str
    size: Annotated[int | None, Meta(description="Bytes; null while no registry has said.")]
    state: StateName
    reference_count: Annotated[int, Meta(description="Holdings that need it.")]
    link_count: Annotated[int, Meta(description="Repositories whose direct link to it still counts.")]
    repository_count: Annotated[int, Meta(description="Distinct repositories that need or link it.")]
    pods: Annotated[list[str], Meta(description="Pods of those repositories, sorted.")]
    first_seen: dt.datetime
    unreferenced_since: dt.datetime | None
    pinned: bool
    counted_at: Annotated[
        dt.datetime,
        Meta(description="When repository_count and pods were exact: now, but for blobs with thousands of references."),
    ]


class BlobPage(View, frozen=True, kw_only=True):
    items: list[BlobSummary]
    next: Next
    counted_at: Annotated[
        dt.datetime | None, Meta(description="When the order was found, where that was before this question.")
    ] = None


class Reference(View, frozen=True, kw_only=True):
    pod: str
    repository: str
    manifest: str
    kind: Literal["config", "layer", "child", "self"]
    since: Annotated[dt.datetime, Meta(description="When the repository got the manifest, by its registry.")]


class ReferencePage(View, frozen=True, kw_only=True):
    items: list[Reference]
    next: Next


class Repository(View, frozen=True, kw_only=True):
    name: str
    pod: str
    manifests: Annotated[int, Meta(description="Manifests that it holds.")]
    blobs: Annotated[
        int | None,
        Meta(description="Distinct blobs that it needs or links, manifests included. In lists null where costly."),
    ]
    logical_bytes: Annotated[int | None, Meta(description="Sum of those blobs' sizes.")]
    unique_bytes: Annotated[int | None, Meta(description="Of those that no other repository needs or links.")]


class RepositoryPage(View, frozen=True, kw_only=True):
    items: list[Repository]
    next: Next


class Gaps(View, frozen=True, kw_only=True):
    open: Annotated[int, Meta(description="Ranges in which events may have been lost, not settled yet.")]
    oldest: dt.datetime | None


class Pod(View, frozen=True, kw_only=True):
    name: str
    mode: Literal["manifest", "link"]
    linker: Literal["link", "relay"]
    prefixes: list[str]
    registries: list[str]
    created_at: dt.datetime
    repositories: int
    gaps: Gaps
    dead_letters: Annotated[int, Meta(description="Open ones.")]
    doubtful_removals: int
    unread_manifests: Annotated[int, Meta(description="Held manifests whose content could not be read yet.")]
    held_by: Annotated[list[str], Meta(description="Why garbage collection may not run for this pod.")]


class PodPage(View, frozen=True, kw_only=True):
    items: list[Pod]
    next: Next


class DeadLetterSummary(View, frozen=True, kw_only=True):
    id: int
    pod: str
    reason: str
    detail: str
    received_at: dt.datetime
    payload_bytes: int
    content_type: str
    settlement: Literal["retried", "discarded"] | None
    settled_at: dt.datetime | None
    settled_why: str | None


class DeadLetter(DeadLetterSummary, frozen=True, kw_only=True):
    payload: Annotated[str, Meta(description="What was sent, as text; cut if shorter than payload_bytes.")]
    origin: Annotated[str, Meta(description="Where its record stands: topic/partition/offset.")]


class DeadLetterPage(View, frozen=True, kw_only=True):
    items: list[DeadLetterSummary]
    next: Next
