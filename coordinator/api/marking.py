"""Write changes of the GC controls and pods to the mark in the bucket before the API answers, where that is quick.

A database that is restored from before such a change is then noticed (domain/mark.py). A change is never refused or
undone because the bucket does not answer: a scheduler writes it later, and `/v1/gc/status` says that it is pending.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from coordinator.errors import BaleenError

log = structlog.get_logger()

#: How long an answer waits for the bucket.
PATIENCE_S = 5.0


class MarkRecorder:
    """`record` blocks; it is called in one thread, so that calls follow each other."""

    def __init__(self, record: Callable[[], None], close: Callable[[], None]) -> None:
        self._record = record
        self._close = close
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mark")

    async def __call__(self) -> None:
        """Return once the bucket has what was committed before the call, or after PATIENCE_S."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._record)
        except TimeoutError:
            log.warning("the mark is not written yet", reason=f"no answer within {PATIENCE_S:.0f} s")
        except BaleenError as error:
            log.warning("the mark is not written yet", reason=str(error))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._close()
