"""All pods with their tokens, held in memory and refreshed.

Events must be accepted while the database is away, so known pods are served however old they are. A pod that was
added, or whose token was changed, is found at its first request: an unknown name or a wrong token makes the directory
read the database again, at most once in `MISS_INTERVAL` for all such requests together.
It also holds each pod's token issuer, so that the API reads pods once.
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
#: A database that does not answer within this time is away.
LOAD_TIMEOUT: Final = 5.0
#: The longest that a request waits for a refresh of outdated pods.
PATIENCE: Final = 0.25


@dataclass(frozen=True, slots=True)
class KnownPod:
    """What a request needs to know of a pod."""

    name: PodName
    prefixes: tuple[str, ...]
    token_sha256: bytes = field(repr=False)
    issuer: TokenIssuer | None = None


class PodDirectory(Protocol):
    """Ingest's look-up of pods."""

    async def get(self, name: PodName, *, fresh: bool = False) -> KnownPod | None:
        """Return the pod, or None; `fresh` says that the last answer may be outdated.

        Raises UnavailableError if no pods were read yet and the database does not answer.
        """


class CachedPodDirectory:
    """All pods, as last returned by `load`."""

    def __init__(
        self,
        load: Callable[[], Awaitable[list[KnownPod]]],
        ttl: float,
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
            await self._wait_for_refresh(self._miss_interval, self._miss_interval)
            known = self._pods or known
        return known.get(name)

    async def all(self) -> Mapping[PodName, KnownPod]:
        """Return every pod; raises UnavailableError as `get` does."""
        if self._pods is None:
            await self._wait_for_refresh(self._load_timeout, self._miss_interval)
            if self._pods is None:
                raise UnavailableError("The database that knows the pods does not answer: try again later.")
        elif time.monotonic() - self._loaded_at > self._ttl and self._refreshing is None:
            # One request waits a moment; during a refresh the others use the known pods.
            await self._wait_for_refresh(PATIENCE, self._ttl)
        return self._pods

    async def _wait_for_refresh(self, patience: float, interval: float) -> None:
        """Load the pods again and wait up to `patience`; does nothing if that was tried within the interval."""
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
            log.warning("The pods cannot be read from the database, and ingest uses the known ones: %r", error)
        finally:
            self._refreshing = None
