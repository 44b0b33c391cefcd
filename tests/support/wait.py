"""How a test waits for what other threads and processes do."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

#: Long, because a machine may be slow; nobody waits for it where all is well.
DEADLINE_S = 180.0
#: Between two looks: a short while, and no more than a part of the waiting, so that looks do not slow down what they
#: wait for.
PAUSE_S = 0.02
PART_OF_WAIT = 0.05

T = TypeVar("T")


def eventually(held: Callable[[], T], why: str | Callable[[], object] = "", seconds: float = DEADLINE_S) -> T:
    """Wait until something holds, and return it; after `seconds` fails with `why`, or with what it returns then."""
    began = time.monotonic()
    while not (value := held()):
        waited = time.monotonic() - began
        assert waited < seconds, (f"not in {seconds:.0f} s", why() if callable(why) else why)
        time.sleep(max(PAUSE_S, PART_OF_WAIT * waited))
    return value


class Waits(threading.Event):
    """Records how long others would have waited for it, and returns at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()
