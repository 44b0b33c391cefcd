"""Run periodic work, each piece in its own thread.

Route: a list of `PeriodicWork` -> `PeriodicThreads.start` -> lease -> work -> pause -> …
A failure is logged, and the work is retried at its next time. Work marked `alone` is done by one process at a time.
A process that was paused may continue such work for a moment after another took over, so each piece of work must be
correct whichever process does it, and however often.
Not here: which work there is (scheduler.py).
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import structlog

from coordinator.errors import UnavailableError
from coordinator.jobs.leases import BEAT_S, Leases
from workers import metrics

log = structlog.get_logger()

#: Seconds that the threads have to end when the process stops; another process repeats work that is cut off then.
END_S = 3.0


#: The longest time between two attempts to get a lease that another process holds.
ASK_EVERY_S = 5.0

Outcome = Literal["done", "failed", "left"]


class PeriodicWork(NamedTuple):
    """Work to do every so many seconds. It should return soon once the process is asked to stop."""

    name: str
    every: float
    work: Callable[[], object]
    #: One process at a time does it; otherwise every process.
    alone: bool = True


class PeriodicThreads:
    """Threads that do the work until they are stopped."""

    def __init__(
        self, works: Sequence[PeriodicWork], leases: Leases, stop: threading.Event, end_s: float = END_S
    ) -> None:
        self._works = works
        self._end_s = end_s
        self._leases = leases
        self._stop = stop
        self._threads: list[threading.Thread] = []
        #: Why work failed the last time, by its name.
        self._put_off: dict[str, str] = {}

    def run(self) -> None:
        """Work until stopped; then returns within `end_s`."""
        for work in self._works:
            thread = threading.Thread(target=self._repeat, args=(work,), name=work.name, daemon=True)
            self._threads.append(thread)
            thread.start()
        while not self._stop.wait(BEAT_S):
            try:
                self._leases.beat()
            except UnavailableError as error:
                log.warning("leases are lost", reason=str(error))
        deadline = time.monotonic() + self._end_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _repeat(self, work: PeriodicWork) -> None:
        # Processes that start together must not all ask at once.
        pause = random.uniform(0, min(1.0, work.every))  # noqa: S311 - not a secret
        while not self._stop.wait(pause):
            began = time.monotonic()
            outcome = self._do_once(work)
            every = min(work.every, ASK_EVERY_S) if outcome == "left" else work.every
            pause = max(0.0, began + every - time.monotonic())

    def _do_once(self, work: PeriodicWork) -> Outcome:
        """Do the work if this process holds the lease."""
        outcome: Outcome = "failed"
        try:
            if work.alone and not self._leases.take(work.name):
                outcome = "left"
            else:
                work.work()
                outcome = "done"
            if self._put_off.pop(work.name, None) is not None:
                log.info("work recovered", work=work.name)
        except UnavailableError as error:
            # Logged once, not every second while a service is away.
            if self._put_off.get(work.name) != str(error):
                self._put_off[work.name] = str(error)
                log.warning("work failed, will be retried", work=work.name, reason=str(error))
        except Exception:
            # It is retried later; other work must not end because of it.
            log.exception("work failed", work=work.name)
        finally:
            metrics.WORK.labels(work.name, outcome).inc()
        return outcome
