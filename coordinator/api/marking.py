"""Write changes of GC controls and pods to the mark in the bucket, if possible before the API answers.

So the restore of a database from before such a change is noticed (domain/mark.py). A change is never refused or undone
because the bucket does not answer: a scheduler writes it later, and `/v1/gc/status` shows that it is pending.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from coordinator.errors import BaleenError

log = structlog.get_logger()

#: How long an answer waits for the bucket.
PATIENCE_S = 5.0


class MarkRecorder:
    """Calls `record`, which blocks, in one thread, so that calls run one after another."""

    def __init__(self, record: Callable[[], None], close: Callable[[], None]) -> None:
        self._record = record
        self._close = close
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mark")

    def __call__(self) -> None:
        """Write the mark; return once the bucket has what was committed before the call, or after PATIENCE_S."""
        try:
            self._thread.submit(self._record).result(PATIENCE_S)
        except TimeoutError:
            log.warning("the mark is not written yet", reason=f"no answer within {PATIENCE_S:.0f} s")
        except BaleenError as error:
            log.warning("the mark is not written yet", reason=str(error))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._close()
