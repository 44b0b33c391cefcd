"""Read the facts of garbage collection from a thread. Not here: the queries (gc/conditions.py)."""

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta

from coordinator.db.session import Database, reading
from coordinator.domain.gc import Facts, Times
from coordinator.gc.conditions import known

#: Reads the present facts; raises UnavailableError.
FactsReader = Callable[[], Facts]


class BlockingFacts:
    """Reads the facts from a thread, as `known` does, each time on a new connection."""

    def __init__(self, database: Database, times: Times, silence: timedelta, in_spite_of: Collection[str] = ()) -> None:
        self._database = database
        self._times = times
        self._silence = silence
        self._in_spite_of = in_spite_of

    def __call__(self) -> Facts:
        async def ask() -> Facts:
            try:
                async with reading(self._database) as connection:
                    return (await known(connection, self._times, self._silence, self._in_spite_of)).facts
            finally:
                # Connections belong to the loop that made them.
                await self._database.dispose()

        return asyncio.run(ask())
