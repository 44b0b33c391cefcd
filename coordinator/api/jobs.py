"""`/v1/jobs`: request reconciles, and show jobs. Not here: doing the work (coordinator/jobs/work.py)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import FromPath, JSONBody, PathParameter, QueryParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import DEFAULT_WHY, Cursor, Limit, PodFilter, pod_or_none
from coordinator.api.problems import document_problems
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.domain.names import parse_pod
from coordinator.jobs import view as queries
from coordinator.jobs.shapes import Job, JobPage
from coordinator.jobs.view import JobKind

BODY_LIMIT = 16 * 1024

Number = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]


class ReconcileRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Annotated[str, Meta(min_length=1, max_length=1000)] = DEFAULT_WHY


@post(
    "/v1/pods/{pod_name:str}/reconcile",
    status_code=202,
    operation_id="reconcilePod",
    summary="Compare a pod's links in storage with the table",
    tags=["jobs"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def reconcile_pod(
    request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[ReconcileRequest | None] = None
) -> Job:
    """A scheduler does the job. If one is already open for the pod, it is returned instead. One that is `running` began
    before this call and may miss recent links: request another when it has ended.
    """
    why = DEFAULT_WHY if data is None else data.why
    return queries.request_job(deps_of(request).engine, parse_pod(pod_name), "reconcile", why)


@get(
    "/v1/jobs",
    operation_id="listJobs",
    summary="List jobs, the newest first",
    tags=["jobs"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def list_jobs(
    request: Request[Any, Any, Any],
    pod: PodFilter = None,
    kind: Annotated[JobKind | None, QueryParameter(description="Only jobs of this kind.", required=False)] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> JobPage:
    return queries.read_jobs(deps_of(request).engine, pod=pod_or_none(pod), kind=kind, cursor=cursor, limit=limit)


@get(
    "/v1/jobs/{number:int}",
    operation_id="getJob",
    summary="Get a job and its progress",
    tags=["jobs"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def get_job(request: Request[Any, Any, Any], number: Number) -> Job:
    return queries.read_job(deps_of(request).engine, number)


HANDLERS = [reconcile_pod, list_jobs, get_job]
