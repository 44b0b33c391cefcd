"""What the handlers need, built once by bootstrap and kept in the application's state."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from litestar import Request

from coordinator.api.auth import TokenDirectory
from coordinator.api.lag import LagReader
from coordinator.api.mounts import Mounts
from coordinator.db.session import Database
from coordinator.dead_letters.resolve import Publish, Stored
from coordinator.domain.names import Digest
from coordinator.gc.conditions import ReadFacts, ReadKnown, facts_of
from coordinator.gc.view import FiguresReader
from coordinator.ingest.service import Ingest
from coordinator.lookup.blobs import BlobQueries
from coordinator.pods.table import StillHolds
from coordinator.tokens.service import TokenService

#: Returns if the service answers; raises a BaleenError that says what is wrong.
Check = Callable[[], Awaitable[None]]


async def no_mark() -> None:
    pass


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
    stored: Stored
    #: What probes ask for, and what that lists.
    probe_image: frozenset[Digest]
    ingest: Ingest
    #: What garbage collection goes by, and what that was made of.
    known: ReadKnown
    figures: FiguresReader
    #: Makes tokens for several pods; None where no key to sign with is set.
    token_service: TokenService | None = None
    #: By what they check: database, migrations, kafka, store.
    checks: Mapping[str, Check]
    #: A registry process that was not heard for so long is told as silent.
    silence: timedelta
    #: How long what a process had begun may take to land after its end.
    request_bound: timedelta
    #: How long a direct link counts in a pod of mode `manifest`.
    link_grace: timedelta
    #: How often garbage is collected.
    gc_every: timedelta
    #: Checks of a doctor that hold nothing (settings.unsafe_findings).
    in_spite_of: Collection[str] = ()
    #: Where registries reach this API; None: as the request that asks did.
    url: str | None = None
    #: What serves mounts; None: none are made.
    mounts: Mounts | None = None
    #: Writes a change of pods, prefixes, the switch, holds or pins to the mark in the bucket; it never raises, and
    #: what it could not write in time a scheduler writes.
    record_mark: Callable[[], Awaitable[None]] = no_mark
    #: Entered before the first request, left after the last.
    lifespan: Callable[[], AbstractAsyncContextManager[None]] = field(default=no_lifespan)

    @property
    def facts(self) -> ReadFacts:
        return facts_of(self.known)


def deps_of(request: Request[Any, Any, Any]) -> Deps:
    return cast("Deps", request.app.state.deps)
