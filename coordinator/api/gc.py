"""`/v1/gc`: the plan of garbage collection, its runs, and how it is doing. Not here: collecting (coordinator/gc)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import ASKED, Cursor, Limit
from coordinator.api.problems import documented
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.domain.reasons import WHY_LIMIT
from coordinator.gc import runs
from coordinator.gc import view as queries
from coordinator.gc.shapes import CollectionStatus, DecisionPage, PlanPage, Run, RunPage, StepName

BODY_LIMIT = 16 * 1024

TAGS = ["garbage collection"]
Number = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]
Why = Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    why: Why = ASKED
    dry_run: Annotated[bool, Meta(description="Only say what would be done.")] = False
    beyond_limits: Annotated[
        Why | None, Meta(description="Why it may take more than the limits let it, this time.")
    ] = None
    leftovers: Annotated[
        bool, Meta(description="Look for what registries leave behind also if a run has done so lately.")
    ] = False


@get(
    "/v1/gc/status",
    operation_id="getCollectionStatus",
    summary="How garbage collection is doing",
    tags=TAGS,
    responses=documented(),
    **READ,
)
async def get_status(request: Request[Any, Any, Any]) -> CollectionStatus:
    deps = deps_of(request)
    return await queries.collection_status(deps.engine, deps.facts, deps.figures, deps.gc_every)


@get(
    "/v1/gc/plan",
    operation_id="getPlan",
    summary="What would be hidden, purged and kept now, and why",
    tags=TAGS,
    responses=documented(),
    **READ,
)
async def get_plan(
    request: Request[Any, Any, Any],
    step: Annotated[StepName | None, QueryParameter(description="Only of this step.", required=False)] = None,
    despite_holds: Annotated[
        bool, QueryParameter(description="As if `held_by` were empty: what goes once nothing holds collection.")
    ] = False,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> PlanPage:
    """What is hidden first, then what nothing references, the longest first. A page is of the moment in which it is
    made: what becomes unreferenced meanwhile comes last, and is not missed. With `step` a page may be short, even
    empty, while `next` goes on.
    """
    deps = deps_of(request)
    return await queries.plan(
        deps.engine, deps.facts, step=step, despite_holds=despite_holds, cursor=cursor, limit=limit
    )


@post(
    "/v1/gc/runs",
    status_code=202,
    operation_id="startRun",
    summary="Collect garbage",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=documented(409, 413),
    **OPERATE,
)
async def start_run(request: Request[Any, Any, Any], data: JSONBody[RunRequest | None] = None) -> Run:
    """A scheduler does it. If a run is open already, that one is the answer: look at its `dry_run`, `leftovers` and
    `beyond_limits`. 409 while the switch is off or anything is held, unless it is to be a dry run.
    """
    asked = data or RunRequest()
    return await runs.ask(
        deps_of(request).engine,
        asked.why,
        dry=asked.dry_run,
        beyond_limits=asked.beyond_limits,
        leftovers=asked.leftovers,
    )


@get(
    "/v1/gc/runs", operation_id="listRuns", summary="Runs, the newest first", tags=TAGS, responses=documented(), **READ
)
async def list_runs(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> RunPage:
    """The last hundred are kept; what they decided is in the ledger for ever."""
    return await runs.runs(deps_of(request).engine, cursor=cursor, limit=limit)


@get(
    "/v1/gc/runs/{number:int}",
    operation_id="getRun",
    summary="One run, and how far it is",
    tags=TAGS,
    responses=documented(404),
    **READ,
)
async def get_run(request: Request[Any, Any, Any], number: Number) -> Run:
    return await runs.run(deps_of(request).engine, number)


@get(
    "/v1/gc/runs/{number:int}/decisions",
    operation_id="listDecisions",
    summary="What a run decided of each blob, the oldest first",
    tags=TAGS,
    responses=documented(404),
    **READ,
)
async def list_decisions(
    request: Request[Any, Any, Any], number: Number, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT
) -> DecisionPage:
    """From the ledger: also of runs that are forgotten. A dry run decides nothing. What it was decided on is in the
    blob's `explain`.
    """
    return await runs.decisions(deps_of(request).engine, number, cursor=cursor, limit=limit)


HANDLERS = [get_status, get_plan, start_run, list_runs, get_run, list_decisions]
