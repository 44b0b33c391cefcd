"""`/v1/gc/switch`, `/v1/holds`, `/v1/pins`: the GC controls. Not here: enforcing them (gc/table.py)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, put
from litestar.params import JSONBody, PathParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import DEFAULT_WHY, Cursor, DigestText, Limit
from coordinator.api.problems import document_problems
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.domain.names import parse_digest, parse_repository
from coordinator.domain.reasons import WHY_LIMIT
from coordinator.gc import controls
from coordinator.gc import controls_view as queries
from coordinator.gc.shapes import Hold, HoldPage, Pin, PinPage, Switch

BODY_LIMIT = 16 * 1024

TAGS = ["garbage collection"]
Scope = Annotated[str, PathParameter(description="A pod, or a prefix of repositories such as team/app.")]
Why = Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]


class SwitchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool
    why: Why


class HoldRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Why = DEFAULT_WHY


class PinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Why = DEFAULT_WHY


@get(
    "/v1/gc/switch",
    operation_id="getSwitch",
    summary="Get the kill switch",
    tags=TAGS,
    responses=document_problems(),
    sync_to_thread=True,
    **READ,
)
def get_switch(request: Request[Any, Any, Any]) -> Switch:
    return queries.read_switch(deps_of(request).engine)


@put(
    "/v1/gc/switch",
    operation_id="putSwitch",
    summary="Turn garbage collection on or off",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(413),
    sync_to_thread=True,
    **OPERATE,
)
def put_switch(request: Request[Any, Any, Any], data: JSONBody[SwitchRequest]) -> Switch:
    """Once `enabled: false` is answered, no process sends another delete to the object store. A delete that was sent
    just before may still land.
    """
    deps = deps_of(request)
    with controls.changing(deps.engine) as connection:
        controls.put_switch(connection, data.why, on=data.enabled)
    deps.record_mark()
    return queries.read_switch(deps.engine)


@get(
    "/v1/holds",
    operation_id="listHolds",
    summary="List holds by scope",
    tags=TAGS,
    responses=document_problems(),
    sync_to_thread=True,
    **READ,
)
def list_holds(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> HoldPage:
    return queries.read_holds(deps_of(request).engine, cursor=cursor, limit=limit)


@get(
    "/v1/holds/{name:path}",
    operation_id="getHold",
    summary="Get a hold",
    tags=TAGS,
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def get_hold(request: Request[Any, Any, Any], name: Scope) -> Hold:
    return queries.read_hold(deps_of(request).engine, parse_repository(name.removeprefix("/")))


@put(
    "/v1/holds/{name:path}",
    operation_id="putHold",
    summary="Stop all garbage collection until this hold is removed",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(413),
    sync_to_thread=True,
    **OPERATE,
)
def put_hold(request: Request[Any, Any, Any], name: Scope, data: JSONBody[HoldRequest | None] = None) -> Hold:
    """`name` says for whom it is; it need not exist. Any hold stops all garbage collection: pods share blobs."""
    deps, scope = deps_of(request), parse_repository(name.removeprefix("/"))
    with controls.changing(deps.engine) as connection:
        controls.put_hold(connection, scope, (data or HoldRequest()).why)
    deps.record_mark()
    return queries.read_hold(deps.engine, scope)


@delete(
    "/v1/holds/{name:path}",
    operation_id="removeHold",
    summary="Remove a hold",
    tags=TAGS,
    responses=document_problems(404),
    sync_to_thread=True,
    **OPERATE,
)
def remove_hold(request: Request[Any, Any, Any], name: Scope) -> None:
    deps = deps_of(request)
    scope = parse_repository(name.removeprefix("/"))
    with controls.changing(deps.engine) as connection:
        controls.remove_hold(connection, scope)
    deps.record_mark()


@get(
    "/v1/pins",
    operation_id="listPins",
    summary="List pins by digest",
    tags=TAGS,
    responses=document_problems(),
    sync_to_thread=True,
    **READ,
)
def list_pins(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> PinPage:
    return queries.read_pins(deps_of(request).engine, cursor=cursor, limit=limit)


@get(
    "/v1/pins/{digest:str}",
    operation_id="getPin",
    summary="Get a pin",
    tags=TAGS,
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def get_pin(request: Request[Any, Any, Any], digest: DigestText) -> Pin:
    return queries.read_pin(deps_of(request).engine, parse_digest(digest))


@put(
    "/v1/pins/{digest:str}",
    operation_id="putPin",
    summary="Pin a blob, so that it is never collected",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(413),
    sync_to_thread=True,
    **OPERATE,
)
def put_pin(request: Request[Any, Any, Any], digest: DigestText, data: JSONBody[PinRequest | None] = None) -> Pin:
    """The blob need not be known yet. A hidden one stays hidden and keeps its bytes: restore it with `undelete`."""
    deps, parsed = deps_of(request), parse_digest(digest)
    with controls.changing(deps.engine) as connection:
        controls.put_pin(connection, parsed, (data or PinRequest()).why)
    deps.record_mark()
    return queries.read_pin(deps.engine, parsed)


@delete(
    "/v1/pins/{digest:str}",
    operation_id="removePin",
    summary="Remove a pin",
    tags=TAGS,
    responses=document_problems(404),
    sync_to_thread=True,
    **OPERATE,
)
def remove_pin(request: Request[Any, Any, Any], digest: DigestText) -> None:
    deps, parsed = deps_of(request), parse_digest(digest)
    with controls.changing(deps.engine) as connection:
        controls.remove_pin(connection, parsed)
    deps.record_mark()


HANDLERS = [
    get_switch,
    put_switch,
    list_holds,
    get_hold,
    put_hold,
    remove_hold,
    list_pins,
    get_pin,
    put_pin,
    remove_pin,
]
