"""`python -m workers`: one stream worker, until SIGTERM or SIGINT. Exits with 1 when it cannot continue.

State is in the database, so a worker may be killed at any time; its supervisor restarts it.
"""

import asyncio
import gc
import signal
import sys

import structlog

from coordinator import settings as configuration
from coordinator.errors import BaleenError
from coordinator.settings import Settings
from coordinator.telemetry import configure_logging
from workers import metrics
from workers.build import Worker, make_worker
from workers.run import run_worker

log = structlog.get_logger()

#: A batch is tens of thousands of small objects without cycles. By default Python's garbage collector scans them for
#: every 700 new ones: a quarter of the worker's processor time.
COLLECT_AFTER = (100_000, 20, 50)


async def _run(worker: Worker) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_worker(worker, stop)


def main() -> int:
    try:
        settings: Settings = configuration.load()
        configure_logging(settings)
        metrics.serve_metrics(settings.worker_metrics_port, "BALEEN_WORKER_METRICS_PORT")
        worker = make_worker(settings)
    except BaleenError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    gc.freeze()  # imported objects live as long as the process
    gc.set_threshold(*COLLECT_AFTER)
    try:
        asyncio.run(_run(worker))
    except Exception as error:
        log.exception("worker ends", reason=str(error))
        return 1
    finally:
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
