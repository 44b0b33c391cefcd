"""The lag: how far the table is behind Kafka's logs.

Kafka is queried in a thread, with one query at a time for all callers. Each caller gets log ends that were read after
its call, so the lag counts everything that Kafka had acknowledged before. Only errors, and whether Kafka answers, are
cached for `ttl`.
Not here: what is applied (the table).
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from coordinator.api.shared_calls import SharedCall
from coordinator.errors import BaleenError
from coordinator.kafka.log import TopicState

Partition = tuple[str, int]

TTL_SECONDS = 1.0


class Log(Protocol):
    """The queries to Kafka (coordinator.kafka.log.LogInspector)."""

    def read_state(self, topic: str) -> TopicState: ...


class Lag(NamedTuple):
    """Records not applied yet, by partition; None where unknown. `problems` are sentences."""

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
        self._read_states = SharedCall(self._read_all_topics)
        self._asked_at = float("-inf")
        self._states: dict[str, TopicState] | BaleenError = {}

    async def read(self, applied: Mapping[Partition, int]) -> Lag:
        """Compare what is applied with the ends of the logs, which are read after this call."""
        states = await self._read_now()
        if isinstance(states, BaleenError):
            return Lag(dict.fromkeys(applied), [f"The lag is not known: {states}"])
        lag: dict[Partition, int | None] = {}
        problems = []
        for topic, state in states.items():
            for number, offsets in state.partitions.items():
                # Nothing applied yet: the lag is everything that the log keeps.
                behind = offsets.latest - applied.get((topic, number), offsets.earliest)
                lag[topic, number] = behind if behind >= 0 else None
                if behind < 0:
                    problems.append(
                        f"The log of {topic}/{number} ends before what was applied: the worker has yet to resolve that."
                    )
        return Lag(lag, problems)

    async def check(self) -> None:
        """Raise Kafka's last error, if its last answer was one."""
        states = await self._read_recent()
        if isinstance(states, BaleenError):
            raise states

    async def _read_recent(self) -> dict[str, TopicState] | BaleenError:
        return self._states if self._is_recent() else await self._remember(self._read_states())

    async def _read_now(self) -> dict[str, TopicState] | BaleenError:
        if self._is_recent() and isinstance(self._states, BaleenError):
            # An old error is safe: it never claims that everything is applied.
            return self._states
        return await self._remember(self._read_states.call_after_now())

    def _is_recent(self) -> bool:
        return self._clock() - self._asked_at <= self._ttl

    async def _remember(self, answer: Awaitable[dict[str, TopicState]]) -> dict[str, TopicState] | BaleenError:
        states: dict[str, TopicState] | BaleenError
        try:
            states = await answer
        except BaleenError as error:
            states = error
        self._states, self._asked_at = states, self._clock()
        return states

    def _read_all_topics(self) -> dict[str, TopicState]:
        return {topic: self._log.read_state(topic) for topic in self._topics}
