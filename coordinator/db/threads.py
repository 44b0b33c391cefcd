"""Run database functions, which block, for callers on an event loop.

They have threads of their own: what waits for other services does not wait for the database's threads. There are more
of them than connections in a pool, so that a full pool is reported after its timeout.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS = ThreadPoolExecutor(40, thread_name_prefix="database")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function in a thread. A caller that is cancelled leaves, and the call goes on to its end."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, partial(function, *args, **kwargs))
