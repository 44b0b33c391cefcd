"""`/metrics` for Prometheus, and the middleware that counts requests.

Open to whoever reaches the port, as is usual for it: it names pods and counts, and no digest and no repository. Bind
the API to an address that only those reach, or let the proxy in front of it keep `/metrics` in.
Labels are route templates, never paths, so that nobody can make new ones.
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
from coordinator.api.status import Collection, Marks, Status, collection, gather
from coordinator.domain.watermarks import SourceState
from coordinator.errors import BaleenError

REQUESTS = Counter("baleen_http_requests_total", "Requests that were answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "baleen_http_request_seconds",
    "Duration of requests.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
LAG = Gauge("baleen_lag_records", "Records that are not applied yet.", ["partition"])
CAUGHT_UP = Gauge("baleen_caught_up", "1 if everything that Kafka has is applied.")
OPEN = Gauge("baleen_open", "Things that are not settled and hold garbage collection.", ["what"])

MISSING = Gauge("baleen_blobs_missing", "Blobs that are needed and have no bytes; NaN while it is not known.")
UNTOLD = Gauge(
    "baleen_lifecycle_waiting_records", "Changes that blob.lifecycle has not got; NaN while it is not known."
)
WATERMARK_LAG = Gauge(
    "baleen_watermark_lag_seconds", "How long ago a pod's watermark is; infinite while it is not known.", ["pod"]
)
VANISHED = Gauge("baleen_vanished_links", "Links of a pod that are gone without a delete event, not accepted.", ["pod"])
FALSE_REPORTS = Gauge(
    "baleen_false_reports", "Reports of a pod on what manifests list that the manifests' bytes contradicted.", ["pod"]
)
SOURCES = Gauge("baleen_sources", "Processes of a pod's registry, by what is known of them.", ["pod", "state"])

GC_ENABLED = Gauge("baleen_gc_enabled", "1 while the kill switch is on, 0 while it is off; NaN while it is not known.")
GC_HELD = Gauge("baleen_gc_held_reasons", "For how many reasons nothing is collected; NaN while it is not known.")
UNREFERENCED_BLOBS = Gauge("baleen_gc_unreferenced_blobs", "Blobs that nothing references and that are served.")
UNREFERENCED_BYTES = Gauge("baleen_gc_unreferenced_bytes", "Their bytes.")
HIDDEN_BLOBS = Gauge("baleen_gc_hidden_blobs", "Blobs that are hidden and not purged yet.")
HIDDEN_BYTES = Gauge("baleen_gc_hidden_bytes", "Their bytes.")
OLDEST = Gauge(
    "baleen_gc_oldest_candidate_seconds",
    "How long the oldest is unreferenced of what is served and not pinned; 0 if there is none, NaN while not known.",
)
RESTORES = Gauge(
    "baleen_gc_restores_waiting_blobs",
    "Blobs that are needed or asked back and not served; `unsettled` ones wait until no delete of theirs can land.",
    ["state"],
)
UNOWNED = Gauge(
    "baleen_unowned_repositories",
    "Repositories, or folders of them, in the root that no pod owns, up to 101; NaN while it is not known.",
)
SHOWN = Gauge(
    "baleen_gc_shown_by_others_total",
    "Purges that were called off, since others than Baleen had shown the hidden blob: an alarm when it grows.",
)
#: What is not known while the database is away.
_OF_COLLECTION = (
    GC_ENABLED,
    GC_HELD,
    UNREFERENCED_BLOBS,
    UNREFERENCED_BYTES,
    HIDDEN_BLOBS,
    HIDDEN_BYTES,
    OLDEST,
    UNOWNED,
    SHOWN,
)

METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


def count_requests(app: ASGIApp) -> ASGIApp:
    """Wrap the application so that each request is counted when its answer begins."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        began = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("path_template") or "none"
                method = scope["method"] if scope["method"] in METHODS else "other"
                REQUESTS.labels(method, route, str(message["status"])).inc()
                SECONDS.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await app(scope, receive, sending)

    return counted


@get("/metrics", operation_id="metrics", summary="Prometheus metrics", tags=["status"], media_type=MediaType.TEXT)
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Open without a token. Lag and open things are as of now, and left out while the database is away."""
    try:
        deps = deps_of(request)
        status, marks = await gather(deps)
        found = await collection(deps)
        _show(status)
        _show_marks(marks)
        _show_collection(status, marks, found)
    except BaleenError:
        LAG.clear()
        OPEN.clear()
        WATERMARK_LAG.clear()
        SOURCES.clear()
        VANISHED.clear()
        FALSE_REPORTS.clear()
        CAUGHT_UP.set(0)
        MISSING.set(math.nan)
        UNTOLD.set(math.nan)
        RESTORES.clear()
        for gauge in _OF_COLLECTION:
            gauge.set(math.nan)
    return Response(generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _show(status: Status) -> None:
    LAG.clear()
    for partition, lag in status.lag.items():
        if lag is not None:
            LAG.labels(partition).set(lag)
    CAUGHT_UP.set(status.caught_up)
    for what in ("dead_letters", "dead_letters_not_kept", "gaps", "doubtful_removals", "unread_manifests"):
        OPEN.labels(what).set(getattr(status, what))
    MISSING.set(status.missing_blobs)
    UNTOLD.set(status.untold_changes)


def _show_marks(marks: Marks) -> None:
    WATERMARK_LAG.clear()
    SOURCES.clear()
    VANISHED.clear()
    FALSE_REPORTS.clear()
    for pod, count in marks.vanished.items():
        VANISHED.labels(pod).set(count)
    for pod, count in marks.false_reports.items():
        FALSE_REPORTS.labels(pod).set(count)
    for pod, mark in marks.pods.items():
        lag = math.inf if mark.at is None else max(0.0, (marks.now - mark.at).total_seconds())
        WATERMARK_LAG.labels(pod).set(lag)
        counts = Counts(source.state for source in mark.sources)
        for state in SourceState:
            SOURCES.labels(pod, state.value).set(counts[state])


def _show_collection(status: Status, marks: Marks, found: Collection) -> None:
    GC_ENABLED.set(status.gc.enabled)
    GC_HELD.set(len(status.gc.held_by))
    unowned = status.unowned_repositories
    UNOWNED.set(math.nan if unowned.listed_at is None else len(unowned.names) + (not unowned.complete))
    figures = found.figures
    UNREFERENCED_BLOBS.set(figures.unreferenced.blobs)
    UNREFERENCED_BYTES.set(figures.unreferenced.bytes)
    HIDDEN_BLOBS.set(figures.hidden.blobs)
    HIDDEN_BYTES.set(figures.hidden.bytes)
    OLDEST.set(0 if found.oldest is None else max(0.0, (marks.now - found.oldest).total_seconds()))
    SHOWN.set(found.shown.count)
    for state in ("hidden", "unsettled", "purged"):
        RESTORES.labels(state).set(getattr(found.waiting, state))


HANDLERS = [metrics]
