"""Hold back the answer to events that a doctor asks to have held, for a bounded while.

A registry that has one queue tells nothing more until it is answered. So if something that was done later comes all
the same, it came by another queue, and says nothing of what stands in this one.

Route: the doctor's `agent` is the User-Agent of a push -> the registry's event has it -> `asked` (normalise.py) ->
`Holds.wait`, before it is published. It needs nothing that processes share: what is to be held says so itself.
Invariants: what is held is of the doctor's own scratch repositories, and signed for this pod with what only Baleen's
database has; each nonce holds for what is signed, up to LIMIT_S, from its first event on, once in each process, however
often it is sent, so that who repeats it waits no longer; nothing is refused.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from coordinator.domain.names import RepositoryName
from coordinator.ingest.directory import KnownPod

#: Below the `timeout` that registries are told to have. One whose is shorter sends again, which does no harm.
LIMIT_S: Final = 8
#: Before nonce, seconds and signature, in the User-Agent.
AGENT: Final = "baleen-hold/"
#: Nonces that are remembered. Only doctors can make any.
REMEMBERED: Final = 1000
_HOLD: Final = re.compile(rf"\b{AGENT}([0-9a-f]{{32}})/([0-9]{{1,4}})/([0-9a-f]{{64}})(?![0-9A-Za-z])")
#: What doctors name their repositories (coordinator/doctor/scratch.py).
_SCRATCH: Final = re.compile(r"/baleen-doctor-[0-9a-f]{16}(?:-other)?\Z")


class Hold(NamedTuple):
    """What an event asks for, not yet believed."""

    nonce: str
    seconds: int
    signature: str


def agent(key: bytes, pod: str, nonce: str, seconds: int) -> str:
    """What a doctor calls itself to have held what it does; `key` is the SHA-256 of the pod's token."""
    return f"{AGENT}{nonce}/{seconds}/{_signature(key, pod, nonce, seconds)}"


def asked(user_agent: str, repository: RepositoryName) -> Hold | None:
    found = _HOLD.search(user_agent)
    return Hold(found[1], int(found[2]), found[3]) if found is not None and _SCRATCH.search(repository) else None


class Holds:
    """One process's memory of what it holds and has held."""

    def __init__(self) -> None:
        #: By nonce, until when by the monotonic clock; the oldest first.
        self._until: dict[str, float] = {}

    async def wait(self, pod: KnownPod, holds: Iterable[Hold]) -> None:
        for hold in holds:
            signature = _signature(pod.token_sha256, pod.name, hold.nonce, hold.seconds)
            if hmac.compare_digest(signature, hold.signature):
                await asyncio.sleep(max(self._end(hold) - time.monotonic(), 0))

    def _end(self, hold: Hold) -> float:
        until = self._until.setdefault(hold.nonce, time.monotonic() + min(hold.seconds, LIMIT_S))
        if len(self._until) > REMEMBERED:
            del self._until[next(iter(self._until))]
        return until


def _signature(key: bytes, pod: str, nonce: str, seconds: int) -> str:
    return hmac.digest(key, f"baleen-hold {pod} {nonce} {seconds}".encode(), "sha256").hex()
