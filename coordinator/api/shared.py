"""Put one question at a time, in one thread, on behalf of all who ask it.

While an answer does not come no other thread is taken: the threads of a process are few, and forwarding mounts needs
them too.
Not here: how long an answer is good for (lag.py).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Calls `ask` in a thread, one call at a time."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._asked: asyncio.Future[T] | None = None
        self._next: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """Return the answer of a call that may be under way already, or raise what it raised."""
        if self._asked is None or self._asked.done():
            return await self.since_now()
        # A caller that gives up leaves the answer to the others.
        return await asyncio.shield(self._asked)

    async def since_now(self) -> T:
        """Return the answer of a call that begins after this one: what was true before is in it.

        Callers that wait for their call to begin share it. One that waits while the call before it fails gets that
        error: asking again at once would hold up everybody for another timeout.
        """
        if self._next is None:
            self._next = self._started(self._after(self._asked))
        return await asyncio.shield(self._next)

    async def _after(self, asked: asyncio.Future[T] | None) -> T:
        try:
            if asked is not None and not asked.done():
                await asyncio.shield(asked)
        finally:
            # From here on it is too late to share it: the call begins, or there is none.
            self._next = None
        self._asked = self._started(asyncio.to_thread(self._ask))
        return await asyncio.shield(self._asked)

    def _started(self, answer: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        started = asyncio.ensure_future(answer)
        # Where all callers have given up nobody else looks at what it raised, of which asyncio would complain.
        started.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        return started
