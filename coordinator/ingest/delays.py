"""Delay the answer to events that a doctor asks to delay, for a bounded time.

A registry with one queue sends nothing more until its event is answered. So if an event of a later action arrives
meanwhile, it came through another queue, and proves nothing about the events in this one.

Ingest is the only place where this can be tried: nothing else stands between a registry's queue and the answer to its
event. All other events cost a search of their User-Agent, and nothing waits.

Route: the doctor's `delayed_user_agent` is the User-Agent of a push -> the registry's event carries it -> `parse_delay`
(normalise.py) -> `Delays.wait`, before the event is published. Processes share no state for this: the event itself asks
for the delay. Invariants: only events of the doctor's own scratch repositories are delayed, if signed for this pod with
a secret that only Baleen's database has; each nonce delays for the signed time, up to DELAY_LIMIT_S, from its first
event on, once in each process, however often it is sent, so that repeating it waits no longer; nothing is refused.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

from coordinator.domain.names import RepositoryName
from coordinator.ingest.directory import KnownPod

#: Below the `timeout` that registries should have. One with a shorter timeout sends again, which is harmless.
DELAY_LIMIT_S: Final = 8
#: Before nonce, seconds and signature, in the User-Agent.
AGENT_PREFIX: Final = "baleen-hold/"
#: Nonces that are remembered. Only doctors can make valid ones.
REMEMBERED: Final = 1000
_DELAY_FORM: Final = re.compile(rf"\b{AGENT_PREFIX}([0-9a-f]{{32}})/([0-9]{{1,4}})/([0-9a-f]{{64}})(?![0-9A-Za-z])")
#: The names of doctors' repositories (coordinator/doctor/scratch.py).
_SCRATCH: Final = re.compile(r"/baleen-doctor-[0-9a-f]{16}(?:-other)?\Z")


class Delay(NamedTuple):
    """The delay that an event asks for, not yet verified."""

    nonce: str
    seconds: int
    signature: str


def delayed_user_agent(key: bytes, pod: str, nonce: str, seconds: int) -> str:
    """Return the User-Agent with which a doctor has its events delayed; `key` is the SHA-256 of the pod's token."""
    return f"{AGENT_PREFIX}{nonce}/{seconds}/{_sign(key, pod, nonce, seconds)}"


def parse_delay(user_agent: str, repository: RepositoryName) -> Delay | None:
    found = _DELAY_FORM.search(user_agent)
    return Delay(found[1], int(found[2]), found[3]) if found is not None and _SCRATCH.search(repository) else None


class Delays:
    """One process's memory of present and past delays."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        #: By nonce, the end of the delay by the monotonic clock; the oldest first.
        self._until: dict[str, float] = {}

    async def wait(self, pod: KnownPod, holds: Iterable[Delay]) -> None:
        for hold in holds:
            signature = _sign(pod.token_sha256, pod.name, hold.nonce, hold.seconds)
            if hmac.compare_digest(signature, hold.signature):
                await self._sleep(max(self._decide_end(hold) - self._monotonic(), 0))

    def _decide_end(self, hold: Delay) -> float:
        until = self._until.setdefault(hold.nonce, self._monotonic() + min(hold.seconds, DELAY_LIMIT_S))
        if len(self._until) > REMEMBERED:
            del self._until[next(iter(self._until))]
        return until


def _sign(key: bytes, pod: str, nonce: str, seconds: int) -> str:
    return hmac.digest(key, f"baleen-hold {pod} {nonce} {seconds}".encode(), "sha256").hex()
