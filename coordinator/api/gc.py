"""`/v1/gc`: the plan, runs and state of garbage collection. Not here: collecting (coordinator/gc)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import DEFAULT_WHY, Cursor, Limit
from coordinator.api.problems import document_problems
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.db.threads import in_thread
from coordinator.domain.reasons import WHY_LIMIT
from coordinator.gc import runs
from coordinator.gc import view as queries
from coordinator.gc.shapes import CollectionStatus, DecisionPage, PlanPage, Run, RunPage, StepName

BODY_LIMIT = 16 * 1024

TAGS = ["garbage collection"]
Number = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]
Why = Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    why: Why = DEFAULT_WHY
    dry_run: Annotated[bool, Meta(description="Only report what would be done.")] = False
    beyond_limits: Annotated[Why | None, Meta(description="Exceed the run limits once; the reason.")] = None
    leftovers: Annotated[bool, Meta(description="Look for leftovers even if a recent run has.")] = False


@get(
    "/v1/gc/status",
    operation_id="getCollectionStatus",
    summary="Get the state of garbage collection",
    tags=TAGS,
    responses=document_problems(),
    **READ,
)
async def get_status(request: Request[Any, Any, Any]) -> CollectionStatus:
    deps = deps_of(request)
    counted = await deps.figures.read()
    return await in_thread(queries.read_collection_status, deps.engine, deps.read_facts, counted, deps.gc_every)


@get(
    "/v1/gc/plan",
    operation_id="getPlan",
    summary="List what would be hidden, purged and kept now, and why",
    tags=TAGS,
    responses=document_problems(),
    sync_to_thread=True,
    **READ,
)
def get_plan(
    request: Request[Any, Any, Any],
    step: Annotated[StepName | None, QueryParameter(description="Only blobs of this step.", required=False)] = None,
    despite_holds: Annotated[
        bool, QueryParameter(description="Plan as if `blocked_by` were empty, that is, as if nothing blocked GC.")
    ] = False,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> PlanPage:
    """Hidden blobs first, then unreferenced ones, the longest first. Each page is read when it is requested: blobs that
    become unreferenced meanwhile come last, and none is missed. With `step` a page may be short, even empty, and still
    have a `next`.
    """
    deps = deps_of(request)
    return queries.read_plan(
        deps.engine,
        deps.read_facts,
        walk=deps.sizes.plan_walk,
        step=step,
        despite_holds=despite_holds,
        cursor=cursor,
        limit=limit,
    )


@post(
    "/v1/gc/runs",
    status_code=202,
    operation_id="startRun",
    summary="Collect garbage",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def start_run(request: Request[Any, Any, Any], data: JSONBody[RunRequest | None] = None) -> Run:
    """A scheduler does the run. If a run is already open, it is returned instead: check its `dry_run`, `leftovers` and
    `beyond_limits`. 409 while the switch is off or there is a hold, except for a dry run.
    """
    asked = data or RunRequest()
    return runs.request_run(
        deps_of(request).engine,
        asked.why,
        dry=asked.dry_run,
        beyond_limits=asked.beyond_limits,
        leftovers=asked.leftovers,
    )


@get(
    "/v1/gc/runs",
    operation_id="listRuns",
    summary="List runs, the newest first",
    tags=TAGS,
    responses=document_problems(),
    sync_to_thread=True,
    **READ,
)
def list_runs(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> RunPage:
    """The last hundred runs are kept; their decisions stay in the ledger for ever."""
    return runs.read_runs(deps_of(request).engine, cursor=cursor, limit=limit)


@get(
    "/v1/gc/runs/{number:int}",
    operation_id="getRun",
    summary="Get a run and its progress",
    tags=TAGS,
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def get_run(request: Request[Any, Any, Any], number: Number) -> Run:
    return runs.read_run(deps_of(request).engine, number)


@get(
    "/v1/gc/runs/{number:int}/decisions",
    operation_id="listDecisions",
    summary="List a run's decisions, the oldest first",
    tags=TAGS,
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def list_decisions(
    request: Request[Any, Any, Any], number: Number, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT
) -> DecisionPage:
    """From the ledger, which also has runs that are no longer listed. A dry run decides nothing. The evidence of a
    decision is in the blob's `explain`.
    """
    return runs.read_decisions(deps_of(request).engine, number, cursor=cursor, limit=limit)


HANDLERS = [get_status, get_plan, start_run, list_runs, get_run, list_decisions]
