"""One worker's life: the processor's pump and Faust side by side, until told to stop or until either ends.

Not here: signals and exit codes (__main__.py), how the parts are made (build.py).
"""

import asyncio
import contextlib
from typing import Any

from coordinator.errors import BaleenError
from workers.app import ReferenceApp
from workers.build import Worker

#: Faust leaves its group and closes its connections; with the broker away it could wait for ever.
STOP_TIMEOUT_S = 5.0


async def run(worker: Worker, stop: asyncio.Event) -> None:
    """Return once `stop` is set and the worker has ended; raises whatever else ends it."""
    pump = asyncio.create_task(worker.processor.run())
    app = asyncio.create_task(_serve(worker.app))
    stopping = asyncio.create_task(stop.wait())
    tasks: tuple[asyncio.Task[Any], ...] = (pump, app, stopping)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        worker.keeper.stop()
        # Each has ended, or was told to: what it says of that is told below.
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.app.stop(), STOP_TIMEOUT_S)
    if stopping not in done:
        for task in done:
            task.result()
        raise BaleenError("The stream processor stopped by itself: see its log.")


async def _serve(app: ReferenceApp) -> None:
    await app.start()
    await app.wait_until_stopped()
    if app.crash_reason is not None:
        raise app.crash_reason
