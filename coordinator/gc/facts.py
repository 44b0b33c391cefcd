"""What is known of everything but single blobs, for a thread. Not here: the questions (gc/conditions.py)."""

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta

from coordinator.db.session import Database, reading
from coordinator.domain.gc import Facts, Times
from coordinator.gc.conditions import known

#: Gives the facts as they are now; raises UnavailableError.
FactsReader = Callable[[], Facts]


class BlockingFacts:
    """The facts for a thread: as `known`, on a connection of its own each time."""

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
