"""Examine registry processes that began or came back after the last visit of a doctor, without an operator.

Route: workers/scheduler.py, every few seconds -> `Again.round` -> the pod that has waited longest -> `examine_again`:
the doctor's own experiments, all but those with the pod's key -> all proved: its processes are examined; else the
hold says what is not, and the visit is repeated.
A client can make a registry process end (it can use up its memory), so the process that follows must not need an
operator. What the visit proves is what an operator's visit would prove of it. The key is another matter: no experiment
tells which key a process uses, so its checks keep the result of the last visit that had it.

Invariants: one visit in a round; one pod is visited after a pause at the earliest, which is longer each time that a
visit of the same processes fails; a pod that no operator's doctor has visited is left to one.
Not here: experiments (the checks), what they mean for garbage collection (domain/findings.py).
"""

import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

import structlog

from coordinator.db.connection import Connections
from coordinator.doctor import table as findings
from coordinator.doctor.examine import TAKING_AWAY, examine_again
from coordinator.doctor.visit import Instruments
from coordinator.domain.names import PodName
from coordinator.errors import BaleenError, ConflictError

log = structlog.get_logger()

#: Between two visits of one pod: a visit holds events of the pod back for seconds.
FIRST_PAUSE_S: Final = 60.0
#: Once a flood of requests or restarts has ended, the next visit begins within this time.
LONGEST_PAUSE_S: Final = 900.0

#: Of what a hold says of a visit that came to no end.
ERROR_LENGTH: Final = 300

#: Opens what a visit to a pod works with.
Open = Callable[[PodName], AbstractContextManager[Instruments]]


class _EndingError(BaleenError):
    """The scheduler ends: so does the visit, which takes away what it tried."""


class Visited(NamedTuple):
    """The last visit to a pod."""

    #: Ids and lives of the processes that no visit was of.
    processes: frozenset[tuple[int, int]]
    #: By a clock that is never set.
    ended: float
    pause: float


def after(last: Visited | None, processes: frozenset[tuple[int, int]], ended: float) -> Visited:
    """Return the visit to these processes that ended now: the pause is twice as long where it was of the same."""
    if last is None or last.processes != processes:
        return Visited(processes, ended, FIRST_PAUSE_S)
    return Visited(processes, ended, min(2 * last.pause, LONGEST_PAUSE_S))


def is_due(last: Visited | None, processes: frozenset[tuple[int, int]], now: float) -> bool:
    """Whether these processes may be visited now. Others than the last time need not wait for the longer pause."""
    if last is None:
        return True
    return now - last.ended >= (last.pause if processes == last.processes else FIRST_PAUSE_S)


class Again:
    """Visits, one at a time. Used by one thread. What it remembers is only when to visit next."""

    def __init__(
        self, connections: Connections, opened: Open, in_spite_of: Collection[str], stop: threading.Event
    ) -> None:
        self._connections = connections
        self._open = opened
        self._in_spite_of = in_spite_of
        self._stop = stop
        self._visited: dict[PodName, Visited] = {}

    def round(self) -> None:
        """Visit the pod that has waited longest, if any may be visited now."""
        with self._connections.use() as connection:
            waiting = findings.unexamined(connection)
        now = time.monotonic()
        due = [pod for pod, processes in waiting.items() if is_due(self._visited.get(pod), processes, now)]
        if due:
            pod = min(due, key=lambda each: (self._visited[each].ended if each in self._visited else 0.0, each))
            self._visit(pod, waiting[pod])

    def _visit(self, pod: PodName, processes: frozenset[tuple[int, int]]) -> None:
        log.info("registry processes that no doctor has examined are examined", pod=pod, processes=len(processes))
        try:
            with self._open(pod) as instruments:
                failed = examine_again(instruments, pod, self._in_spite_of, self._go_on)
        except _EndingError:
            return
        except ConflictError as error:
            log.info("a pod is examined later", pod=pod, reason=str(error))
        except BaleenError as error:
            log.warning("a pod could not be examined", pod=pod, reason=str(error))
            with self._connections.use() as connection:
                findings.write_failed(connection, pod, [str(error).rstrip(".")[:ERROR_LENGTH]])
        else:
            if failed:
                log.warning("registry processes are not proved safe to collect for", pod=pod, why=failed)
            else:
                log.info("registry processes are examined", pod=pod)
        finally:
            self._visited[pod] = after(self._visited.get(pod), processes, time.monotonic())

    def _go_on(self, what: str) -> None:
        if self._stop.is_set() and what != TAKING_AWAY:
            raise _EndingError("The scheduler ends.")
