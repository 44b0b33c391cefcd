"""The dependencies of the handlers, built once by compose/api.py and kept in the application's state."""

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
from coordinator.dead_letters.resolve import FindStored, Publish
from coordinator.domain.names import Digest
from coordinator.gc.conditions import ReadFacts, ReadFactsWithRows, facts_only
from coordinator.gc.view import FiguresReader
from coordinator.ingest.service import Ingest
from coordinator.lookup.blobs import BlobQueries
from coordinator.lookup.sizes import Sizes
from coordinator.pods.table import StillHolds
from coordinator.tokens.service import TokenService

#: Returns if the service answers, else raises a BaleenError that says what is wrong.
ReadinessCheck = Callable[[], Awaitable[None]]


def record_no_mark() -> None:
    pass


@asynccontextmanager
async def no_lifespan() -> AsyncIterator[None]:
    yield


@dataclass(frozen=True, kw_only=True)
class Deps:
    """Everything that the API uses."""

    engine: Database
    sizes: Sizes
    tokens: TokenDirectory
    blobs: BlobQueries
    lag: LagReader
    publish: Publish
    still_holds: StillHolds
    list_stored: FindStored
    #: The digests of the probes' image: its manifest, and what that lists.
    probe_image: frozenset[Digest]
    ingest: Ingest
    #: Reads the facts that GC depends on, and what they are derived from.
    read_known: ReadFactsWithRows
    figures: FiguresReader
    #: Issues tokens for several pods; None without a signing key.
    token_service: TokenService | None = None
    #: By name: database, migrations, kafka, store.
    checks: Mapping[str, ReadinessCheck]
    #: A registry process without an event or echo for this long is reported as silent.
    silence: timedelta
    #: How long requests of a registry process may still land after its end.
    request_bound: timedelta
    #: How long a direct link counts in a pod of mode `manifest`.
    link_grace: timedelta
    #: The interval of collections.
    gc_every: timedelta
    #: Checks of the doctor that do not block GC (settings.unsafe_findings).
    unsafe_findings: Collection[str] = ()
    #: The URL at which registries reach this API; None: that of the request.
    url: str | None = None
    #: Serves mounts; None: mounts are off.
    mounts: Mounts | None = None
    #: Writes a change of pods, prefixes, the switch, holds or pins to the mark in the bucket. It never raises; what it
    #: cannot write in time, a scheduler writes.
    record_mark: Callable[[], None] = record_no_mark
    #: Entered before the first request, left after the last.
    lifespan: Callable[[], AbstractAsyncContextManager[None]] = field(default=no_lifespan)

    @property
    def read_facts(self) -> ReadFacts:
        return facts_only(self.read_known)


def deps_of(request: Request[Any, Any, Any]) -> Deps:
    return cast("Deps", request.app.state.deps)
