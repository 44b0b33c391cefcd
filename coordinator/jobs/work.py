"""Run jobs: take one, keep its pulse, call its runner, and record the result.

Route: the scheduler (workers/scheduler.py), every second or so -> `run_waiting_jobs` -> the runner of the job's kind
-> `Ending`. A runner does the work, reports its progress, calls `work.check` often, and returns what is to be written
in the one transaction that marks the job as done.

If a worker is killed, the next one takes its job: at once if it could release the job, else after jobs/table.SILENCE.
Runners continue where the last one was, and what they do to the table is right however often it is done.
Not here: SQL (jobs/table.py), what the kinds do (reconcile/reconcile.py).
"""

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import structlog

from coordinator.db.connection import Connections
from coordinator.errors import BaleenError, UnavailableError
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job, TakenOverError
from coordinator.settings import Settings

log = structlog.get_logger()

#: Writes the job's last effects on a connection in a transaction, and returns the final progress.
Ending = Callable[[Any], Mapping[str, Any]]


class Pulse(NamedTuple):
    """How often a worker shows that its job is alive."""

    #: Several fit into jobs/table.SILENCE.
    every_s: float = 10.0
    #: How often changed progress is written for operators.
    progress_every_s: float = 1.0


PULSE = Pulse()


class StoppedError(BaleenError):
    """The process is stopping: the job is left to the next scheduler."""


class Work:
    """One job, for its runner. Safe to use from several threads."""

    def __init__(self, job: Job, connections: Connections, stop: threading.Event) -> None:
        self.job = job
        self.connections = connections
        self._stop = stop
        self._lost: TakenOverError | None = None
        self._progress: Callable[[], Mapping[str, Any]] = lambda: job.progress

    def follow_progress(self, progress: Callable[[], Mapping[str, Any]]) -> None:
        """Call `progress` about every second, and write what it returns for operators."""
        self._progress = progress

    def progress(self) -> Mapping[str, Any]:
        return self._progress()

    def check(self) -> None:
        """Raise StoppedError or TakenOverError if the runner must stop working on the job; call it often."""
        if self._lost is not None:
            raise self._lost
        if self._stop.is_set():
            raise StoppedError(f"Job {self.job.id} is left to the next scheduler.")

    def pause(self, seconds: float) -> None:
        """Wait, or until the process stops; raises as `check`."""
        self._stop.wait(seconds)
        self.check()

    def beat(self, progress: Mapping[str, Any]) -> None:
        """Record that the job is alive, and its progress. Once the job is lost, `check` raises."""
        try:
            with self.connections.use() as connection:
                jobs.record_beat(connection, self.job, progress)
        except TakenOverError as error:
            self._lost = error
        except UnavailableError as error:
            log.warning("the job's pulse is late", job=self.job.id, reason=str(error))


Runner = Callable[[Work], Ending]


def run_waiting_jobs(
    connections: Connections,
    runners: Mapping[str, Runner],
    stop: threading.Event,
    pulse: Pulse = PULSE,
) -> int:
    """Run jobs one after another until none waits or `stop` is set; return how many were taken.

    Blocks for as long as a job takes; several threads or processes may do it at once. `runners` by kind. A failure is
    recorded in the job's row. Raises UnavailableError if the database does not answer: then the job is taken again.
    """
    taken = 0
    while not stop.is_set():
        with connections.use() as connection:
            job = jobs.take_job(connection, runners.keys())
        if job is None:
            break
        taken += 1
        run_job(Work(job, connections, stop), runners[job.kind], pulse)
    return taken


def run_job(work: Work, runner: Runner, pulse: Pulse = PULSE) -> None:
    """Run one job that was taken, and record its result."""
    job = work.job
    log.info("job begins", job=job.id, kind=job.kind, pod=job.pod, why=job.why, taken=job.taken)
    over = threading.Event()
    beating = threading.Thread(target=_beat_until_over, args=(work, over, pulse), name=f"pulse-{job.id}", daemon=True)
    beating.start()
    try:
        ending = runner(work)
        with work.connections.use() as connection, connection.transaction():
            jobs.lock_job(connection, job)
            jobs.finish_job(connection, job, ending(connection))
        log.info("job done", job=job.id, kind=job.kind, pod=job.pod)
    except StoppedError:
        with work.connections.use() as connection:
            jobs.release_job(connection, job, work.progress())
    except TakenOverError as error:
        log.warning("job lost", job=job.id, reason=str(error))
    except BaleenError as error:
        log.warning("job failed", job=job.id, kind=job.kind, pod=job.pod, reason=str(error))
        _record_failure(work, str(error))
    except Exception as error:
        log.exception("job failed", job=job.id, kind=job.kind, pod=job.pod)
        _record_failure(work, f"Internal error ({type(error).__name__}): see the scheduler's log.")
    finally:
        over.set()
        beating.join()


def request_due_jobs(connection: Any, settings: Settings) -> list[int]:
    """Request the reconciles and collections that are due; return the jobs' ids. The scheduler calls it every 10 s."""
    asked = jobs.request_needed_reconciles(
        connection,
        every=timedelta(seconds=settings.reconcile_every),
        request_bound=timedelta(seconds=settings.safety_request_bound),
    )
    collection = jobs.request_collection(connection, every=timedelta(seconds=settings.gc_every))
    return asked if collection is None else [*asked, collection]


def _beat_until_over(work: Work, over: threading.Event, pulse: Pulse) -> None:
    silent = 0.0
    reported = work.progress()
    try:
        while not over.wait(pulse.progress_every_s):
            silent += pulse.progress_every_s
            progress = work.progress()
            if silent >= pulse.every_s or progress != reported:
                reported, silent = progress, 0.0
                work.beat(progress)
    finally:
        work.connections.release()


def _record_failure(work: Work, why: str) -> None:
    try:
        with work.connections.use() as connection:
            jobs.fail_job(connection, work.job, work.progress(), why)
    except TakenOverError as error:
        log.warning("job lost", job=work.job.id, reason=str(error))
