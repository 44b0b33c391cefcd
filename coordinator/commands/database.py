"""Database access of commands that do not use the API.

Ctrl-C is delivered to the event loop like any other event. `asyncio.run` alone would cancel its task from within the
signal handler, between any two instructions: rarely a future is cancelled right after the driver checked that it is
pending, and the driver's callback prints a trace.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from coordinator.settings import Settings

if TYPE_CHECKING:
    from coordinator.db.session import Database

T = TypeVar("T")


def with_database(settings: Settings, ask: "Callable[[Database], Awaitable[T]]") -> T:
    """Call `ask` with a database of one connection, and close it. Only in the main thread.

    :raises KeyboardInterrupt: after Ctrl-C, once the connection is closed.
    """
    from coordinator import bootstrap  # noqa: PLC0415 - drivers are for commands that need them

    async def asked() -> T:
        if task := asyncio.current_task():
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        database = bootstrap.engine(settings, pool_size=1, name="baleen-command")
        try:
            return await ask(database)
        finally:
            await database.dispose()

    try:
        return asyncio.run(asked())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
