"""How far the table is behind Kafka's logs.

Kafka is asked in a thread, at most once in `ttl` for all who want to know. Not here: what is applied (the table).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from coordinator.api.shared import Shared
from coordinator.errors import BaleenError
from coordinator.ingest.log import TopicState

Partition = tuple[str, int]

TTL_SECONDS = 1.0


class Log(Protocol):
    """What is asked of Kafka (coordinator.ingest.log.LogInspector)."""

    def state(self, topic: str) -> TopicState: ...


class Lag(NamedTuple):
    """Records not applied yet, by partition; None where not known. `problems` are sentences."""

    lag: dict[Partition, int | None]
    problems: list[str]


class LagReader:
    def __init__(
        self,
        log: Log,
        topics: Sequence[str],
        ttl: float = TTL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._topics = topics
        self._ttl = ttl
        self._clock = clock
        self._read_states = Shared(self._states_of_all)
        self._asked_at = float("-inf")
        self._states: dict[str, TopicState] | BaleenError = {}

    async def read(self, applied: Mapping[Partition, int]) -> Lag:
        """Compare what is applied with where the logs end."""
        states = await self._ask()
        if isinstance(states, BaleenError):
            return Lag(dict.fromkeys(applied), [f"The lag is not known: {states}"])
        lag: dict[Partition, int | None] = {}
        problems = []
        for topic, state in states.items():
            for number, offsets in state.partitions.items():
                # Nothing applied yet: everything that is kept is still to come.
                behind = offsets.latest - applied.get((topic, number), offsets.earliest)
                lag[topic, number] = behind if behind >= 0 else None
                if behind < 0:
                    problems.append(
                        f"The log of {topic}/{number} ends before what was applied: the worker has yet to settle that."
                    )
        return Lag(lag, problems)

    async def check(self) -> None:
        """Raise what Kafka answered last if it was an error."""
        states = await self._ask()
        if isinstance(states, BaleenError):
            raise states

    async def _ask(self) -> dict[str, TopicState] | BaleenError:
        if self._clock() - self._asked_at > self._ttl:
            try:
                self._states = await self._read_states()
            except BaleenError as error:
                self._states = error
            self._asked_at = self._clock()
        return self._states

    def _states_of_all(self) -> dict[str, TopicState]:
        return {topic: self._log.state(topic) for topic in self._topics}
