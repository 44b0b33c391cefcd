"""Parameters that several calls share, and the refusal of unknown and repeated ones.

An ignored filter would give a wrong answer, so an unknown parameter is refused by name.
"""

from functools import cache
from typing import Annotated, Any, get_args

from litestar import Request
from litestar.params import ParameterKwarg, PathParameter, QueryParameter

from coordinator.api.refusals import hints_of
from coordinator.db import paging
from coordinator.domain.names import PodName, parse_pod
from coordinator.errors import UsageError

Limit = Annotated[int, QueryParameter(ge=1, le=paging.LIMIT, description="Most items of a page.")]
Cursor = Annotated[
    str | None,
    QueryParameter(max_length=paging.CURSOR_LENGTH_LIMIT, description="`next` of the previous page.", required=False),
]
PodFilter = Annotated[str | None, QueryParameter(description="Only items of this pod.", required=False)]

DigestText = Annotated[
    str, PathParameter(description="sha256: and 64 lower-case hex digits.", pattern="^sha256:[0-9a-f]{64}$")
]

#: The default of `why`.
DEFAULT_WHY = "an operator asked"

#: Parameters of handlers that are not in the query: from the path, the body or the framework.
NO_QUERY = frozenset({"request", "return", "data", "digest", "name", "pod_name", "number", "instance"})


def pod_or_none(text: str | None) -> PodName | None:
    return None if text is None else parse_pod(text)


async def refuse_unknown_parameters(request: Request[Any, Any, Any]) -> None:
    """Refuse unknown and repeated parameters, before every handler; raises UsageError."""
    if not request.scope["query_string"]:
        return
    known = _query_parameters(request.route_handler.fn)
    for name in request.query_params:
        if name not in known:
            meant = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise UsageError(f"{name[:100]!r} is not a parameter of this call: {meant}.")
        if len(request.query_params.getall(name)) > 1:
            raise UsageError(f"`{name}` is given more than once: give it once.")


@cache
def _query_parameters(handler: Any) -> frozenset[str]:
    """The names of a handler's query parameters, as clients write them."""
    hints = hints_of(handler)
    return frozenset(
        next((mark.name for mark in get_args(hint) if isinstance(mark, ParameterKwarg) and mark.name), name)
        for name, hint in hints.items()
        if name not in NO_QUERY
    )
