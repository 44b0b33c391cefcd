"""The notes of refused tokens: few, bounded, and without delay for any request."""

import asyncio
from collections.abc import Collection

import httpx
import pytest
from prometheus_client import REGISTRY

from coordinator.domain.names import PodName
from coordinator.ingest.refusals import RefusalNotes
from tests.ingest.harness import TOKENS, envelope, event

A, B = PodName("a"), PodName("b")


class Notebook:
    """Records what is written; it can be away, or hang."""

    def __init__(self) -> None:
        self.written: list[set[PodName]] = []
        self.is_away = False
        self.hangs = False
        self.done = asyncio.Event()

    async def write(self, pods: Collection[PodName]) -> None:
        self.written.append(set(pods))
        self.done.set()
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_away:
            raise ConnectionError("away")

    async def next(self) -> None:
        async with asyncio.timeout(10):
            await self.done.wait()
        self.done.clear()


def test_a_flood_is_noted_once() -> None:
    """A pod's refusals are written once in the interval, however many there are, and again after it."""

    async def run() -> None:
        book = Notebook()
        notes = RefusalNotes(book.write, every=3600, pace=0)
        for _ in range(1000):
            notes.note_refusal(A)
        await book.next()
        notes.note_refusal(B)
        notes.note_refusal(A)
        await book.next()
        assert book.written == [{A}, {B}]
        always = RefusalNotes(book.write, every=0, pace=0)
        for _ in range(2):
            always.note_refusal(A)
            await book.next()
        assert book.written[2:] == [{A}, {A}]

    asyncio.run(run())


def test_many_pods_are_noted_together() -> None:
    """While one statement runs, all refused pods wait for one other; after it there is a pause."""
    many = {PodName(f"p{number}") for number in range(100)}

    async def run() -> None:
        book = Notebook()
        book.hangs = True
        notes = RefusalNotes(book.write, pace=0, timeout=0.05)
        notes.note_refusal(A)
        await book.next()
        for pod in many:
            notes.note_refusal(pod)
        await book.next()
        assert book.written == [{A}, many]

        book = Notebook()
        notes = RefusalNotes(book.write, pace=3600)
        for pod in (A, *many):
            notes.note_refusal(pod)
            await asyncio.sleep(0)
        assert book.written == [{A}]

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["is_away", "hangs"])
def test_a_database_that_is_away(fault: str) -> None:
    """No answer waits for a note, one statement runs at a time, and what failed is written later."""

    async def run() -> None:
        book = Notebook()
        setattr(book, fault, True)
        notes = RefusalNotes(book.write, every=0, pace=0, timeout=0.05)
        notes.note_refusal(A)
        await book.next()
        for _ in range(100):
            notes.note_refusal(A)
            notes.note_refusal(B)
        assert len(book.written) == 1
        setattr(book, fault, False)
        while len(book.written) < 2:
            notes.note_refusal(A)
            notes.note_refusal(B)
            await asyncio.sleep(0)
        assert book.written[1:] == [{A, B}]

    asyncio.run(run())


def test_who_becomes_a_label(url: str) -> None:
    """A refusal is counted by its pod if that is registered, and without a name otherwise."""

    def refused(pod: str) -> float:
        return REGISTRY.get_sample_value("baleen_ingest_refused_total", {"pod": pod, "reason": "unauthorized"}) or 0.0

    before = {pod: refused(pod) for pod in ("pod-a", "nobody", "")}
    for pod, headers in (
        ("pod-a", {"Authorization": "Bearer wrong"}),
        ("pod-a", {}),
        ("nobody", {"Authorization": f"Bearer {TOKENS['pod-a']}"}),
        ("NOT_A_NAME", {}),
    ):
        assert httpx.post(f"{url}/v1/events/{pod}", content=envelope(event()), headers=headers).status_code == 401
    assert {pod: refused(pod) - before[pod] for pod in before} == {"pod-a": 2, "nobody": 0, "": 2}
