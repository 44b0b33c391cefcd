"""`python -m workers.scheduler`: what is done now and then, until SIGTERM or SIGINT.

Any number may run: each piece of work that one is enough for is done by the one that has its lease (periodic.py), and
jobs by whoever takes them (coordinator/jobs.py). Nothing is lost with a scheduler; while none runs, no pod's watermark
moves on, so that nothing is collected.
To add a piece of work, add a line to `works`.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import FrameType

import structlog
from prometheus_client import start_http_server

from coordinator import bootstrap, jobs, outbox
from coordinator import settings as configuration
from coordinator.db import sources
from coordinator.errors import BaleenError
from coordinator.jobs import Runner
from coordinator.pods.prober import Prober
from coordinator.settings import Settings
from coordinator.telemetry import configure
from workers.periodic import Periodic, Periodically

log = structlog.get_logger()

#: Each looks for what has come up since.
JOBS_EVERY_S = 1.0
TRIGGERS_EVERY_S = 10.0
FORGET_EVERY_S = 600.0
PRESENCE_EVERY_S = 30.0
LIFECYCLE_EVERY_S = 1.0


class Scheduler:
    """The work, and what it works with."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.stop = threading.Event()
        self._connections = bootstrap.connections(settings, name="baleen-scheduler")
        self._leases = bootstrap.leases(settings)
        self._prober = Prober(
            self._connections,
            credentials=bootstrap.registry_credentials(settings),
            ca_file=settings.registry_ca_file,
        )
        self._closing = ExitStack()
        #: By the kind of job.
        self._runners: Mapping[str, Runner] = self._closing.enter_context(bootstrap.job_runners(settings))
        self._presence = self._closing.enter_context(bootstrap.audit(settings, name="baleen-presence")).presence
        self._lifecycle = bootstrap.lifecycle_producer(settings)
        self._closing.callback(self._lifecycle.close)

    def works(self) -> Sequence[Periodic]:
        return [
            Periodic("probes", self._settings.probe_every, self._prober.round),
            Periodic("old-probes", FORGET_EVERY_S, self._forget_probes),
            Periodic("triggers", TRIGGERS_EVERY_S, self._ask_for_jobs),
            Periodic("jobs", JOBS_EVERY_S, self._run_jobs, alone=False),
            Periodic("presence", PRESENCE_EVERY_S, self._presence.round),
            Periodic("lifecycle", LIFECYCLE_EVERY_S, self._publish_lifecycle),
        ]

    def run(self) -> None:
        """Work until `stop` is set."""
        try:
            Periodically(self.works(), self._leases, self.stop).run()
        finally:
            self._closing.close()
            self._prober.close()
            self._leases.close()
            self._connections.close()

    def _forget_probes(self) -> None:
        with self._connections.use() as connection:
            sources.forget_old_probes(connection)

    def _ask_for_jobs(self) -> None:
        with self._connections.use() as connection:
            jobs.ask_for_needed(connection, self._settings)

    def _publish_lifecycle(self) -> None:
        outbox.publish_waiting(self._connections, self._lifecycle)

    def _run_jobs(self) -> None:
        jobs.run_waiting_jobs(self._connections, self._runners, self.stop)


def main() -> int:
    try:
        settings = configuration.load()
        configure(settings)
        scheduler = Scheduler(settings)
    except BaleenError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code

    def end(_: int, __: FrameType | None) -> None:
        scheduler.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if settings.scheduler_metrics_port:
        start_http_server(settings.scheduler_metrics_port, addr="127.0.0.1")
    log.info("scheduler begins")
    scheduler.run()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # A registry or a resolver that hangs holds a thread, which would hold the process.
    os._exit(status)
