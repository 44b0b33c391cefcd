"""The shapes of jobs in answers of the API."""

import datetime as dt
from typing import Annotated, Any, Literal

from msgspec import Meta

from coordinator.db.shapes import Next, View


class Job(View, frozen=True, kw_only=True):
    id: int
    kind: Literal["reconcile", "doctor", "gc"]
    pod: Annotated[str | None, Meta(description="Null for a collection, which concerns all pods.")]
    why: Annotated[str, Meta(description="Why it was requested.")]
    state: Literal["waiting", "running", "done", "failed"]
    asked_at: dt.datetime
    began_at: Annotated[
        dt.datetime | None,
        Meta(description="When it was first taken, also if another scheduler resumed it; null while it waits."),
    ]
    finished_at: dt.datetime | None
    progress: Annotated[
        dict[str, Any],
        Meta(description="Its progress, and at the end what it changed and why, with examples; depends on the kind."),
    ]
    error: Annotated[str | None, Meta(description="Why it failed, and what to do.")]


class JobPage(View, frozen=True, kw_only=True):
    items: list[Job]
    next: Next
