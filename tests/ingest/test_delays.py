"""The delays that a doctor requests of ingest: which events are delayed, and for how long."""

import asyncio
import time

import pytest

from coordinator.domain.names import PodName, RepositoryName
from coordinator.ingest.delays import DELAY_LIMIT_S, REMEMBERED, Delay, Delays, delayed_user_agent, parse_delay
from coordinator.ingest.directory import KnownPod
from coordinator.ingest.normalise import Accepted
from coordinator.settings import Settings
from tests.ingest.harness import FixedDirectory, Tape, envelope, event, open_client_of_pod_a, serve_ingest
from tests.ingest.test_normalise import outcome_of

PATH = "/v1/events/pod-a"
PODS = FixedDirectory().pods
POD = PODS[PodName("pod-a")]
NONCE = "0123456789abcdef" * 2
SCRATCH = RepositoryName("pod-a/baleen-doctor-0123456789abcdef")


def hold(nonce: str = NONCE, seconds: int = 1, pod: KnownPod = POD) -> Delay:
    found = parse_delay(delayed_user_agent(pod.token_sha256, pod.name, nonce, seconds), SCRATCH)
    assert found is not None
    return found


class Clock:
    """A clock that a test sets; waits are recorded and end at once."""

    def __init__(self) -> None:
        self.now = 100.0
        self._waits: list[float] = []
        self._holds = Delays(lambda: self.now, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self._waits.append(seconds)

    def waits(self, *wanted: Delay) -> list[float]:
        """How long each of these waits, if it comes now."""
        self._waits.clear()
        asyncio.run(self._holds.wait(POD, wanted))
        return self._waits


def test_a_signed_hold() -> None:
    """A signed delay lasts as long as it says, up to the limit."""
    assert Clock().waits(hold()) == [1]
    assert Clock().waits(hold(seconds=9999)) == [DELAY_LIMIT_S]


def test_a_hold_that_is_repeated() -> None:
    """A nonce delays once: a repetition waits only for the rest of the first wait."""
    clock = Clock()
    assert clock.waits(hold()) == [1]
    clock.now += 0.5
    assert clock.waits(hold()) == [0.5]
    clock.now += 0.5
    assert clock.waits(hold(), hold()) == [0, 0]


def test_a_hold_that_is_not_trusted() -> None:
    """An event is not delayed without a signature for its pod, nonce and seconds."""
    other = PODS[PodName("pod-b")]
    forged = [
        hold()._replace(signature="0" * 64),
        hold()._replace(nonce="f" * 32),
        hold()._replace(seconds=2),
        hold(pod=other),
        hold(pod=POD.__class__(other.name, (), POD.token_sha256)),
    ]
    assert Clock().waits(*forged) == []


def test_what_is_remembered_is_bounded() -> None:
    """Only a limited number of nonces is remembered, the newest ones."""
    clock = Clock()
    clock.waits(*(hold(f"{number:032x}", 0) for number in range(REMEMBERED + 3)))
    assert len(clock._holds._until) == REMEMBERED


@pytest.mark.parametrize(
    ("repository", "user_agent", "held"),
    [
        (SCRATCH, delayed_user_agent(b"", "pod-a", NONCE, 2), True),
        (f"{SCRATCH}-other", f"proxy/1.0 {delayed_user_agent(b'', 'pod-a', NONCE, 2)} (linux)", True),
        ("pod-a/app", delayed_user_agent(b"", "pod-a", NONCE, 2), False),
        (f"{SCRATCH}/more", delayed_user_agent(b"", "pod-a", NONCE, 2), False),
        ("pod-a/baleen-doctor-notes", delayed_user_agent(b"", "pod-a", NONCE, 2), False),
        (SCRATCH, delayed_user_agent(b"", "pod-a", NONCE, 2)[:-1], False),
        (SCRATCH, "docker/20.10", False),
    ],
)
def test_which_clients_may_ask(repository: str, user_agent: str, held: bool) -> None:
    """Only a doctor's User-Agent requests a delay, and only in a doctor's repository."""
    outcome = outcome_of(repository=repository, request={"useragent": user_agent})
    assert isinstance(outcome, Accepted)
    assert (outcome.delay is not None) is held


def test_an_answer_that_is_delayed(settings: Settings, tape: Tape) -> None:
    """The event is answered and stored after its delay; a repetition and other events are not delayed."""
    waits: list[float] = []

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(seconds)

    user_agent = delayed_user_agent(POD.token_sha256, POD.name, NONCE, 1)
    body = envelope(event(repository=SCRATCH, request={"useragent": user_agent}))
    with serve_ingest(settings, holds=Delays(sleep=noted)) as url, open_client_of_pod_a(url) as client:
        began = time.monotonic()
        assert client.post(PATH, content=body).json()["accepted"] == 1
        assert time.monotonic() - began >= 1
        assert tape.count() == (1, 0)
        waits.clear()
        assert client.post(PATH, content=body).json()["accepted"] == 1
        assert waits == [0]
        assert client.post(PATH, content=envelope(event())).json()["accepted"] == 1
        assert waits == [0]
