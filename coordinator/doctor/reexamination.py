"""Examine registry processes that began or came back after the doctor's last visit, without an operator.

Route: workers/scheduler.py, every few seconds -> `Reexamination.round` -> the pod that has waited longest ->
`examine_again`: all experiments of the doctor except those with the pod's key -> all proved: the pod's processes are
examined; else the hold says what is not proved, and the visit is repeated.
A client can make a registry process end (it can use up its memory), so its successor must not need an operator. The
visit proves what an operator's visit would prove. Not so for the key: no experiment shows which key a process uses, so
the checks with the key keep the result of the last visit that had it.

Invariants: one visit per round; a pause before a pod is visited again, which grows each time that a visit of the same
processes fails; a pod that was never visited for an operator is not visited here.
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
from coordinator.doctor.examine import REMOVING, examine_again
from coordinator.doctor.visit import Instruments
from coordinator.domain.names import PodName
from coordinator.errors import BaleenError, ConflictError

log = structlog.get_logger()

#: Between two visits of one pod: a visit delays events of the pod by seconds.
FIRST_PAUSE_S: Final = 60.0
#: Once a flood of requests or restarts has ended, the next visit begins within this time.
LONGEST_PAUSE_S: Final = 900.0

#: Characters of the error in a hold, if a visit did not end.
ERROR_LENGTH: Final = 300

#: Opens the services that a visit to a pod uses.
OpenInstruments = Callable[[PodName], AbstractContextManager[Instruments]]


class _EndingError(BaleenError):
    """The scheduler ends, so the visit ends too, and removes what it made."""


class LastVisit(NamedTuple):
    """The last visit to a pod."""

    #: Ids and lives of the processes that were not yet examined.
    processes: frozenset[tuple[int, int]]
    #: By the monotonic clock.
    ended: float
    pause: float


def make_last_visit(last: LastVisit | None, processes: frozenset[tuple[int, int]], ended: float) -> LastVisit:
    """Return a visit to these processes that ended now. The pause doubles if the last visit was of the same ones."""
    if last is None or last.processes != processes:
        return LastVisit(processes, ended, FIRST_PAUSE_S)
    return LastVisit(processes, ended, min(2 * last.pause, LONGEST_PAUSE_S))


def is_due(last: LastVisit | None, processes: frozenset[tuple[int, int]], now: float) -> bool:
    """Whether these processes may be visited now. Other processes than the last time do not wait the longer pause."""
    if last is None:
        return True
    return now - last.ended >= (last.pause if processes == last.processes else FIRST_PAUSE_S)


class Reexamination:
    """The scheduler's visits, one at a time. Used by one thread. It remembers only when to visit next."""

    def __init__(
        self,
        connections: Connections,
        open_instruments: OpenInstruments,
        unsafe_findings: Collection[str],
        stop: threading.Event,
    ) -> None:
        self._connections = connections
        self._open = open_instruments
        self._in_spite_of = unsafe_findings
        self._stop = stop
        self._visited: dict[PodName, LastVisit] = {}

    def round(self) -> None:
        """Visit the pod that has waited longest, if any may be visited now."""
        with self._connections.use() as connection:
            waiting = findings.read_unexamined(connection)
        now = time.monotonic()
        due = [pod for pod, processes in waiting.items() if is_due(self._visited.get(pod), processes, now)]
        if due:
            pod = min(due, key=lambda each: (self._visited[each].ended if each in self._visited else 0.0, each))
            self._visit(pod, waiting[pod])

    def _visit(self, pod: PodName, processes: frozenset[tuple[int, int]]) -> None:
        log.info("examining new registry processes", pod=pod, processes=len(processes))
        try:
            with self._open(pod) as instruments:
                failed = examine_again(instruments, pod, self._in_spite_of, self._check_stop)
        except _EndingError:
            return
        except ConflictError as error:
            log.info("pod will be examined later", pod=pod, reason=str(error))
        except BaleenError as error:
            log.warning("pod could not be examined", pod=pod, reason=str(error))
            with self._connections.use() as connection:
                findings.write_failed_visit(connection, pod, [str(error).rstrip(".")[:ERROR_LENGTH]])
        else:
            if failed:
                log.warning("registry processes are not proved safe for GC", pod=pod, why=failed)
            else:
                log.info("registry processes were examined", pod=pod)
        finally:
            self._visited[pod] = make_last_visit(self._visited.get(pod), processes, time.monotonic())

    def _check_stop(self, what: str) -> None:
        if self._stop.is_set() and what != REMOVING:
            raise _EndingError("The scheduler ends.")
