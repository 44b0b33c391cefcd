"""A nonce without a probe writes nothing, and a database that is away delays neither pushes nor true reports."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

import httpx
import pytest

from coordinator.ingest.normalise import Dropped, Outcome, Reported
from coordinator.ingest.probes import LOOKUP_LIMIT, UNVERIFIED_LIMIT, Probes
from coordinator.settings import Settings
from schemas.records import RegistryWatermark
from tests.ingest.harness import TOKENS, V1, Tape, envelope, event, serve_ingest

PATH = "/v1/events/pod-a"
NONCES = [f"{number:032x}" for number in range(2000)]
DROPPED = Dropped("unknown-probe")


def report(nonce: str = NONCES[0], pod: str = "pod-a", process: str = "i-1") -> Reported:
    return Reported(RegistryWatermark(action="watermark", pod=pod, process=process, nonce=nonce))


class Table:
    """The table of probes, which can be away or hang."""

    def __init__(self, probes: dict[str, str] | None = None) -> None:
        self.probes = probes or {}
        self.asked: list[set[str]] = []
        self.is_away = False
        self.answers, self.is_asked = asyncio.Event(), asyncio.Event()
        self.answers.set()

    async def find(self, nonces: Collection[str]) -> dict[str, str]:
        self.asked.append(set(nonces))
        self.is_asked.set()
        await self.answers.wait()
        if self.is_away:
            raise ConnectionError("away")
        return {nonce: self.probes[nonce] for nonce in nonces if nonce in self.probes}


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


@pytest.mark.lengthy
def test_a_made_up_nonce_writes_nothing(settings: Settings, tape: Tape) -> None:
    """Attempt 19: HEADs with made-up nonces, or another pod's, leave no record; a true one leaves one in each
    partition, once.
    """
    true, foreign = NONCES[0], NONCES[1]

    async def find(nonces: Collection[str]) -> dict[str, str]:
        return {nonce: pod for nonce, pod in ((true, "pod-a"), (foreign, "pod-b")) if nonce in nonces}

    def pull(nonce: str) -> dict[str, Any]:
        return event(action="pull", request={"useragent": f"baleen-probe/{nonce}"}, source={"instanceID": "i-1"})

    headers = {"Authorization": f"Bearer {TOKENS['pod-a']}", "Content-Type": V1}
    with (
        serve_ingest(settings, find_probes=find) as url,
        httpx.Client(base_url=url, headers=headers, timeout=90) as client,
    ):
        tape.rewind()
        for nonce in (foreign, *NONCES[2:500]):
            answer = client.post(PATH, content=envelope(pull(nonce)))
            assert answer.json() == {"accepted": 0, "dropped": 1, "dead_lettered": 0}
        assert client.post(PATH, content=envelope(event(), *map(pull, NONCES[500:600]))).json()["accepted"] == 1
        assert tape.count() == (1, 0)
        tape.rewind()
        assert client.post(PATH, content=envelope(pull(true), pull(true), pull(NONCES[700]))).json()["reported"] == 1
        assert tape.count() == (settings.kafka_partitions, settings.kafka_partitions)
        assert client.post(PATH, content=envelope(pull(true))).json()["dropped"] == 1
        assert tape.count() == (settings.kafka_partitions, settings.kafka_partitions)


def test_a_report_that_was_not_written_may_come_again() -> None:
    """A report is dropped as repeated only once Kafka has it; another process may report the same probe."""

    async def scenario() -> None:
        probes = Probes(Table({NONCES[0]: "pod-a"}).find)
        for _ in range(2):
            assert await probes.filter_reports([report()]) == [report()]
        probes.remember_written([report()])
        assert await probes.filter_reports([report(), report(process="i-2")]) == [DROPPED, report(process="i-2")]

    run(scenario())


def test_requests_share_a_question() -> None:
    """Waiting requests share one look-up, and the next one is for all that came meanwhile."""

    async def scenario() -> None:
        table = Table({NONCES[0]: "pod-a", NONCES[7]: "pod-a"})
        table.answers.clear()
        probes = Probes(table.find, patience=60)
        asking = [asyncio.create_task(probes.filter_reports([report()]))]
        await table.is_asked.wait()
        asking += [asyncio.create_task(probes.filter_reports([report(nonce)])) for nonce in NONCES[1:50]]
        await asyncio.sleep(0)
        table.answers.set()
        answers: list[list[Outcome]] = await asyncio.gather(*asking)
        assert answers == [[report(nonce)] if nonce in table.probes else [DROPPED] for nonce in NONCES[:50]]
        assert table.asked == [{NONCES[0]}, set(NONCES[1:50])]

    run(scenario())


@pytest.mark.parametrize("hangs", [False, True])
def test_while_the_database_is_away(hangs: bool) -> None:
    """While the database is away a limited number of each pod's reports is written unverified, and no request waits for
    it.
    """

    async def scenario() -> None:
        table = Table({NONCES[0]: "pod-a"})
        table.is_away = True
        if hangs:
            table.answers.clear()
        probes = Probes(table.find, patience=0.01, pause=3600, load_timeout=3600)
        for pod in ("pod-a", "pod-b"):
            passed = [await probes.filter_reports([report(nonce, pod)]) for nonce in NONCES[:100]]
            assert passed == [[report(nonce, pod)] for nonce in NONCES[:UNVERIFIED_LIMIT]] + [[DROPPED]] * (
                100 - UNVERIFIED_LIMIT
            )
        assert len(table.asked) == 1
        table.answers.set()

    run(scenario())


def test_the_limit_is_of_a_while() -> None:
    """After the interval as many unverified reports are written again."""

    async def scenario() -> None:
        table = Table()
        table.is_away = True
        probes = Probes(table.find, pause=3600, unverified_seconds=0)
        for nonce in NONCES[: 3 * UNVERIFIED_LIMIT]:
            assert await probes.filter_reports([report(nonce)]) == [report(nonce)]

    run(scenario())


def test_the_database_comes_back() -> None:
    """After a failure the table is read again, and decides."""

    async def scenario() -> None:
        table = Table({NONCES[0]: "pod-a"})
        table.is_away = True
        probes = Probes(table.find, patience=60, pause=0)
        assert await probes.filter_reports([report(NONCES[1])]) == [report(NONCES[1])]
        table.is_away = False
        assert await probes.filter_reports([report(NONCES[1]), report()]) == [DROPPED, report()]

    run(scenario())


def test_a_question_is_bounded() -> None:
    """One look-up has a limited number of nonces."""

    async def scenario() -> None:
        table = Table()
        table.answers.clear()
        probes = Probes(table.find, patience=60)
        asking = [asyncio.create_task(probes.filter_reports([report(nonce)])) for nonce in NONCES]
        await asyncio.sleep(0)
        table.answers.set()
        await asyncio.gather(*asking)
        assert max(map(len, table.asked)) <= LOOKUP_LIMIT

    run(scenario())
