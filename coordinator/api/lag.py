"""How far the table is behind Kafka's logs.

Kafka is asked in a thread, one question at a time for all callers. The lag is compared with the ends of the logs as
they are read after it was asked for: whatever Kafka had acknowledged before is counted. Only errors, and whether Kafka
answers at all, are remembered for `ttl`.
Not here: what is applied (the table).
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from coordinator.api.shared import Shared
from coordinator.errors import BaleenError
from coordinator.kafka.log import TopicState

Partition = tuple[str, int]

TTL_SECONDS = 1.0


class Log(Protocol):
    """What is asked of Kafka (coordinator.kafka.log.LogInspector)."""

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
        """Compare what is applied with where the logs end, as read after this call."""
        states = await self._ask_now()
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
        return self._states if self._is_recent() else await self._noted(self._read_states())

    async def _ask_now(self) -> dict[str, TopicState] | BaleenError:
        if self._is_recent() and isinstance(self._states, BaleenError):
            # Nobody is told that all is applied: an old error does no harm.
            return self._states
        return await self._noted(self._read_states.since_now())

    def _is_recent(self) -> bool:
        return self._clock() - self._asked_at <= self._ttl

    async def _noted(self, answer: Awaitable[dict[str, TopicState]]) -> dict[str, TopicState] | BaleenError:
        states: dict[str, TopicState] | BaleenError
        try:
            states = await answer
        except BaleenError as error:
            states = error
        self._states, self._asked_at = states, self._clock()
        return states

    def _states_of_all(self) -> dict[str, TopicState]:
        return {topic: self._log.state(topic) for topic in self._topics}
