"""`/v1/repositories`: what a repository holds. Not here: the queries (lookup/repositories.py)."""

from typing import Annotated, Any

from litestar import Request, get
from litestar.params import PathParameter, QueryParameter

from coordinator.api.auth import READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import Cursor, Limit, PodFilter, pod_or_none
from coordinator.api.problems import document_problems
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.domain.names import parse_repository
from coordinator.lookup import repositories as queries
from coordinator.lookup.shapes import Repository, RepositoryPage


@get(
    "/v1/repositories",
    operation_id="listRepositories",
    summary="List repositories by name",
    tags=["repositories"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def list_repositories(
    request: Request[Any, Any, Any],
    pod: PodFilter = None,
    prefix: Annotated[
        str | None, QueryParameter(description="`team` selects `team` and `team/…`, as for pods.", required=False)
    ] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> RepositoryPage:
    """`blobs` and bytes are null for repositories with too many manifests for a list: get that repository."""
    deps = deps_of(request)
    return queries.read_repository_page(
        deps.engine,
        deps.sizes,
        pod=pod_or_none(pod),
        prefix=None if prefix is None else parse_repository(prefix.removesuffix("/")),
        cursor=cursor,
        limit=limit,
    )


@get(
    "/v1/repositories/{name:path}",
    operation_id="getRepository",
    summary="Get what a repository holds",
    tags=["repositories"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def get_repository(
    request: Request[Any, Any, Any], name: Annotated[str, PathParameter(description="With its slashes: team/app.")]
) -> Repository:
    return queries.read_repository(deps_of(request).engine, parse_repository(name.removeprefix("/")))


HANDLERS = [list_repositories, get_repository]
