"""Run one blocking call at a time in a thread, and share its result among all callers.

A call that hangs occupies one thread only: a process has few, and forwarding mounts needs them too.
Not here: how long a result is cached (lag.py).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Runs `ask` in a thread, one call at a time."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._asked: asyncio.Future[T] | None = None
        self._next: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return the result of a call that may already be running, or raise its error."""
        if self._asked is None or self._asked.done():
            return await self.call_after_now()
        # Shielded: a caller that gives up does not cancel the call for the others.
        return await asyncio.shield(self._asked)

    async def call_after_now(self) -> T:
        """Return the result of a call that begins after this one, so it covers everything before.

        Callers that wait for the next call share it. If the call before it fails, they get that error: another attempt
        would delay them all by another timeout.
        """
        if self._next is None:
            self._next = self._start(self._call_after(self._asked))
        return await asyncio.shield(self._next)

    async def _call_after(self, asked: asyncio.Future[T] | None) -> T:
        try:
            if asked is not None and not asked.done():
                await asyncio.shield(asked)
        finally:
            # The call begins now, or never: later callers need another one.
            self._next = None
        self._asked = self._start(asyncio.to_thread(self._ask))
        return await asyncio.shield(self._asked)

    def _start(self, answer: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        started = asyncio.ensure_future(answer)
        # Retrieve the error: asyncio logs one that no caller is left to retrieve.
        started.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        return started
