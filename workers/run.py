"""Run one worker: the processor's pump and Faust side by side, until stopped or until either ends.

Not here: signals and exit codes (__main__.py), how the parts are made (build.py).
"""

import asyncio
import contextlib
from typing import Any

from coordinator.errors import BaleenError
from workers.app import ReferenceApp
from workers.build import Worker

#: Time for Faust to leave its group and close its connections; with the broker away it could wait forever.
STOP_TIMEOUT_S = 5.0


async def run_worker(worker: Worker, stop: asyncio.Event) -> None:
    """Run until `stop` is set and the worker has ended; raises the error that ends it otherwise."""
    pump = asyncio.create_task(worker.processor.run())
    app = asyncio.create_task(_serve(worker.app))
    stopping = asyncio.create_task(stop.wait())
    tasks: tuple[asyncio.Task[Any], ...] = (pump, app, stopping)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        worker.link_keeper.stop()
        # Each has ended or was asked to; errors are raised below.
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.app.stop(), STOP_TIMEOUT_S)
    if stopping not in done:
        for task in done:
            task.result()
        raise BaleenError("The stream processor stopped unexpectedly: see its log.")


async def _serve(app: ReferenceApp) -> None:
    await app.start()
    await app.wait_until_stopped()
    if app.crash_reason is not None:
        raise app.crash_reason
