"""What the handlers need, built once by bootstrap and kept in the application's state."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from litestar import Request

from coordinator.api.auth import TokenDirectory
from coordinator.api.lag import LagReader
from coordinator.db.dead_letters import Publish
from coordinator.db.pods import StillHolds
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
    still_holds: StillHolds
    ingest: Ingest
    #: By what they check: database, migrations, kafka, store.
    checks: Mapping[str, Check]
    #: A registry process that was not heard for so long is told as silent.
    silence: timedelta
    #: Where registries reach this API; None: as the request that asks did.
    url: str | None = None
    #: Entered before the first request, left after the last.
    lifespan: Callable[[], AbstractAsyncContextManager[None]] = field(default=no_lifespan)


def deps_of(request: Request[Any, Any, Any]) -> Deps:
    return cast("Deps", request.app.state.deps)
