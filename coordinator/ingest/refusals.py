"""Record for operators that events of a pod were refused because of a wrong token.

Anyone may post with wrong tokens, any number of times. So each replica records a pod at most once in `EVERY_S`, only
known pods, with one statement in `PACE_S` for all that wait. No answer waits for it; if it fails, the next refusal is
recorded instead.
Not here: how it is stored (pods/refusals.py), the message about it (domain/refusals.py).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from coordinator.domain.names import PodName

log = logging.getLogger(__name__)

EVERY_S: Final = 10.0
PACE_S: Final = 1.0
#: A database that does not answer within this time is away.
TIMEOUT_S: Final = 5.0

RecordRefusals = Callable[[Collection[PodName]], Awaitable[None]]


async def record_nowhere(_: Collection[PodName]) -> None:
    """Record nothing, where there is no database."""


class RefusalNotes:
    """One replica's state: when each pod was last recorded, and which wait to be."""

    def __init__(
        self,
        write: RecordRefusals = record_nowhere,
        *,
        every: float = EVERY_S,
        pace: float = PACE_S,
        timeout: float = TIMEOUT_S,
    ) -> None:
        self._write = write
        self._every = every
        self._pace = pace
        self._timeout = timeout
        self._noted: dict[PodName, float] = {}
        self._pending: set[PodName] = set()
        self._writing: asyncio.Task[None] | None = None

    def note_refusal(self, pod: PodName) -> None:
        """Queue the pod, unless it was recorded recently. The pod must be a known one: each is kept in memory."""
        now = time.monotonic()
        if now - self._noted.get(pod, float("-inf")) < self._every:
            return
        self._noted[pod] = now
        self._pending.add(pod)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_pending())

    async def _write_pending(self) -> None:
        try:
            while self._pending:
                pods, self._pending = self._pending, set()
                try:
                    async with asyncio.timeout(self._timeout):
                        await self._write(pods)
                except Exception as error:  # noqa: BLE001 - whatever it is, events are taken all the same
                    log.warning("Refusals because of wrong tokens cannot be recorded: %r", error)
                await asyncio.sleep(self._pace)
        finally:
            self._writing = None
