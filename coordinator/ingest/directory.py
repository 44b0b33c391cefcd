"""Which pods there are and how each proves who it is: all of them, held in memory and refreshed.

Events must be taken while the database is away, so what is known is served however old it is. A pod that was
added, or whose token was changed, is found at its first request: an unknown name or a wrong token asks the
database again, at most once in `MISS_INTERVAL` for all of them together.
Who makes a pod's tokens is known here, too, so that the API reads pods once.
Not here: how pods are stored (coordinator/pods, coordinator/db).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from coordinator.domain.names import PodName
from coordinator.domain.pods import TokenIssuer
from coordinator.errors import UnavailableError

log = logging.getLogger(__name__)

MISS_INTERVAL: Final = 1.0
#: A database that does not answer for so long is away.
LOAD_TIMEOUT: Final = 5.0
#: A request that finds its knowledge out of date waits for news no longer than this.
PATIENCE: Final = 0.25


@dataclass(frozen=True, slots=True)
class KnownPod:
    """A pod, as far as a request has to know it."""

    name: PodName
    prefixes: tuple[str, ...]
    token_sha256: bytes = field(repr=False)
    issuer: TokenIssuer | None = None


class PodDirectory(Protocol):
    """Where ingest looks pods up."""

    async def get(self, name: PodName, *, fresh: bool = False) -> KnownPod | None:
        """Return the pod, or None; `fresh` says that what it last said was not good enough.

        Raises UnavailableError where nothing is known yet and nothing can be learnt.
        """


class CachedPodDirectory:
    """All pods, as `load` last gave them."""

    def __init__(
        self,
        load: Callable[[], Awaitable[list[KnownPod]]],
        ttl: float = 5.0,
        *,
        load_timeout: float = LOAD_TIMEOUT,
        miss_interval: float = MISS_INTERVAL,
    ) -> None:
        self._load = load
        self._ttl = ttl
        self._load_timeout = load_timeout
        self._miss_interval = miss_interval
        self._pods: dict[PodName, KnownPod] | None = None
        self._loaded_at = self._attempted_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def get(self, name: PodName, *, fresh: bool = False) -> KnownPod | None:
        known = await self.all()
        if fresh or name not in known:
            await self._refreshed(self._miss_interval, self._miss_interval)
            known = self._pods or known
        return known.get(name)

    async def all(self) -> Mapping[PodName, KnownPod]:
        """Return every pod; raises UnavailableError as `get` does."""
        if self._pods is None:
            await self._refreshed(self._load_timeout, self._miss_interval)
            if self._pods is None:
                raise UnavailableError("The database that knows the pods does not answer: try again later.")
        elif time.monotonic() - self._loaded_at > self._ttl and self._refreshing is None:
            # One request waits a moment; while a refresh is under way the others go on with what there is.
            await self._refreshed(PATIENCE, self._ttl)
        return self._pods

    async def _refreshed(self, patience: float, interval: float) -> None:
        """Load anew and wait, up to `patience`; nothing if that was tried within the interval."""
        if self._refreshing is None:
            if time.monotonic() - self._attempted_at < interval:
                return
            self._attempted_at = time.monotonic()
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.wait([self._refreshing], timeout=patience)

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._load_timeout):
                pods = await self._load()
            self._pods = {pod.name: pod for pod in pods}
            self._loaded_at = time.monotonic()
        except Exception as error:  # noqa: BLE001 - whatever it is, what is known stays good
            log.warning("The pods cannot be read from the database, and ingest goes on with what it knows: %r", error)
        finally:
            self._refreshing = None
