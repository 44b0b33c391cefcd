"""What the handlers need, built once by bootstrap and kept in the application's state."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from litestar import Request

from coordinator.api.auth import TokenDirectory
from coordinator.api.lag import LagReader
from coordinator.db.dead_letters import Publish
from coordinator.db.queries.blobs import BlobQueries
from coordinator.db.queries.session import Database
from coordinator.ingest.service import Ingest

#: Returns if the service answers; raises a BaleenError that says what is wrong.
Check = Callable[[], Awaitable[None]]


@asynccontextmanager
async def no_lifespan() -> AsyncIterator[None]:
    yield


@dataclass(frozen=True, kw_only=True)
class Deps:
    """Everything that the API speaks to."""

    engine: Database
    tokens: TokenDirectory
    blobs: BlobQueries
    lag: LagReader
    publish: Publish
    ingest: Ingest
    #: By what they check: database, migrations, kafka, store.
    checks: Mapping[str, Check]
    #: Where registries reach this API; None: as the request that asks did.
    url: str | None = None
    #: Entered before the first request, left after the last.
    lifespan: Callable[[], AbstractAsyncContextManager[None]] = field(default=no_lifespan)


def deps_of(request: Request[Any, Any, Any]) -> Deps:
    return cast("Deps", request.app.state.deps)
