"""A question that many ask at once, asked in one thread: where its answer does not come, it takes no other thread.

The threads of a process are few, and what hands mounts on to pods needs them too.
Not here: how long an answer is good for (lag.py).
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Calls `ask` in a thread; who asks before it has answered gets the same answer, or what it raised."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._asked: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        if self._asked is None or self._asked.done():
            self._asked = asyncio.ensure_future(asyncio.to_thread(self._ask))
            # Where all have given up nobody else looks at what it raised, of which asyncio would complain.
            self._asked.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        # Who gives up leaves it to the others.
        return await asyncio.shield(self._asked)
