"""`python -m workers.scheduler`: periodic work and jobs, until SIGTERM or SIGINT.

Any number of schedulers may run. Work that only one may do is done by the one that holds its lease (periodic.py); jobs
by the one that takes them (coordinator/jobs/work.py). Nothing is lost with a scheduler. While none runs, no watermark
advances, so nothing is collected. To add a piece of work, add a line to `make_works`.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from types import FrameType

import structlog
from msgspec.structs import replace

from coordinator import settings as configuration
from coordinator.compose import command as compose_command
from coordinator.compose import database as compose_database
from coordinator.compose import scheduler as compose_scheduler
from coordinator.compose import store as compose_store
from coordinator.compose import values as compose_values
from coordinator.doctor.reexamination import Reexamination
from coordinator.errors import BaleenError
from coordinator.gc import collect, mark
from coordinator.gc.table import StoppedCollectingError
from coordinator.jobs import work as jobs
from coordinator.jobs.table import TakenOverError
from coordinator.jobs.work import Ending, Runner, StoppedError, Work
from coordinator.mounts import table as mounts
from coordinator.perimeter import root_listing
from coordinator.pods import clock
from coordinator.pods.prober import Prober
from coordinator.settings import Settings
from coordinator.table import outbox, processes
from coordinator.telemetry import configure_logging
from workers import metrics
from workers.periodic import PeriodicThreads, PeriodicWork

log = structlog.get_logger()

#: Seconds between looks for new work.
JOBS_EVERY_S = 1.0
TRIGGERS_EVERY_S = 10.0
FORGET_EVERY_S = 600.0
PRESENCE_EVERY_S = 30.0
LIFECYCLE_EVERY_S = 1.0
#: Status shows a database or a bucket that went back in time within this many seconds; each check is one small GET.
MARK_EVERY_S = 2.0
#: A clock that is set back by less than this goes unnoticed.
CLOCK_EVERY_S = 5.0
#: How soon a change of the pods is noticed, and how often the root is listed when there is none.
PERIMETER_EVERY_S = 5.0
LISTING_EVERY = timedelta(minutes=1)
#: How soon a registry process that started or came back is noticed. Visits to one pod have longer pauses.
EXAMINE_EVERY_S = 10.0


class Scheduler:
    """The periodic work, with its adapters."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.stop = threading.Event()
        self._connections = compose_database.make_connections(settings, name="baleen-scheduler")
        self._leases = compose_scheduler.make_leases(settings)
        self._prober = Prober(
            self._connections,
            credentials=compose_values.registry_credentials(settings),
            ca_file=settings.registry_ca_file,
        )
        self._closing = ExitStack()
        #: By the kind of job.
        self._runners: Mapping[str, Runner] = self._closing.enter_context(compose_scheduler.open_job_runners(settings))
        self._presence = self._closing.enter_context(
            compose_scheduler.open_audit(settings, name="baleen-presence")
        ).presence
        self._store = compose_store.make_object_store(settings)
        self._lifecycle = compose_scheduler.make_lifecycle_producer(settings)
        self._closing.callback(self._lifecycle.close)
        #: The key of a pod's registry is only for an operator's own visit to that pod.
        without_key = replace(settings, pod_access_key=None, pod_secret_key=None)
        self._again = Reexamination(
            self._connections,
            lambda pod: compose_command.open_instruments(without_key, pod),
            compose_values.parse_unsafe_findings(settings),
            self.stop,
        )

    def make_works(self) -> Sequence[PeriodicWork]:
        return [
            PeriodicWork("probes", self._settings.probe_every, self._prober.round),
            PeriodicWork("old-probes", FORGET_EVERY_S, self._forget_probes),
            PeriodicWork("old-mounts", FORGET_EVERY_S, self._forget_mounts),
            PeriodicWork("triggers", TRIGGERS_EVERY_S, self._request_jobs),
            # Separate, so that a collection does not wait for a listing that takes hours.
            PeriodicWork("jobs", JOBS_EVERY_S, self._run_jobs, alone=False),
            PeriodicWork("collection", JOBS_EVERY_S, self._run_collection, alone=False),
            PeriodicWork("presence", PRESENCE_EVERY_S, self._presence.round),
            PeriodicWork("lifecycle", LIFECYCLE_EVERY_S, self._publish_lifecycle),
            PeriodicWork("clock", CLOCK_EVERY_S, self._check_clock),
            PeriodicWork("perimeter", PERIMETER_EVERY_S, self._list_root),
            PeriodicWork("examinations", EXAMINE_EVERY_S, self._again.round),
            PeriodicWork("mark", MARK_EVERY_S, lambda: mark.record_mismatch(self._connections, self._store)),
        ]

    def run(self) -> None:
        """Work until `stop` is set."""
        try:
            PeriodicThreads(self.make_works(), self._leases, self.stop).run()
        finally:
            self._closing.close()
            self._prober.close()
            self._leases.close()
            self._connections.close()

    def _forget_probes(self) -> None:
        with self._connections.use() as connection:
            processes.delete_old_probes(connection)

    def _forget_mounts(self) -> None:
        with self._connections.use() as connection:
            while mounts.delete_old_mounts(connection) == mounts.FORGET_LIMIT and not self.stop.is_set():
                pass

    def _request_jobs(self) -> None:
        with self._connections.use() as connection:
            jobs.request_due_jobs(connection, self._settings)

    def _check_clock(self) -> None:
        with self._connections.use() as connection:
            clock.void_if_ahead(connection)

    def _list_root(self) -> None:
        root_listing.update_listing_if_due(self._connections, self._store, LISTING_EVERY)

    def _publish_lifecycle(self) -> None:
        outbox.publish_outbox(self._connections, self._lifecycle)

    def _run_jobs(self) -> None:
        others = {kind: runner for kind, runner in self._runners.items() if kind != collect.JOB_KIND}
        jobs.run_waiting_jobs(self._connections, others, self.stop)

    def _run_collection(self) -> None:
        jobs.run_waiting_jobs(
            self._connections, {collect.JOB_KIND: count_outcomes(self._runners[collect.JOB_KIND])}, self.stop
        )


def count_outcomes(runner: Runner) -> Runner:
    """Make the runner of collections count their outcomes."""

    def run(work: Work) -> Ending:
        outcome = "failed"
        try:
            ending = runner(work)
            outcome = "done"
        except collect.TooMuchError:
            outcome = "refused"
            raise
        except StoppedCollectingError:
            outcome = "stopped"
            raise
        except (StoppedError, TakenOverError):
            outcome = "left"
            raise
        finally:
            progress = work.progress()
            if collect.Options.parse(work.job.options).dry:
                outcome = "dry" if outcome == "done" else outcome
                progress = {}
            elif outcome == "done" and progress.get("blocked_by"):
                outcome = "held"
            metrics.count_collection(progress, outcome)
        return ending

    return run


def main() -> int:
    try:
        settings = configuration.load()
        configure_logging(settings)
        metrics.serve_metrics(settings.scheduler_metrics_port, "BALEEN_SCHEDULER_METRICS_PORT")
        scheduler = Scheduler(settings)
    except BaleenError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code

    def end(_: int, __: FrameType | None) -> None:
        scheduler.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log.info("scheduler begins")
    scheduler.run()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # A registry or a resolver that hangs blocks a thread, which would keep the process from ending.
    os._exit(status)
