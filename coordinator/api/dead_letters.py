"""`/v1/dead-letters`: events that could not be applied. Not here: resolving them (dead_letters/resolve.py)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody, PathParameter, QueryParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import Cursor, Limit, PodFilter, pod_or_none
from coordinator.api.problems import document_problems
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.dead_letters import resolve
from coordinator.dead_letters import view as queries
from coordinator.dead_letters.shapes import DeadLetter, DeadLetterPage
from coordinator.domain.reasons import WHY_LIMIT

BODY_LIMIT = 16 * 1024

Number = Annotated[int, PathParameter(ge=1, le=2**63 - 1)]


class Retried(msgspec.Struct, frozen=True):
    events: Annotated[int, Meta(description="Events that were published. They are applied like any other.")]


class Discard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]


@get(
    "/v1/dead-letters",
    operation_id="listDeadLetters",
    summary="List dead letters, the oldest first",
    tags=["dead letters"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def list_dead_letters(
    request: Request[Any, Any, Any],
    pod: PodFilter = None,
    resolved: Annotated[bool, QueryParameter(description="Also resolved ones.")] = False,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> DeadLetterPage:
    return queries.read_dead_letters(
        deps_of(request).engine, pod=pod_or_none(pod), resolved=resolved, cursor=cursor, limit=limit
    )


@get(
    "/v1/dead-letters/{number:int}",
    operation_id="getDeadLetter",
    summary="Get a dead letter, with what was sent",
    tags=["dead letters"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def get_dead_letter(request: Request[Any, Any, Any], number: Number) -> DeadLetter:
    return queries.read_dead_letter(deps_of(request).engine, number)


@post(
    "/v1/dead-letters/{number:int}/retry",
    status_code=200,
    operation_id="retryDeadLetter",
    summary="Read a dead letter again, and publish its events",
    tags=["dead letters"],
    responses=document_problems(404, 409),
    sync_to_thread=True,
    **OPERATE,
)
def retry_dead_letter(request: Request[Any, Any, Any], number: Number) -> Retried:
    """It is read by the present rules and prefixes. 409 with the reason if it still cannot be understood."""
    deps = deps_of(request)
    return Retried(resolve.retry_dead_letter(deps.engine, number, deps.publish))


@post(
    "/v1/dead-letters/{number:int}/discard",
    status_code=200,
    operation_id="discardDeadLetter",
    summary="Discard a dead letter",
    tags=["dead letters"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def discard_dead_letter(request: Request[Any, Any, Any], number: Number, data: JSONBody[Discard]) -> DeadLetter:
    """`why` is kept with it. A gap takes its place until each pod that owns its repositories is reconciled.

    409 while storage has a repository that the letter names and that no registered pod lists: register that repository
    and retry the letter, or remove the repository.
    """
    deps = deps_of(request)
    resolve.discard_dead_letter(deps.engine, number, data.why, deps.list_stored)
    return queries.read_dead_letter(deps.engine, number)


HANDLERS = [list_dead_letters, get_dead_letter, retry_dead_letter, discard_dead_letter]
