"""The HTTP application: routes, errors and OpenAPI. It knows no addresses of services.

Route: compose/api.py -> `create_app(deps)` -> server.py serves it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, Router
from litestar.concurrency import set_asyncio_executor
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from coordinator import installed_version
from coordinator.api import blobs, controls, dead_letters, gc, jobs, metrics, pods, problems, repositories, status
from coordinator.api.deps import Deps
from coordinator.api.events import post_events
from coordinator.api.mounts import serve_mounts
from coordinator.api.parameters import refuse_unknown_parameters
from coordinator.api.token_service import HANDLERS as TOKEN_SERVICE
from coordinator.db.threads import THREADS

#: Bytes of a body, for calls without a limit of their own.
BODY_LIMIT = 1024 * 1024

# Handlers that block wait for the database.
set_asyncio_executor(THREADS)

#: The type for those that do not import the framework.
Application = Litestar


def create_app(deps: Deps) -> Litestar:
    """Create the application. It enters `deps.lifespan` when it starts and leaves it when it stops."""

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with deps.lifespan():
            yield

    ours = Router(
        path="/",
        before_request=refuse_unknown_parameters,
        route_handlers=[
            handler
            for module in (blobs, repositories, pods, jobs, dead_letters, gc, controls, status, metrics)
            for handler in module.HANDLERS
        ],
    )
    return Litestar(
        # No check of parameters: webhook URLs of registries and requests for tokens may have any query.
        route_handlers=[ours, post_events, *TOKEN_SERVICE, serve_mounts],
        exception_handlers=problems.HANDLERS,  # type: ignore[arg-type]
        middleware=[metrics.count_requests],
        lifespan=[lifespan],
        state=State({"deps": deps, "ingest": deps.ingest}),
        request_max_body_size=BODY_LIMIT,
        logging_config=None,
        openapi_config=_make_openapi_config(),
    )


def _make_openapi_config() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Baleen",
        version=installed_version(),
        description="References to blobs across all pods. Lists have `items` and `next`; errors are problem+json.",
        path="/schema",
        render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(
                    type="http",
                    scheme="bearer",
                    description="A token of `baleen tokens create`, role read or operate; for events, the pod's token.",
                )
            }
        ),
    )
