"""The shapes of pods, their registry processes, findings and vanished links in answers of the API."""

import datetime as dt
from typing import Annotated, Literal

from msgspec import Meta

from coordinator.db.shapes import Next, View
from coordinator.domain.pods import PodKind


class Gaps(View, frozen=True, kw_only=True):
    open: Annotated[int, Meta(description="Ranges in which events may have been lost, not resolved yet.")]
    oldest: dt.datetime | None


class ProcessView(View, frozen=True, kw_only=True):
    """One process of a pod's registry."""

    instance_id: Annotated[str, Meta(description="`source.instanceID` of its events: a new one at every start.")]
    state: Annotated[
        Literal["live", "silent", "dead", "retired"],
        Meta(
            description="A dead process is proved to have ended; a silent one may be alive. Retired ones do not count."
        ),
    ]
    watermark: Annotated[
        dt.datetime | None,
        Meta(description="All its events of requests that ended before this are applied; null while not known."),
    ]
    echoed_at: Annotated[dt.datetime | None, Meta(description="When it last returned a probe.")]
    dead_since: dt.datetime | None
    dead_why: str | None
    retired_at: dt.datetime | None
    retired_why: str | None
    partitions: Annotated[dict[str, dt.datetime], Meta(description="The watermark by partition of registry.events.")]
    dead_letters: Annotated[dict[str, dt.datetime], Meta(description="The same by partition of registry.dead-letters.")]


class EndpointView(View, frozen=True, kw_only=True):
    """One address of a pod's registry, and the results of its probes."""

    url: str
    address: str
    answered_at: dt.datetime | None
    failing_since: dt.datetime | None
    error: str | None
    process: Annotated[str | None, Meta(description="The process that last returned a probe that was sent here.")]
    echoed_at: Annotated[dt.datetime | None, Meta(description="When that probe was sent.")]
    shared: Annotated[bool, Meta(description="More than one process answers here.")]


class FindingView(View, frozen=True, kw_only=True):
    """The doctor's result for one check that garbage collection relies on."""

    check: str
    result: Annotated[
        Literal["proved", "refuted", "unproved"],
        Meta(description="A check that is not proved blocks garbage collection."),
    ]
    meaning: str
    proof: Annotated[str, Meta(description="The evidence.")]
    fix: Annotated[str, Meta(description="What to change and where; empty if there is nothing to repair.")]
    found_at: dt.datetime | None


class WrongToken(View, frozen=True, kw_only=True):
    """Events in the pod's name are refused for their token. That blocks nothing: anyone can post such events."""

    since: dt.datetime
    last: Annotated[dt.datetime, Meta(description="To some seconds. It is not shown when it is an hour old.")]
    sentence: Annotated[str, Meta(description="What it means, and how to repair it.")]


class TokenIssuer(View, frozen=True, kw_only=True):
    url: str
    issuer: Annotated[str, Meta(description="`iss` of its tokens.")]
    service: Annotated[str, Meta(description="`aud` of its tokens.")]
    key_ids: Annotated[list[str], Meta(description="Its keys, as their libtrust fingerprints.")]


class PodView(View, frozen=True, kw_only=True):
    name: str
    mode: Literal["manifest", "link"]
    kind: PodKind
    probe: Annotated[Literal["push", "pull"], Meta(description="How Baleen asks its registry how far it has reported.")]
    prefixes: list[str]
    registries: list[str]
    token_issuer: Annotated[
        TokenIssuer | None, Meta(description="The issuer of the tokens for its registry; null if none is known.")
    ]
    created_at: dt.datetime
    managed: Annotated[bool, Meta(description="Its registry sends events. If not, only reconciles show what it holds.")]
    unmanaged_why: Annotated[str | None, Meta(description="Why its registry sends none; null for a managed pod.")]
    unmanaged_by: Annotated[str | None, Meta(description="The operator who declared that.")]
    repositories: int
    gaps: Gaps
    dead_letters: Annotated[int, Meta(description="Open ones.")]
    dead_letters_not_kept: Annotated[
        int, Meta(description="Beyond the limit of the pod: a gap stands for them until a reconcile. An alarm.")
    ]
    doubtful_removals: int
    unread_manifests: Annotated[int, Meta(description="Held manifests whose references are not known yet.")]
    vanished_links: Annotated[int, Meta(description="Links that are gone without a delete event: an alarm.")]
    false_reports: Annotated[
        int, Meta(description="Reports of what a manifest lists that its bytes contradicted; they block nothing.")
    ]
    reconciled_at: Annotated[
        dt.datetime | None, Meta(description="The begin of the last reconcile that was done; null if none was.")
    ]
    watermark: Annotated[
        dt.datetime | None,
        Meta(description="All events of requests that ended before this are applied; null while that is not known."),
    ]
    waits_for: Annotated[list[str], Meta(description="Why the watermark is not known or stands still.")]
    processes: list[ProcessView]
    endpoints: list[EndpointView]
    wrong_token: Annotated[WrongToken | None, Meta(description="Null if no recent event had a wrong token, or none.")]
    findings: Annotated[list[FindingView], Meta(description="Of the doctor's last visit; empty if there was none.")]
    blocked_by: Annotated[list[str], Meta(description="Why garbage collection may not run for this pod.")]


class PodPage(View, frozen=True, kw_only=True):
    items: list[PodView]
    next: Next


class VanishedLink(View, frozen=True, kw_only=True):
    """Storage had this link, and no event reported that it was deleted."""

    repository: str
    digest: str
    kind: Annotated[
        Literal["manifest", "blob"], Meta(description="What was linked: `blob` in pods of mode `link` only.")
    ]
    noticed_at: dt.datetime
    added_at: Annotated[dt.datetime, Meta(description="When it was pushed, by the registry's clock.")]


class VanishedPage(View, frozen=True, kw_only=True):
    items: list[VanishedLink]
    next: Next
