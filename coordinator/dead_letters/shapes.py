"""The shapes of dead letters in answers of the API."""

import datetime as dt
from typing import Annotated, Literal

from msgspec import Meta

from coordinator.db.shapes import Next, View


class DeadLetterSummary(View, frozen=True, kw_only=True):
    id: int
    pod: str
    reason: str
    detail: str
    received_at: dt.datetime
    stored_at: Annotated[
        dt.datetime,
        Meta(description="A reconcile that begins later, of each pod that owns its repositories, resolves it."),
    ]
    repositories: Annotated[
        list[str] | None, Meta(description="What it is about; null if that is not known: it may be about any.")
    ]
    payload_bytes: int
    content_type: str
    resolution: Literal["retried", "discarded", "reconciled"] | None
    resolved_at: dt.datetime | None
    resolved_why: str | None


class DeadLetter(DeadLetterSummary, frozen=True, kw_only=True):
    payload: Annotated[str, Meta(description="What was sent, as text; cut if shorter than payload_bytes.")]
    origin: Annotated[str, Meta(description="Its Kafka record: topic/partition/offset.")]


class DeadLetterPage(View, frozen=True, kw_only=True):
    items: list[DeadLetterSummary]
    next: Next
