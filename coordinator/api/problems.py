"""Render every error as application/problem+json (RFC 9457): type, title, status, detail. Never a stack trace.

An unexpected error is logged with its trace, and answered with 500 without details.
"""

from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec

from coordinator.api import refusals
from coordinator.errors import BaleenError

MEDIA_TYPE = "application/problem+json"

log = structlog.get_logger()


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, and in `detail` what to do about it."""

    type: str
    title: str
    status: int
    detail: str


def make_problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response[Problem]:
    body = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(body, status_code=status, headers=headers, media_type=MEDIA_TYPE)


def handle_refusal(_: Request[Any, Any, Any], error: BaleenError) -> Response[Problem]:
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request failed", error=str(error))
    return make_problem(error.status, str(error), dict(error.headers))


def handle_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """Render a refusal by the framework: unknown path, wrong method, invalid parameters."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {_path_of(request)}: see /schema."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} does not work on {_path_of(request)}: see /schema."
    else:
        detail = _describe(request, error)
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return make_problem(error.status_code, detail, headers)


def handle_deep_nesting(_: Request[Any, Any, Any], __: RecursionError) -> Response[Problem]:
    return make_problem(400, "The body cannot be read: its lists and objects are nested too deeply.")


def handle_failure(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    log.error("request failed", method=request.method, path=_path_of(request), exc_info=error)
    return make_problem(500, "Internal error: see the log of Baleen's API.")


def _path_of(request: Request[Any, Any, Any]) -> str:
    # Not the whole URL: building that fails if the client sent a malformed host.
    return str(request.scope["path"])


def _describe(request: Request[Any, Any, Any], error: HTTPException) -> str:
    if isinstance(error, ValidationException):
        complaints = error.extra if isinstance(error.extra, list) else []
        if detail := refusals.describe_refusal(request.route_handler.fn, complaints):
            return detail
    if error.detail.startswith("JSON is malformed"):
        return f"The body cannot be read: {error.detail.rstrip('.')}."
    return error.detail or HTTPStatus(error.status_code).phrase


def document_problems(*statuses: int) -> dict[int, ResponseSpec]:
    """Return a handler's problems for the OpenAPI document; 400, 401, 403 and 503 are always included."""
    return {
        status: ResponseSpec(Problem, description=HTTPStatus(status).phrase, media_type=MEDIA_TYPE)
        for status in sorted({*statuses, 400, 401, 403, 503})
    }


HANDLERS = {
    BaleenError: handle_refusal,
    HTTPException: handle_http_error,
    RecursionError: handle_deep_nesting,
    Exception: handle_failure,
}
