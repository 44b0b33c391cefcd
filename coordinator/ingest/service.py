"""Process one posted body: authenticate, read it within limits, normalise it, write it to Kafka.

Route: api/events.py -> `Ingest.receive` -> normalise -> drop made-up probes (probes.py) -> delay what a doctor asks to
delay (delays.py) -> EventProducer.publish -> Receipt.
Invariants: a Receipt is returned only after Kafka has acknowledged every outcome of the body; an authenticated body is
refused (UnavailableError) only if sending it again can help, because a registry repeats forever whatever is not
answered with 2xx, and its later events wait meanwhile.
Not here: HTTP (api/events.py), what events mean (normalise.py).
"""

import asyncio
import datetime as dt
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from typing import Final, NamedTuple, Protocol

from coordinator.domain.names import PodName, parse_pod
from coordinator.errors import InvalidNameError, UnauthorizedError, UnavailableError
from coordinator.ingest import metrics
from coordinator.ingest.delays import Delays
from coordinator.ingest.directory import KnownPod, PodDirectory
from coordinator.ingest.normalise import (
    PAYLOAD_LIMIT,
    Accepted,
    DeadLettered,
    Dropped,
    Origin,
    Outcome,
    Reported,
    make_dead_letter,
    normalise_body,
)
from coordinator.ingest.probes import FindPods, Probes
from coordinator.ingest.refusals import RecordRefusals, RefusalNotes, record_nowhere
from coordinator.ingest.slim import ReferenceRemover
from coordinator.settings import Settings

#: A body that is still arriving after this time is refused. Registries send theirs in one go.
BODY_SECONDS: Final = 30.0
#: An oversized body is read to its end, so that its sender receives the answer, but no further than this.
DRAIN_LIMIT: Final = 256 * 1024 * 1024
#: What an unknown pod's token is compared with, so that it takes as long as a known one's.
_NO_TOKEN: Final = bytes(32)


class Publisher(Protocol):
    """What ingest needs from the EventProducer."""

    async def publish(self, outcomes: Sequence[Outcome]) -> list[Outcome]: ...


class Receipt(NamedTuple):
    """The outcomes of one body. `drained` is False if the rest of it was not read."""

    accepted: int
    dropped: int
    dead_lettered: int
    drained: bool = True
    reported: int = 0


class _Body(NamedTuple):
    data: bytes
    size: int
    drained: bool
    #: Everything was read, except for references of a body that would be too large with them.
    whole: bool


class MemoryBudget:
    """Limits the bytes of bodies held at once, over all requests."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def take(self, size: int, pod: PodName) -> None:
        """Count bytes of a pod as held; raises UnavailableError, and counts none, if they are too many."""
        if self._held + size > self._limit:
            metrics.REFUSED.labels(pod, "memory").inc()
            raise UnavailableError("Ingest is at its memory limit: send the events again in a second.")
        self._set_held(self._held + size)

    def release(self, size: int) -> None:
        self._set_held(self._held - size)

    def _set_held(self, held: int) -> None:
        self._held = held
        metrics.BYTES_IN_FLIGHT.set(held)


class Ingest:
    """One replica's ingest. It may be ended at any time: its state is the memory budget, the delays for doctors, and
    refusals that it has yet to note.
    """

    def __init__(
        self,
        settings: Settings,
        directory: PodDirectory,
        producer: Publisher,
        note_refusals: RecordRefusals = record_nowhere,
        *,
        find_probes: FindPods,
        body_seconds: float = BODY_SECONDS,
        drain_limit: int = DRAIN_LIMIT,
        holds: Delays | None = None,
    ) -> None:
        self._directory = directory
        self._producer = producer
        self._body_limit = settings.ingest_body_limit
        self._body_seconds = body_seconds
        self._drain_limit = drain_limit
        self._budget = MemoryBudget(settings.ingest_memory_limit)
        self._delays = holds or Delays()
        self._refusals = RefusalNotes(note_refusals)
        self._probes = Probes(find_probes)

    async def receive(self, pod: str, authorization: str, content_type: str, chunks: AsyncIterator[bytes]) -> Receipt:
        """Process a body and return its outcomes; raises UnauthorizedError and UnavailableError."""
        began = time.perf_counter()
        known = await self._authenticate(pod, authorization)
        try:
            return await self._process_body(known, content_type, chunks)
        finally:
            metrics.SECONDS.observe(time.perf_counter() - began)

    async def _authenticate(self, pod: str, authorization: str) -> KnownPod:
        scheme, _, token = authorization.partition(" ")
        presented = sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        try:
            name = parse_pod(pod)
        except InvalidNameError:
            name = None
        known = None
        if name is not None:
            # The second attempt asks the database: the pod or its token may be new.
            for fresh in (False, True):
                known = await self._directory.get(name, fresh=fresh)
                expected = _NO_TOKEN if known is None else known.token_sha256
                if hmac.compare_digest(presented, expected) and scheme.lower() == "bearer" and known is not None:
                    return known
        if known is not None:
            self._refusals.note_refusal(known.name)
        metrics.REFUSED.labels("" if known is None else known.name, "unauthorized").inc()
        raise UnauthorizedError("The pod or its token is unknown: use the token that `baleen pods add` printed.")

    async def _process_body(self, pod: KnownPod, content_type: str, chunks: AsyncIterator[bytes]) -> Receipt:
        held = _HeldBytes(self._budget, pod.name)
        try:
            body = await self._read_body(chunks, held)
            origin = Origin(pod.name, frozenset(pod.prefixes), dt.datetime.now(dt.UTC), content_type)
            if not body.whole:
                detail = f"The body has {body.size} bytes, and {self._body_limit} are allowed."
                outcomes: list[Outcome] = [
                    DeadLettered(make_dead_letter(origin, "oversized", detail, body.data, body.size))
                ]
            else:
                outcomes = await self._probes.filter_reports(await self._normalise(body.data, pod, origin))
            await self._delays.wait(pod, (each.delay for each in outcomes if isinstance(each, Accepted) and each.delay))
            written = await self._publish(pod, outcomes)
        finally:
            held.release()
        return _make_receipt(pod, written, drained=body.drained)

    async def _normalise(self, body: bytes, pod: KnownPod, origin: Origin) -> list[Outcome]:
        outcomes = normalise_body(body, origin)
        if not any(isinstance(each, DeadLettered) and each.dead_letter.reason == "not-owned" for each in outcomes):
            return outcomes
        # The pod may have got the prefix since it was looked up.
        known = await self._directory.get(pod.name, fresh=True)
        if known is None or origin.prefixes == frozenset(known.prefixes):
            return outcomes
        return normalise_body(body, origin._replace(prefixes=frozenset(known.prefixes)))

    async def _read_body(self, chunks: AsyncIterator[bytes], held: "_HeldBytes") -> _Body:
        parts: list[bytes] = []
        size = 0
        slim: ReferenceRemover | None = None
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in chunks:
                    size += len(chunk)
                    if slim is None and size > self._body_limit:
                        # It may be short enough without references, which are also in the manifest's bytes.
                        slim = ReferenceRemover()
                        parts = [slim.feed(b"".join(parts))]
                        held.keep(len(parts[0]))
                    kept = chunk if slim is None else slim.feed(chunk)
                    if slim is not None and held.size + len(kept) > self._body_limit:
                        return await self._drain_body(chunks, b"".join([*parts, kept]), size, held)
                    held.take(len(kept))
                    parts.append(kept)
                    if size > self._drain_limit:
                        beginning = b"".join(parts)[:PAYLOAD_LIMIT]
                        return _Body(beginning, size, drained=False, whole=False)
        except TimeoutError:
            metrics.REFUSED.labels(held.pod, "slow-body").inc()
            raise UnavailableError(f"The body did not arrive within {self._body_seconds:g} s: send it again.") from None
        return _Body(b"".join(parts), size, drained=True, whole=True)

    async def _drain_body(self, chunks: AsyncIterator[bytes], begun: bytes, size: int, held: "_HeldBytes") -> _Body:
        """Read the rest of a body that is too large, so that its sender receives the answer; keep its beginning."""
        beginning = begun[:PAYLOAD_LIMIT]
        if held.size > len(beginning):
            held.keep(len(beginning))
        async for chunk in chunks:
            size += len(chunk)
            if size > self._drain_limit:
                return _Body(beginning, size, drained=False, whole=False)
        return _Body(beginning, size, drained=True, whole=False)

    async def _publish(self, pod: KnownPod, outcomes: list[Outcome]) -> list[Outcome]:
        if all(isinstance(outcome, Dropped) for outcome in outcomes):
            return outcomes
        try:
            written = await self._producer.publish(outcomes)
        except UnavailableError:
            metrics.REFUSED.labels(pod.name, "kafka").inc()
            raise
        self._probes.remember_written(written)
        return written


class _HeldBytes:
    """One request's part of the memory budget."""

    def __init__(self, budget: MemoryBudget, pod: PodName) -> None:
        self._budget = budget
        self.pod = pod
        self.size = 0

    def take(self, size: int) -> None:
        self._budget.take(size, self.pod)
        self.size += size

    def keep(self, size: int) -> None:
        self._budget.release(self.size - size)
        self.size = size

    def release(self) -> None:
        self.keep(0)


def _make_receipt(pod: KnownPod, outcomes: list[Outcome], *, drained: bool) -> Receipt:
    kinds: Counter[str] = Counter()
    kind: str
    reason: str
    for outcome in outcomes:
        match outcome:
            case Accepted(event, _):
                kind, reason = "accepted", event.action
            case Reported():
                kind, reason = "reported", "probe"
            case Dropped(why):
                kind, reason = "dropped", why
            case DeadLettered(dead_letter):
                kind, reason = "dead_lettered", dead_letter.reason
        kinds[kind] += 1
        metrics.EVENTS.labels(pod.name, kind, reason).inc()
    return Receipt(kinds["accepted"], kinds["dropped"], kinds["dead_lettered"], drained, kinds["reported"])
