"""`/v1/status`, `/healthz`, `/readyz`: how far events are applied, what blocks GC, and whether Baleen can work.

Lag is the difference between the end of a partition's log (read from Kafka after the request came) and what is applied
(read from the table before that). So `caught_up` covers everything that Kafka had acknowledged before the request. An
unknown lag is null and not caught up, never zero.
"""

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from litestar import Request, Response, get
from msgspec import Meta

from coordinator.api.auth import READ
from coordinator.api.deps import Deps, ReadinessCheck, deps_of
from coordinator.api.lag import Partition
from coordinator.api.problems import document_problems
from coordinator.db.session import read_connection
from coordinator.db.threads import in_thread
from coordinator.domain.gc import block_reasons
from coordinator.domain.perimeter import Listing
from coordinator.domain.watermarks import PodWatermark
from coordinator.errors import BaleenError
from coordinator.gc.conditions import FactsWithRows
from coordinator.gc.shapes import ShownByOthers, Waiting
from coordinator.gc.view import Figures, count_waiting, read_oldest_candidate, read_shown_by_others
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.lookup.progress_view import count_missing_blobs, count_unpublished_changes, read_clock, read_progress

CHECK_SECONDS = 3.0


class GarbageCollection(msgspec.Struct, frozen=True):
    enabled: Annotated[bool, Meta(description="The switch of garbage collection.")]
    blocked_by: Annotated[
        list[str], Meta(description="What blocks garbage collection: the switch, holds, and pods by name.")
    ]


class UnownedRepositories(msgspec.Struct, frozen=True, kw_only=True):
    listed_at: Annotated[
        dt.datetime | None, Meta(description="When the last listing of the root began; null if there is none.")
    ]
    names: Annotated[list[str], Meta(description="Repositories, or folders of them, that no pod owns; up to 100.")]
    complete: Annotated[bool, Meta(description="Whether `names` has all of them.")]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    lag: Annotated[dict[str, int | None], Meta(description="Events not applied yet, by partition; null where unknown.")]
    dead_letter_lag: Annotated[
        int | None, Meta(description="Dead letters not applied yet, over all partitions; null if unknown.")
    ]
    caught_up: Annotated[
        bool, Meta(description="Everything that Kafka had acknowledged before this request is applied.")
    ]
    watermark: Annotated[
        dt.datetime | None,
        Meta(description="The earliest watermark of all managed pods; null while one is unknown."),
    ]
    gc: GarbageCollection
    dead_letters: Annotated[int, Meta(description="Open dead letters.")]
    dead_letters_not_kept: Annotated[
        int, Meta(description="Dead letters beyond the limits of their pods; gaps stand for them. An alarm.")
    ]
    gaps: Annotated[int, Meta(description="Open gaps of all pods.")]
    doubtful_removals: int
    unread_manifests: int
    vanished_links: Annotated[int, Meta(description="Links that vanished without a delete event: an alarm.")]
    missing_blobs: Annotated[int, Meta(description="Needed blobs without bytes: an alarm.")]
    unpublished_changes: Annotated[int, Meta(description="Changes of blobs not yet published to blob.lifecycle.")]
    unowned_repositories: Annotated[
        UnownedRepositories, Meta(description="Repositories in the root that no pod owns. They block GC.")
    ]


class CheckResult(msgspec.Struct, frozen=True):
    ok: bool
    detail: str


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok"]


class Readiness(msgspec.Struct, frozen=True):
    ready: bool
    checks: dict[str, CheckResult]


class Marks(NamedTuple):
    """The database's time, and by pod: watermark, vanished links, and false reports."""

    now: dt.datetime
    pods: Mapping[str, PodWatermark]
    vanished: Mapping[str, int]
    false_reports: Mapping[str, int]


class Collection(NamedTuple):
    """Figures of garbage collection for metrics."""

    figures: Figures
    waiting: Waiting
    oldest: dt.datetime | None
    shown: ShownByOthers


async def read_collection(deps: Deps) -> Collection:
    return await in_thread(_read_collection, deps, await deps.figures.read())


def _read_collection(deps: Deps, figures: Figures) -> Collection:
    with read_connection(deps.engine) as connection:
        return Collection(
            figures, count_waiting(connection), read_oldest_candidate(connection), read_shown_by_others(connection)
        )


class _TableState(NamedTuple):
    """What the table has, in the order in which it is read."""

    applied: Mapping[Partition, int]
    known: FactsWithRows
    missing: int
    unpublished: int
    now: dt.datetime


def _read_table(deps: Deps) -> _TableState:
    with read_connection(deps.engine) as connection:
        return _TableState(
            read_progress(connection),
            deps.read_known(connection),
            count_missing_blobs(connection),
            count_unpublished_changes(connection),
            read_clock(connection),
        )


async def read_status(deps: Deps) -> Status:
    return (await read_status_and_marks(deps))[0]


async def read_status_and_marks(deps: Deps) -> tuple[Status, Marks]:
    """Gather the status. The table is read first, so the lag may be too large, never too small."""
    applied, (facts, pod_states, orphans), missing, unpublished, now = await in_thread(_read_table, deps)
    held = {pod: state.open_items for pod, state in pod_states.items()}
    marks = {pod: state.watermark for pod, state in pod_states.items() if state.managed}
    log = await deps.lag.read(applied)
    events = {str(number): lag for (topic, number), lag in sorted(log.lag.items()) if topic == EVENTS}
    lags = [lag for (topic, _), lag in log.lag.items() if topic == DEAD_LETTERS]
    known = [lag for lag in lags if lag is not None]
    status = Status(
        lag=events,
        dead_letter_lag=sum(known) if known and len(known) == len(lags) else None,
        caught_up=not log.problems and bool(events) and not any(log.lag.values()) and None not in log.lag.values(),
        watermark=_earliest([mark.at for mark in marks.values()]),
        gc=GarbageCollection(enabled=facts.switched_off is None, blocked_by=[*block_reasons(facts), *log.problems]),
        dead_letters=sum(each.dead_letters for each in held.values()) + orphans,
        dead_letters_not_kept=sum(each.dead_letters_not_kept for each in held.values()),
        gaps=sum(each.gaps for each in held.values()),
        doubtful_removals=sum(each.doubtful_removals for each in held.values()),
        unread_manifests=sum(each.unread_manifests for each in held.values()),
        vanished_links=sum(each.vanished_links for each in held.values()),
        missing_blobs=missing,
        unpublished_changes=unpublished,
        unowned_repositories=_make_unowned(facts.listing),
    )
    vanished = {pod: each.vanished_links for pod, each in held.items()}
    return status, Marks(now, marks, vanished, {pod: state.false_reports for pod, state in pod_states.items()})


def _make_unowned(listing: Listing | None) -> UnownedRepositories:
    if listing is None:
        return UnownedRepositories(listed_at=None, names=[], complete=False)
    return UnownedRepositories(listed_at=listing.began_at, names=list(listing.unowned), complete=listing.complete)


def _earliest(times: Sequence[dt.datetime | None]) -> dt.datetime | None:
    """Return the earliest time, or None if any is unknown."""
    known = [time for time in times if time is not None]
    return min(known) if known and len(known) == len(times) else None


@get(
    "/v1/status",
    operation_id="getStatus",
    summary="Get how far events are applied, and what blocks garbage collection",
    tags=["status"],
    responses=document_problems(),
    **READ,
)
async def get_status(request: Request[Any, Any, Any]) -> Status:
    return await read_status(deps_of(request))


@get("/healthz", operation_id="health", summary="Liveness: the process answers", tags=["status"])
async def healthz() -> Health:
    return Health("ok")


@get(
    "/readyz",
    operation_id="readiness",
    summary="Readiness: every service that Baleen needs answers",
    tags=["status"],
    responses={503: document_problems()[503]},
)
async def readyz(request: Request[Any, Any, Any]) -> Response[Readiness]:
    """503 with the same body while a service does not answer."""
    checks = deps_of(request).checks
    results = await asyncio.gather(*(_run_check(check) for check in checks.values()))
    ready = all(result.ok for result in results)
    return Response(Readiness(ready, dict(zip(checks, results, strict=True))), status_code=200 if ready else 503)


async def _run_check(check: ReadinessCheck) -> CheckResult:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except TimeoutError:
        return CheckResult(ok=False, detail=f"No answer within {CHECK_SECONDS:.0f} s.")
    except BaleenError as error:
        return CheckResult(ok=False, detail=str(error))
    return CheckResult(ok=True, detail="")


HANDLERS = [get_status, healthz, readyz]
