"""`POST /v1/events/{pod}`: where registries post their notifications.

Nothing of the body is parsed or validated before Ingest has it: whatever a registry sends, of whatever
content type, is answered 202 once Kafka has it, because a registry repeats anything else for ever.
Not here: what becomes of the events (coordinator/ingest), how errors are rendered (problems.py).
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.params import FromPath
from litestar.types.asgi_types import HTTPRequestEvent

from coordinator.errors import BaleenError
from coordinator.ingest.service import Ingest
from schemas.envelope import CONTENT_TYPES
from schemas.publish import inlined


class SenderGoneError(BaleenError):
    """Nobody hears the answer; the registry sends the events again."""

    status = 400


class EventsReceipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the posted events; Kafka has all that is accepted, dead-lettered or reported."""

    accepted: int
    dropped: int
    dead_lettered: int
    #: Probes of Baleen that came back; left out where there were none.
    reported: int = 0


@dataclass
class _EventsOperation(Operation):
    """The operation with its request body, which the handler's signature does not show."""

    def __post_init__(self) -> None:
        # A published schema is a dictionary; the document takes it as it stands.
        schema = cast("Schema", inlined("registry.notification/1"))
        self.request_body = RequestBody(
            description="A notification envelope of a registry that speaks distribution's notifications.",
            required=True,
            content={kind: OpenAPIMediaType(schema=schema) for kind in sorted(CONTENT_TYPES)},
        )


def _problem(description: str) -> ResponseSpec:
    return ResponseSpec(dict[str, Any], description=description, media_type="application/problem+json")


@post(
    "/v1/events/{pod:str}",
    status_code=202,
    request_max_body_size=None,
    operation_class=_EventsOperation,
    operation_id="postEvents",
    summary="Take a registry's notifications",
    tags=["events"],
    security=[{"bearer": []}],
    responses={
        401: _problem("The pod or its token is not known."),
        503: _problem("Kafka is away, or ingest holds as much as it may: send the same again."),
    },
)
async def post_events(request: Request[Any, Any, Any], pod: FromPath[str]) -> Response[EventsReceipt]:
    """202 only after Kafka has the events. What cannot be understood is dead-lettered, and counted."""
    ingest = cast("Ingest", request.app.state.ingest)
    headers = request.headers
    receipt = await ingest.receive(
        pod, headers.get("authorization", ""), headers.get("content-type", ""), _chunks(request)
    )
    return Response(
        EventsReceipt(receipt.accepted, receipt.dropped, receipt.dead_lettered, receipt.reported),
        # The rest of a body without end is not waited for.
        headers=None if receipt.drained else {"Connection": "close"},
    )


async def _chunks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """The body as it arrives. A sender that goes away ends it as an error: half a body is not a body."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise SenderGoneError("The sender closed the connection before the end of the body.")
        body = cast("HTTPRequestEvent", message)
        if chunk := body["body"]:
            yield chunk
        if not body["more_body"]:
            return
