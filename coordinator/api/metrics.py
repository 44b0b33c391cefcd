"""`/metrics` for Prometheus, and the middleware that counts requests.

Open to every client that reaches the port, as is usual for metrics. It has names of pods and counts, no digests and no
repositories. Bind the API to a private address, or let a proxy in front of it refuse `/metrics`.
Labels are route templates, never paths, so that clients cannot create new ones.
"""

import math
import time
from collections import Counter as Counts
from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

from coordinator.api.deps import deps_of
from coordinator.api.status import Collection, Marks, Status, read_collection, read_status_and_marks
from coordinator.domain.watermarks import ProcessState
from coordinator.errors import BaleenError

REQUESTS = Counter("baleen_http_requests_total", "Answered requests.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "baleen_http_request_seconds",
    "Duration of requests.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LAG = Gauge("baleen_lag_records", "Records that are not applied yet.", ["partition"])
CAUGHT_UP = Gauge("baleen_caught_up", "1 if everything that Kafka has acknowledged is applied.")
OPEN_ITEMS = Gauge("baleen_open", "Unresolved things that block garbage collection, by kind.", ["what"])

MISSING_BLOBS = Gauge("baleen_blobs_missing", "Needed blobs without bytes; NaN while unknown.")
UNPUBLISHED = Gauge(
    "baleen_lifecycle_waiting_records", "Changes not yet published to blob.lifecycle; NaN while unknown."
)
WATERMARK_LAG = Gauge("baleen_watermark_lag_seconds", "Age of a pod's watermark; infinite while unknown.", ["pod"])
VANISHED_LINKS = Gauge(
    "baleen_vanished_links", "Unaccepted links of a pod that vanished without a delete event.", ["pod"]
)
FALSE_REPORTS = Gauge(
    "baleen_false_reports", "A pod's reports of what manifests list that contradict the manifests' bytes.", ["pod"]
)
PROCESSES = Gauge("baleen_processes", "Registry processes of a pod, by state.", ["pod", "state"])

GC_ENABLED = Gauge("baleen_gc_enabled", "1 while garbage collection is on, 0 while it is off; NaN while unknown.")
GC_BLOCKED = Gauge("baleen_gc_blocking_reasons", "Number of reasons that block garbage collection; NaN while unknown.")
UNREFERENCED_BLOBS = Gauge("baleen_gc_unreferenced_blobs", "Unreferenced blobs that are still served.")
UNREFERENCED_BYTES = Gauge("baleen_gc_unreferenced_bytes", "Bytes of unreferenced blobs that are still served.")
HIDDEN_BLOBS = Gauge("baleen_gc_hidden_blobs", "Hidden blobs that are not purged yet.")
HIDDEN_BYTES = Gauge("baleen_gc_hidden_bytes", "Bytes of hidden blobs that are not purged yet.")
OLDEST_CANDIDATE = Gauge(
    "baleen_gc_oldest_candidate_seconds",
    "How long the oldest unreferenced blob that is served and not pinned is so; 0 if none, NaN while unknown.",
)
RESTORES = Gauge(
    "baleen_gc_restores_waiting_blobs",
    "Blobs that wait to be restored; `unfinished` ones wait until no delete of them can land.",
    ["state"],
)
UNOWNED_REPOSITORIES = Gauge(
    "baleen_unowned_repositories",
    "Repositories, or folders of them, in the root that no pod owns, up to 101; NaN while unknown.",
)
SHOWN_BY_OTHERS = Gauge(
    "baleen_gc_shown_by_others_total",
    "Purges that were cancelled because another program had made the hidden blob visible: an alarm when it grows.",
)
#: Unknown while the database is away.
_OF_COLLECTION = (
    GC_ENABLED,
    GC_BLOCKED,
    UNREFERENCED_BLOBS,
    UNREFERENCED_BYTES,
    HIDDEN_BLOBS,
    HIDDEN_BYTES,
    OLDEST_CANDIDATE,
    UNOWNED_REPOSITORIES,
    SHOWN_BY_OTHERS,
)

METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


def count_requests(app: ASGIApp) -> ASGIApp:
    """Wrap the application so that each request is counted when its answer begins."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        began = time.perf_counter()

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("path_template") or "none"
                method = scope["method"] if scope["method"] in METHODS else "other"
                REQUESTS.labels(method, route, str(message["status"])).inc()
                REQUEST_SECONDS.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await app(scope, receive, send_and_count)

    return handle


@get("/metrics", operation_id="metrics", summary="Prometheus metrics", tags=["status"], media_type=MediaType.TEXT)
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Needs no token. Values are current; they are omitted or NaN while the database is away."""
    try:
        deps = deps_of(request)
        status, marks = await read_status_and_marks(deps)
        found = await read_collection(deps)
        _set_status(status)
        _set_marks(marks)
        _set_collection(status, marks, found)
    except BaleenError:
        LAG.clear()
        OPEN_ITEMS.clear()
        WATERMARK_LAG.clear()
        PROCESSES.clear()
        VANISHED_LINKS.clear()
        FALSE_REPORTS.clear()
        CAUGHT_UP.set(0)
        MISSING_BLOBS.set(math.nan)
        UNPUBLISHED.set(math.nan)
        RESTORES.clear()
        for gauge in _OF_COLLECTION:
            gauge.set(math.nan)
    return Response(generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _set_status(status: Status) -> None:
    LAG.clear()
    for partition, lag in status.lag.items():
        if lag is not None:
            LAG.labels(partition).set(lag)
    CAUGHT_UP.set(status.caught_up)
    for what in ("dead_letters", "dead_letters_not_kept", "gaps", "doubtful_removals", "unread_manifests"):
        OPEN_ITEMS.labels(what).set(getattr(status, what))
    MISSING_BLOBS.set(status.missing_blobs)
    UNPUBLISHED.set(status.unpublished_changes)


def _set_marks(marks: Marks) -> None:
    WATERMARK_LAG.clear()
    PROCESSES.clear()
    VANISHED_LINKS.clear()
    FALSE_REPORTS.clear()
    for pod, count in marks.vanished.items():
        VANISHED_LINKS.labels(pod).set(count)
    for pod, count in marks.false_reports.items():
        FALSE_REPORTS.labels(pod).set(count)
    for pod, mark in marks.pods.items():
        lag = math.inf if mark.at is None else max(0.0, (marks.now - mark.at).total_seconds())
        WATERMARK_LAG.labels(pod).set(lag)
        counts = Counts(process.state for process in mark.processes)
        for state in ProcessState:
            PROCESSES.labels(pod, state.value).set(counts[state])


def _set_collection(status: Status, marks: Marks, found: Collection) -> None:
    GC_ENABLED.set(status.gc.enabled)
    GC_BLOCKED.set(len(status.gc.blocked_by))
    unowned = status.unowned_repositories
    UNOWNED_REPOSITORIES.set(math.nan if unowned.listed_at is None else len(unowned.names) + (not unowned.complete))
    figures = found.figures
    UNREFERENCED_BLOBS.set(figures.unreferenced.blobs)
    UNREFERENCED_BYTES.set(figures.unreferenced.bytes)
    HIDDEN_BLOBS.set(figures.hidden.blobs)
    HIDDEN_BYTES.set(figures.hidden.bytes)
    OLDEST_CANDIDATE.set(0 if found.oldest is None else max(0.0, (marks.now - found.oldest).total_seconds()))
    SHOWN_BY_OTHERS.set(found.shown.count)
    for state in ("hidden", "unfinished", "purged"):
        RESTORES.labels(state).set(getattr(found.waiting, state))


HANDLERS = [metrics]
