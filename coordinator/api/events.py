"""`POST /v1/events/{pod}`: receive the notifications of registries.

The body goes to Ingest unparsed. Any body of any content type is answered 202 once Kafka has it, because a registry
repeats a refused one for ever.
Not here: processing the events (coordinator/ingest), rendering errors (problems.py).
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
from schemas.publish import inline_schema


class SenderGoneError(BaleenError):
    """The sender closed the connection; the registry sends the events again."""

    status = 400


class EventsReceipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts of the posted events by outcome. Kafka has those that are accepted, dead-lettered or reported."""

    accepted: int
    dropped: int
    dead_lettered: int
    #: Echoes of Baleen's probes; omitted if there were none.
    reported: int = 0


@dataclass
class _EventsOperation(Operation):
    """Adds the request body, which the handler's signature does not have, to the OpenAPI operation."""

    def __post_init__(self) -> None:
        # The published schema is a dictionary, and is rendered as it is.
        schema = cast("Schema", inline_schema("registry.notification/1"))
        self.request_body = RequestBody(
            description="A notification envelope in distribution's format.",
            required=True,
            content={kind: OpenAPIMediaType(schema=schema) for kind in sorted(CONTENT_TYPES)},
        )


def _document_problem(description: str) -> ResponseSpec:
    return ResponseSpec(dict[str, Any], description=description, media_type="application/problem+json")


@post(
    "/v1/events/{pod:str}",
    status_code=202,
    request_max_body_size=None,
    operation_class=_EventsOperation,
    operation_id="postEvents",
    summary="Receive a registry's notifications",
    tags=["events"],
    security=[{"bearer": []}],
    responses={
        401: _document_problem("The pod or its token is unknown."),
        503: _document_problem("Kafka is away, or ingest is at its memory limit: send the same again."),
    },
)
async def post_events(request: Request[Any, Any, Any], pod: FromPath[str]) -> Response[EventsReceipt]:
    """202 only after Kafka has the events. Events that cannot be understood become dead letters, and are counted."""
    ingest = cast("Ingest", request.app.state.ingest)
    headers = request.headers
    receipt = await ingest.receive(
        pod, headers.get("authorization", ""), headers.get("content-type", ""), _read_chunks(request)
    )
    return Response(
        EventsReceipt(receipt.accepted, receipt.dropped, receipt.dead_lettered, receipt.reported),
        # The rest of the body was not read: close the connection.
        headers=None if receipt.drained else {"Connection": "close"},
    )


async def _read_chunks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raises SenderGoneError if the sender closes the connection before its end."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise SenderGoneError("The sender closed the connection before the end of the body.")
        body = cast("HTTPRequestEvent", message)
        if chunk := body["body"]:
            yield chunk
        if not body["more_body"]:
            return
