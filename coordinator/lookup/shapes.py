"""The shapes of blobs, references, repositories and histories in answers of the API. Sizes are in bytes."""

import datetime as dt
from typing import Annotated, Any, Literal

from msgspec import Meta

from coordinator.db.shapes import Next, View
from coordinator.domain.gc import Why
from coordinator.domain.history import Outlook
from coordinator.domain.lifecycle import StateName
from coordinator.gc.shapes import LedgerEntry, Pin


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
        dt.datetime | None, Meta(description="When the order was computed, if that was before this request.")
    ] = None


class Reference(View, frozen=True, kw_only=True):
    pod: str
    repository: str
    manifest: str
    kind: Literal["config", "layer", "child", "self"]
    since: Annotated[dt.datetime, Meta(description="When the repository got the manifest, by its registry.")]
    implied: Annotated[
        bool, Meta(description="The repository has no link of the manifest: an index that it holds lists it.")
    ]


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


class Reason(View, frozen=True, kw_only=True):
    """One reason for keeping a blob."""

    why: Why
    detail: str
    until: Annotated[dt.datetime | None, Meta(description="When the reason ends; null if that is not known.")]


class DirectLink(View, frozen=True, kw_only=True):
    pod: str
    repository: str
    linked_at: dt.datetime
    counts_until: Annotated[dt.datetime | None, Meta(description="Null: until a delete event (pods of mode `link`).")]


class MountMade(View, frozen=True, kw_only=True):
    """A mount of the last days."""

    at: dt.datetime
    repository: str
    source: Annotated[str, Meta(description="The repository that the blob was mounted from.")]


class OpenHide(View, frozen=True, kw_only=True):
    """A hide that has not ended."""

    id: int
    run: int
    intended_at: dt.datetime
    hidden_at: dt.datetime | None
    purging_at: dt.datetime | None
    bytes: Annotated[int | None, Meta(description="Size of what it conceals.")]
    asked_at: Annotated[dt.datetime | None, Meta(description="When an operator asked for it back.")]
    asked_why: str | None


class Chapter(LedgerEntry, frozen=True, kw_only=True):
    """An entry of a blob's history, with the evidence for the decision."""

    evidence: dict[str, Any]


class Explanation(View, frozen=True, kw_only=True):
    digest: str
    state: StateName
    size: Annotated[int | None, Meta(description="Bytes; null while it is not known.")]
    outcome: Annotated[Outlook, Meta(description="The blob's present state, in a word.")]
    summary: Annotated[str, Meta(description="The same as a sentence.")]
    reasons: Annotated[list[Reason], Meta(description="Everything that keeps it now; empty if nothing does.")]
    sentences: Annotated[list[str], Meta(description="Its history in sentences, the newest last.")]
    reference_count: int
    link_count: int
    repository_count: int
    pods: list[str]
    references: Annotated[list[Reference], Meta(description="Some of the holdings that need it.")]
    links: Annotated[list[DirectLink], Meta(description="Some of the repositories that link it directly.")]
    mounts: Annotated[list[MountMade], Meta(description="The last mounts of it, the newest first.")]
    first_seen: dt.datetime
    unreferenced_since: dt.datetime | None
    pin: Pin | None
    hide: OpenHide | None
    history: Annotated[list[Chapter], Meta(description="Its entries in the ledger, the newest last.")]
    earlier: Annotated[bool, Meta(description="The ledger has older entries that are left out.")]
