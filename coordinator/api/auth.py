"""Authorization of API calls: bearer tokens with a role, read < operate.

All tokens are cached in memory by their hash and read again every REFRESH_SECONDS, so a revoked one is refused within
that time. An unknown token causes a read at once, but at most every MISS_SECONDS. While the database is away, known
tokens stay valid for up to STALE_SECONDS. Pods' tokens are valid for events only (coordinator/ingest).
"""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from coordinator.errors import ForbiddenError, UnauthorizedError, UnavailableError
from coordinator.tokens.table import KnownToken, Role, hash_token

REFRESH_SECONDS = 5.0
MISS_SECONDS = 0.5
STALE_SECONDS = 60.0

Load = Callable[[], Awaitable[dict[bytes, KnownToken]]]


class TokenDirectory:
    """Caches the API tokens that `load` returns."""

    def __init__(self, load: Load, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._known: dict[bytes, KnownToken] = {}
        self._loaded_at = self._tried_at = float("-inf")
        self._loading = asyncio.Lock()

    async def get(self, token: str) -> KnownToken | None:
        """Look up a token; None if it is unknown. Raises UnavailableError if the tokens cannot be read."""
        sha256 = hash_token(token)
        if self._clock() - self._loaded_at > REFRESH_SECONDS:
            await self._refresh(REFRESH_SECONDS)
        found = self._find(sha256)
        if found is None:
            await self._refresh(MISS_SECONDS)
            found = self._find(sha256)
        return found

    def _find(self, sha256: bytes) -> KnownToken | None:
        found = self._known.get(sha256)
        # A client cannot choose the hash, and the comparison takes constant time.
        return found if found is not None and hmac.compare_digest(found.sha256, sha256) else None

    async def _refresh(self, interval: float) -> None:
        async with self._loading:
            now = self._clock()
            if now - self._loaded_at <= interval:
                return
            if now - self._tried_at <= MISS_SECONDS:
                # The last read has just failed, or did not find the token.
                if now - self._loaded_at > STALE_SECONDS:
                    raise UnavailableError(
                        "The database does not answer, so the token cannot be checked: try again in a moment."
                    )
                return
            self._tried_at = now
            try:
                self._known = await self._load()
            except UnavailableError:
                if now - self._loaded_at > STALE_SECONDS:
                    raise
            else:
                self._loaded_at = now


def require_role(role: Role) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]:
    """Return a guard that accepts tokens of at least this role."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        scheme, _space, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise UnauthorizedError(
                "This call needs a token: send `Authorization: Bearer …` with one of `baleen tokens create`."
            )
        known = await connection.app.state.deps.tokens.get(token.strip())
        if known is None:
            raise UnauthorizedError("The token is unknown or revoked: create one with `baleen tokens create`.")
        if role == "operate" and known.role != "operate":
            raise ForbiddenError("The token may only read: use one with role operate.")

    return guard


READ: dict[str, Any] = {"guards": [require_role("read")], "security": [{"bearer": []}]}
OPERATE: dict[str, Any] = {"guards": [require_role("operate")], "security": [{"bearer": []}]}
