"""What stops garbage collection: the kill switch, holds and pins. Not here: that they do (gc/table.py)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, put
from litestar.params import JSONBody, PathParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import ASKED, Cursor, DigestText, Limit
from coordinator.api.problems import documented
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.domain.names import parse_digest, parse_repository
from coordinator.domain.reasons import WHY_LIMIT
from coordinator.gc import controls
from coordinator.gc import controls_view as queries
from coordinator.gc.shapes import Hold, HoldPage, Pin, PinPage, Switch

BODY_LIMIT = 16 * 1024

TAGS = ["garbage collection"]
Scope = Annotated[str, PathParameter(description="A pod, or a prefix of repositories' names: team/app.")]
Why = Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]


class SwitchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool
    why: Why


class HoldRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Why = ASKED


class PinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Why = ASKED


@get(
    "/v1/gc/switch",
    operation_id="getSwitch",
    summary="Whether garbage is collected, and why",
    tags=TAGS,
    responses=documented(),
    **READ,
)
async def get_switch(request: Request[Any, Any, Any]) -> Switch:
    return await queries.switched(deps_of(request).engine)


@put(
    "/v1/gc/switch",
    operation_id="putSwitch",
    summary="Turn the kill switch",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=documented(413),
    **OPERATE,
)
async def put_switch(request: Request[Any, Any, Any], data: JSONBody[SwitchRequest]) -> Switch:
    """When this has answered, no process lets a delete go to the object store any more if it is off. What was let go
    just before may still land.
    """
    deps = deps_of(request)
    await controls.put_switch(deps.engine, data.why, on=data.enabled)
    await deps.record_mark()
    return await queries.switched(deps.engine)


@get("/v1/holds", operation_id="listHolds", summary="Holds by scope", tags=TAGS, responses=documented(), **READ)
async def list_holds(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> HoldPage:
    return await queries.holds(deps_of(request).engine, cursor=cursor, limit=limit)


@get(
    "/v1/holds/{name:path}",
    operation_id="getHold",
    summary="One hold",
    tags=TAGS,
    responses=documented(404),
    **READ,
)
async def get_hold(request: Request[Any, Any, Any], name: Scope) -> Hold:
    return await queries.hold(deps_of(request).engine, parse_repository(name.removeprefix("/")))


@put(
    "/v1/holds/{name:path}",
    operation_id="putHold",
    summary="Collect nothing",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=documented(413),
    **OPERATE,
)
async def put_hold(request: Request[Any, Any, Any], name: Scope, data: JSONBody[HoldRequest | None] = None) -> Hold:
    """`name` says for whom. It holds everything, since pods share the bytes; so it need not be known."""
    deps, scope = deps_of(request), parse_repository(name.removeprefix("/"))
    await controls.put_hold(deps.engine, scope, (data or HoldRequest()).why)
    await deps.record_mark()
    return await queries.hold(deps.engine, scope)


@delete(
    "/v1/holds/{name:path}",
    operation_id="removeHold",
    summary="Let go of a hold",
    tags=TAGS,
    responses=documented(404),
    **OPERATE,
)
async def remove_hold(request: Request[Any, Any, Any], name: Scope) -> None:
    deps = deps_of(request)
    await controls.remove_hold(deps.engine, parse_repository(name.removeprefix("/")))
    await deps.record_mark()


@get("/v1/pins", operation_id="listPins", summary="Pins by digest", tags=TAGS, responses=documented(), **READ)
async def list_pins(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> PinPage:
    return await queries.pins(deps_of(request).engine, cursor=cursor, limit=limit)


@get(
    "/v1/pins/{digest:str}",
    operation_id="getPin",
    summary="One pin",
    tags=TAGS,
    responses=documented(404),
    **READ,
)
async def get_pin(request: Request[Any, Any, Any], digest: DigestText) -> Pin:
    return await queries.pin(deps_of(request).engine, parse_digest(digest))


@put(
    "/v1/pins/{digest:str}",
    operation_id="putPin",
    summary="Never collect a blob",
    tags=TAGS,
    request_max_body_size=BODY_LIMIT,
    responses=documented(413),
    **OPERATE,
)
async def put_pin(request: Request[Any, Any, Any], digest: DigestText, data: JSONBody[PinRequest | None] = None) -> Pin:
    """Also one that nobody has spoken of yet. One that is hidden stays so and keeps its bytes: `undelete` it."""
    deps, parsed = deps_of(request), parse_digest(digest)
    await controls.put_pin(deps.engine, parsed, (data or PinRequest()).why)
    await deps.record_mark()
    return await queries.pin(deps.engine, parsed)


@delete(
    "/v1/pins/{digest:str}",
    operation_id="removePin",
    summary="Collect a blob like any other",
    tags=TAGS,
    responses=documented(404),
    **OPERATE,
)
async def remove_pin(request: Request[Any, Any, Any], digest: DigestText) -> None:
    deps = deps_of(request)
    await controls.remove_pin(deps.engine, parse_digest(digest))
    await deps.record_mark()


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
