"""Answer single questions that come at the same time with one statement.

A statement for many digests costs little more than a statement for one. So while IN_FLIGHT statements run, further
questions wait and then share one: a lone question does not wait, and a thousand a second become a few dozen
statements. An error is raised for every question of the statement.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

IN_FLIGHT = 2
BATCH_LIMIT = 100


class Coalescer(Generic[Question, Answer]):
    """Joins questions into batches. `ask_all` returns the answers in the order of the questions."""

    def __init__(self, ask_all: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]) -> None:
        self._ask_all = ask_all
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if len(self._running) < IN_FLIGHT:
            task = asyncio.create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
            try:
                answers = await self._ask_all([question for question, _ in batch])
            except BaseException as error:
                # End the futures, or their callers wait for ever. A statement is cancelled only if the process ends.
                failure = error if isinstance(error, Exception) else asyncio.CancelledError()
                for _, future in batch:
                    if not future.done():
                        future.set_exception(failure)
                if not isinstance(error, Exception):
                    raise
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
