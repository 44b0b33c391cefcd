"""Concurrent callers share one call in one thread, also when the service does not answer."""

import asyncio
import threading

import pytest

from coordinator.api.shared_calls import SharedCall
from coordinator.errors import UnavailableError

ASKING = 20


def test_who_gives_up_leaves_no_thread_of_its_own_behind() -> None:
    """One thread waits for a service that does not answer, however many callers give up; the next caller gets its
    answer.
    """
    go, calls = threading.Event(), []

    def ask() -> int:
        calls.append(threading.current_thread())
        assert go.wait(60)
        return 7

    async def all_of_them() -> int:
        shared = SharedCall(ask)
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
    """After an answer or an error the next caller starts a new call."""
    answers = iter((1, UnavailableError("away"), 2))

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def one_after_the_other() -> list[int]:
        shared = SharedCall(ask)
        first = await shared()
        with pytest.raises(UnavailableError, match="away"):
            await asyncio.gather(shared(), shared())
        return [first, await shared()]

    assert asyncio.run(one_after_the_other()) == [1, 2]


def test_an_answer_since_now_is_of_a_call_that_began_afterwards() -> None:
    """A caller that wants an answer since now waits for a call that begins later, and shares it with others."""
    go, begun = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]
    at_once: list[int] = []
    calls = iter(range(3))

    def ask() -> int:
        call = next(calls)
        at_once.append(call)
        begun[call].set()
        assert go[call].wait(60)
        at_once.remove(call)
        assert not at_once
        return call

    async def all_of_them() -> tuple[int, list[int], int]:
        shared = SharedCall(ask)
        first = asyncio.create_task(shared.call_after_now())
        await asyncio.to_thread(begun[0].wait, 60)
        waiting = [asyncio.create_task(shared.call_after_now()) for _ in range(ASKING)]
        await asyncio.sleep(0)
        go[0].set()
        await asyncio.to_thread(begun[1].wait, 60)
        late = asyncio.create_task(shared.call_after_now())
        await asyncio.sleep(0)
        go[1].set()
        go[2].set()
        return await first, await asyncio.gather(*waiting), await late

    assert asyncio.run(all_of_them()) == (0, [1] * ASKING, 2)


def test_an_error_is_shared_by_those_who_wait_for_the_next_call() -> None:
    """Callers that wait for the next call share the error of the current one, and wait for no second timeout."""
    go, calls = threading.Event(), []

    def ask() -> int:
        calls.append(threading.current_thread())
        assert go.wait(60)
        raise UnavailableError("away")

    async def all_of_them() -> list[int | BaseException]:
        shared = SharedCall(ask)
        asking = [asyncio.create_task(shared.call_after_now()) for _ in range(2)]
        await asyncio.sleep(0)
        asking += [asyncio.create_task(shared.call_after_now()) for _ in range(2)]
        go.set()
        return await asyncio.gather(*asking, return_exceptions=True)

    assert [str(each) for each in asyncio.run(all_of_them())] == ["away"] * 4
    assert len(calls) == 1
