"""A question that many ask takes one thread, also where nothing answers."""

import asyncio
import threading

import pytest

from coordinator.api.shared import Shared
from coordinator.errors import UnavailableError

ASKING = 20


def test_who_gives_up_leaves_no_thread_of_its_own_behind() -> None:
    """However many ask what does not answer, and give up, one thread waits for it; who asks then has its answer."""
    go, calls = threading.Event(), []

    def ask() -> int:
        calls.append(threading.current_thread())
        assert go.wait(60)
        return 7

    async def all_of_them() -> int:
        shared = Shared(ask)
        for _ in range(ASKING):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await shared()
        # The threads that a loop has by itself are fewer: there is one for others.
        assert await asyncio.to_thread(lambda: "free") == "free"
        last = asyncio.create_task(shared())
        await asyncio.sleep(0)
        go.set()
        return await last

    assert asyncio.run(all_of_them()) == 7
    assert len(calls) == 1


def test_it_is_asked_again_after_it_has_answered() -> None:
    """An answer, and an error, are those of one asking: the next is a new one."""
    answers = iter((1, UnavailableError("away"), 2))

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def one_after_the_other() -> list[int]:
        shared = Shared(ask)
        first = await shared()
        with pytest.raises(UnavailableError, match="away"):
            await asyncio.gather(shared(), shared())
        return [first, await shared()]

    assert asyncio.run(one_after_the_other()) == [1, 2]
