"""Drop echoes of unknown probes, so that a made-up nonce causes no record in Kafka.

A watermark record is written to every partition, so a made-up nonce would cost a client one request and Baleen sixteen
records. Each nonce is first looked up in the table of probes, whose row is committed before the probe is sent.

Route: normalise.py finds nonces, whatever the action -> `Probes.filter_reports` -> outcomes without made-up reports.
Invariants: one look-up runs at a time, for all waiting requests and for a bounded number of nonces; a request waits for
it no longer than `PATIENCE`, and not at all while the database is known to be away. A report that a registry process
already made is not written again.
While the database does not answer, up to `UNVERIFIED_LIMIT` reports of each pod in `UNVERIFIED_SECONDS` are written
unverified: the reference processor verifies them before it moves a watermark, so the only cost is records, whereas
losing a true report would freeze the pod's watermark until a reconcile. Further reports are dropped.
Not here: what a probe is (coordinator/pods/prober.py), what an echo does (coordinator/table/echoes.py).
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from coordinator.ingest.normalise import Dropped, Outcome, Reported

log = logging.getLogger(__name__)

#: The longest that a request waits for the database: a registry's next event waits behind it.
PATIENCE: Final = 0.25
#: A database that does not answer within this time is away, and is asked again after a pause.
LOAD_TIMEOUT: Final = 5.0
PAUSE: Final = 1.0
#: Nonces of one look-up.
LOOKUP_LIMIT: Final = 1000
#: Unverified reports of one pod in this time.
UNVERIFIED_LIMIT: Final = 20
UNVERIFIED_SECONDS: Final = 60.0
#: Reports that are remembered as written.
REMEMBERED: Final = 10_000

#: Returns the pod of each of these nonces that belongs to a probe.
FindPods = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]


class _UnansweredError(Exception):
    """The database did not answer in time."""


class Probes:
    """One replica's view of the pending probes."""

    def __init__(
        self,
        find: FindPods,
        *,
        patience: float = PATIENCE,
        load_timeout: float = LOAD_TIMEOUT,
        pause: float = PAUSE,
        unverified_seconds: float = UNVERIFIED_SECONDS,
    ) -> None:
        self._find = find
        self._patience = patience
        self._load_timeout = load_timeout
        self._pause = pause
        self._unverified_seconds = unverified_seconds
        self._wanted: dict[str, asyncio.Future[str | None]] = {}
        self._look_up_task: asyncio.Task[None] | None = None
        self._away_until = float("-inf")
        #: When the running look-up began.
        self._began = float("inf")
        #: By pod: when its window began, and unverified reports since then.
        self._unverified: dict[str, tuple[float, int]] = {}
        #: Reports that Kafka has, the oldest first: pod, process, nonce.
        self._written: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    async def filter_reports(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Return the outcomes, without reports that were written already or whose nonce is of no probe of their pod."""
        reports = list(dict.fromkeys(each.record for each in outcomes if isinstance(each, Reported)))
        if not reports:
            return list(outcomes)
        new = [each for each in reports if (each.pod, each.process, each.nonce) not in self._written]
        pods = await self._find_pods({each.nonce for each in new})
        kept = set()
        for report in new:
            if report.nonce in pods:
                if pods[report.nonce] == report.pod:
                    kept.add(report)
            elif self._may_pass(report.pod):
                kept.add(report)
        checked: list[Outcome] = []
        for outcome in outcomes:
            if not isinstance(outcome, Reported):
                checked.append(outcome)
            elif outcome.record in kept:
                kept.discard(outcome.record)
                checked.append(outcome)
            else:
                checked.append(Dropped("unknown-probe"))
        return checked

    def remember_written(self, outcomes: Sequence[Outcome]) -> None:
        """Remember that Kafka has these reports."""
        for each in outcomes:
            if isinstance(each, Reported):
                self._written[each.record.pod, each.record.process, each.record.nonce] = None
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)

    async def _find_pods(self, nonces: Collection[str]) -> dict[str, str | None]:
        """Return the pod of each nonce, None for one of no probe; without nonces that the database did not answer."""
        known: dict[str, str | None] = {}
        waiting = {nonce: future for nonce in nonces if (future := self._queue_lookup(nonce)) is not None}
        if waiting:
            await asyncio.wait(waiting.values(), timeout=self._patience)
        for nonce, future in waiting.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                known[nonce] = future.result()
        return known

    def _queue_lookup(self, nonce: str) -> asyncio.Future[str | None] | None:
        """Queue a nonce for look-up; None while the database is away, or too many nonces wait."""
        now = time.monotonic()
        # A request does not wait for a look-up that has already timed out for others.
        if now < self._away_until or now - self._began > self._patience:
            return None
        if (future := self._wanted.get(nonce)) is not None:
            return future
        if len(self._wanted) >= LOOKUP_LIMIT:
            return None
        future = self._wanted[nonce] = asyncio.get_running_loop().create_future()
        # A look-up that nothing waits for any more may fail silently.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._look_up_task is None:
            self._look_up_task = asyncio.create_task(self._look_up_queued())
        return future

    async def _look_up_queued(self) -> None:
        try:
            while self._wanted:
                asked, self._wanted = self._wanted, {}
                self._began = time.monotonic()
                try:
                    async with asyncio.timeout(self._load_timeout):
                        found = await self._find(list(asked))
                except Exception as error:  # noqa: BLE001 - whatever it is, events are taken all the same
                    log.warning("Probes cannot be looked up, and some reports are written unverified: %r", error)
                    self._away_until = time.monotonic() + self._pause
                    for future in (*asked.values(), *self._wanted.values()):
                        _fail_future(future)
                    self._wanted = {}
                else:
                    for nonce, future in asked.items():
                        if not future.done():
                            future.set_result(found.get(nonce))
        finally:
            self._look_up_task, self._began = None, float("inf")

    def _may_pass(self, pod: str) -> bool:
        now = time.monotonic()
        began, count = self._unverified.get(pod, (now, 0))
        if now - began > self._unverified_seconds:
            began, count = now, 0
        if count >= UNVERIFIED_LIMIT:
            return False
        self._unverified[pod] = (began, count + 1)
        return True


def _fail_future(future: asyncio.Future[str | None]) -> None:
    if not future.done():
        future.set_exception(_UnansweredError())
