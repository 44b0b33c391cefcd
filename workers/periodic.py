"""Run pieces of work again and again, each in a thread of its own.

Route: a list of `Periodic` -> `Periodically.start` -> lease -> work -> pause -> …
A piece of work that fails is told in the log, and done again at its time. Of several processes one does what is marked
`alone`. Since a process that was stopped may go on with such work for a moment after another took over, each piece of
work must be right whoever does it and however often.
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

#: So long the threads have to end when the process is told to; what is cut short then is begun again elsewhere.
END_S = 3.0


#: A lease that another process has is asked for so often at least.
ASK_EVERY_S = 5.0

Outcome = Literal["done", "failed", "left"]


class Periodic(NamedTuple):
    """Work to do every so many seconds. It should return soon once the process is told to end."""

    name: str
    every: float
    work: Callable[[], object]
    #: One process at a time; else all that run.
    alone: bool = True


class Periodically:
    """Threads that do the work until told to stop."""

    def __init__(self, works: Sequence[Periodic], leases: Leases, stop: threading.Event) -> None:
        self._works = works
        self._leases = leases
        self._stop = stop
        self._threads: list[threading.Thread] = []
        #: Why work could not be done the last time, by its name.
        self._put_off: dict[str, str] = {}

    def run(self) -> None:
        """Return once told to stop, after at most END_S more."""
        for work in self._works:
            thread = threading.Thread(target=self._repeat, args=(work,), name=work.name, daemon=True)
            self._threads.append(thread)
            thread.start()
        while not self._stop.wait(BEAT_S):
            try:
                self._leases.beat()
            except UnavailableError as error:
                log.warning("leases are lost", reason=str(error))
        deadline = time.monotonic() + END_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _repeat(self, work: Periodic) -> None:
        # Several that are started together do not all ask at once.
        pause = random.uniform(0, min(1.0, work.every))  # noqa: S311 - not a secret
        while not self._stop.wait(pause):
            began = time.monotonic()
            outcome = self._once(work)
            every = min(work.every, ASK_EVERY_S) if outcome == "left" else work.every
            pause = max(0.0, began + every - time.monotonic())

    def _once(self, work: Periodic) -> Outcome:
        """Do the work if it is ours to do."""
        outcome: Outcome = "failed"
        try:
            if work.alone and not self._leases.hold(work.name):
                outcome = "left"
            else:
                work.work()
                outcome = "done"
            if self._put_off.pop(work.name, None) is not None:
                log.info("work goes on", work=work.name)
        except UnavailableError as error:
            # Said once, not every second for as long as a service is away.
            if self._put_off.get(work.name) != str(error):
                self._put_off[work.name] = str(error)
                log.warning("work put off", work=work.name, reason=str(error))
        except Exception:
            # It is done again later, and other work must not end for it.
            log.exception("work failed", work=work.name)
        finally:
            metrics.WORK.labels(work.name, outcome).inc()
        return outcome
