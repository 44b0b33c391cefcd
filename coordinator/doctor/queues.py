"""Whether the echo of a probe waits for whatever was done before it: whether the registry has one queue for all.

A registry has a queue for each endpoint, and these may ignore different things. Then an echo says nothing of what
another queue holds, and the watermark passes what is not told.

Route: for each kind of thing by itself, at all places together: it is pushed or mounted, and ingest asked to hold it
back (ingest/holding.py); a probe is sent -> both are told -> the echo must stand behind it. No two kinds are held
at once: the probes' queue might wait for one of them, and hide that it does not for the other.
That an echo did not come early is worth something only if it would have: so one has to be quicker by itself than this
one was kept waiting. If it is not, the kind is tried again, held for longer; nobody is believed to have held anything.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from coordinator.doctor import table as findings
from coordinator.doctor.kinds import FAMILIES, MOUNT
from coordinator.doctor.scratch import Announcement
from coordinator.doctor.verdicts import AGAIN, Part, follows, proved, refuted, unproved
from coordinator.doctor.visit import Place, Visit
from coordinator.domain.findings import Check, Verdict
from coordinator.ingest import holding
from coordinator.kafka.tail import Told
from coordinator.kafka.topics import EVENTS
from coordinator.registry.client import RegistryError
from coordinator.registry.images import Image, Index
from schemas.records import RegistryWatermark

BLOB: Final = "blob"
KINDS: Final = (BLOB, *(kind for names in FAMILIES.values() for kind in names), MOUNT)
#: For how long ingest is asked to hold, one try after the other.
HOLDS_S: Final = (2, 4, holding.LIMIT_S)
#: By how much longer an echo has to be kept waiting than it takes by itself.
MARGIN_S: Final = 1.0


class Probe(NamedTuple):
    """A probe was sent with a nonce, and when that was answered."""

    nonce: str
    answered: float


class Trial(NamedTuple):
    """Something was done, to be held back, and then a probe sent."""

    done: Announcement
    probe: Probe


class Ends(NamedTuple):
    """Where each partition ended, at this time or later."""

    at: float
    offsets: Mapping[int, int]


class Outcome(NamedTuple):
    """What came of a trial of one kind."""

    kind: str
    told: Told | None = None
    #: The first of each partition.
    echoes: Sequence[Told] = ()
    #: For how long after the probe's answer what was done was not told, for certain.
    awaited: float = 0.0
    #: Of another probe, with nothing held: how long after its answer its echo was seen.
    unhindered: float | None = None
    #: Why it could not be tried.
    error: str | None = None

    @property
    def is_too_close(self) -> bool:
        return self.unhindered is not None and self.awaited < self.unhindered + MARGIN_S


def one_queue(visit: Visit) -> list[Part]:
    """A part for each place where anything was told of the visit's push."""
    found: dict[Place, list[Outcome]] = {report.push.place: [] for report in visit.reports if report.echoes}
    #: What is not told at all cannot be held back.
    untold = {each.kinds.place: each.missing for each in visit.kinds}
    for kind in KINDS:
        places = [
            place
            for place in found
            if kind not in untold.get(place, [])
            and all(judged(each).verdict is Verdict.PROVED for each in found[place])
        ]
        for seconds in HOLDS_S:
            outcomes = _round(visit, places, kind, seconds)
            again = [place for place, each in outcomes.items() if each.is_too_close and seconds != HOLDS_S[-1]]
            for place in outcomes.keys() - set(again):
                found[place].append(outcomes[place])
            places = again
    return [
        joined(str(place), found.get(place, []), untold.get(place, []))
        for place in (report.push.place for report in visit.reports if report.sources)
    ]


def joined(where: str, outcomes: Sequence[Outcome], untold: Sequence[str] = ()) -> Part:
    """What the kinds come to together. None were tried where no probe comes back."""
    if not outcomes:
        return follows(where, "no probe comes back that could overtake what is held back", Check.PROBES_ARRIVE)
    for outcome in outcomes:
        if (part := judged(outcome)).verdict is not Verdict.PROVED:
            return part._replace(where=where)
    if untold:
        return follows(where, f"{', '.join(untold)} is not told", Check.EVENTS_ARRIVE)
    awaited = min(outcome.awaited for outcome in outcomes)
    unhindered = max(outcome.unhindered or 0.0 for outcome in outcomes)
    kinds = ", ".join(outcome.kind for outcome in outcomes)
    return proved(
        where,
        f"while ingest held each of {kinds} back, {awaited:.1f} s or longer, a later probe did not come back; one by "
        f"itself takes {unhindered:.1f} s at most",
    )


def judged(outcome: Outcome) -> Part:
    kind, told = outcome.kind, outcome.told
    if outcome.error is not None:
        return unproved("", outcome.error, AGAIN)
    if told is None or not _is_whole(outcome.echoes):
        return unproved("", f"of a {kind} that was to be held back and a probe after it not all was told")
    if {told.record.source} != {echo.record.source for echo in outcome.echoes}:
        return unproved("", f"a {kind} and a probe after it were told by different processes")
    (echo,) = [echo for echo in outcome.echoes if echo.partition == told.partition]
    if echo.offset < told.offset:
        return refuted(
            "", f"a probe came back before the {kind} that came first and was held back: they are in different queues"
        )
    if outcome.unhindered is None or outcome.is_too_close:
        alone = "did not come back" if outcome.unhindered is None else f"takes {outcome.unhindered:.1f} s"
        return unproved(
            "",
            f"a {kind} that was to be held back was told {outcome.awaited:.1f} s after a later probe, and a probe by "
            f"itself {alone}: whether they are in one queue is not seen. Is each process of the API of this release?",
        )
    return proved("", f"a probe came back after the {kind} before it, which was held back")


def _round(visit: Visit, places: Iterable[Place], kind: str, seconds: int) -> dict[Place, Outcome]:
    """Try a kind at all these places; those that mount nothing have no mount to tell, and no outcome."""
    trials: dict[Place, Trial] = {}
    outcomes: dict[Place, Outcome] = {}
    ends: list[Ends] = []
    for place in places:
        try:
            trial = _try(visit, place, kind, seconds)
        except RegistryError as error:
            outcomes[place] = Outcome(kind, error=str(error))
        else:
            trials |= {} if trial is None else {place: trial}
        ends.append(_ends(visit))

    def over() -> bool:
        if all(visit.announced(each.done) and _is_whole(_echoes(visit, each.probe)) for each in trials.values()):
            return True
        ends.append(_ends(visit))
        return False

    visit.wait(over, seconds)
    return outcomes | {place: _outcome(visit, place, kind, trial, ends) for place, trial in trials.items()}


def _try(visit: Visit, place: Place, kind: str, seconds: int) -> Trial | None:
    do, done = _prepared(visit, place, kind)
    key = visit.ask(lambda connection: findings.token_sha256(connection, visit.pod))
    with place.client.named(holding.agent(key, visit.pod.name, secrets.token_hex(16), seconds)):
        if do() is False:
            return None
    return Trial(done, _probe(visit, place))


def _prepared(visit: Visit, place: Place, kind: str) -> tuple[Callable[[], bool | None], Announcement]:
    """Push what the thing needs; give what does it, False if that is not to be had, and what is to be told."""
    scratch, client, layer = visit.scratch, place.client, visit.scratch.layer()
    if kind == BLOB:
        return lambda: scratch.push_blob(client, layer), Announcement("push", scratch.repository, layer.digest)
    scratch.push_blob(client, layer)
    if kind == MOUNT:
        return lambda: scratch.mount(client, layer), Announcement("mount", scratch.other, layer.digest)
    family = next(family for family, names in FAMILIES.items() if kind in names)
    image = scratch.image([layer], family)
    scratch.push_blob(client, image.config)
    manifest: Image | Index = image
    if kind != FAMILIES[family][0]:
        scratch.put_manifest(client, image)
        manifest = scratch.index([image], family)
    return lambda: scratch.put_manifest(client, manifest), Announcement("push", scratch.repository, manifest.digest)


def _probe(visit: Visit, place: Place) -> Probe:
    image = next(push.image for push in visit.pushes if push.place == place)
    nonce = visit.nonce(place)
    visit.probe(place, image, nonce)
    return Probe(nonce, time.monotonic())


def _outcome(visit: Visit, place: Place, kind: str, trial: Trial, ends: Sequence[Ends]) -> Outcome:
    told, echoes = visit.announced(trial.done), _echoes(visit, trial.probe)
    if told is None or not _is_whole(echoes):
        return Outcome(kind, told, echoes)
    before = [end.at - trial.probe.answered for end in ends if end.offsets[told.partition] <= told.offset]
    try:
        return Outcome(kind, told, echoes, max(before, default=0.0), _unhindered(visit, place))
    except RegistryError as error:
        return Outcome(kind, error=str(error))


def _unhindered(visit: Visit, place: Place) -> float | None:
    probe = _probe(visit, place)
    return time.monotonic() - probe.answered if visit.wait(lambda: bool(_echoes(visit, probe))) else None


def _ends(visit: Visit) -> Ends:
    began = time.monotonic()
    partitions = visit.instruments.inspector.state(EVENTS).partitions
    return Ends(began, {number: offsets.latest for number, offsets in partitions.items()})


def _echoes(visit: Visit, probe: Probe) -> list[Told]:
    """The first of each partition."""
    found: dict[int, Told] = {}
    for told in visit.told:
        if isinstance(told.record, RegistryWatermark) and told.record.nonce == probe.nonce:
            found.setdefault(told.partition, told)
    return list(found.values())


def _is_whole(echoes: Sequence[Told]) -> bool:
    copies = {echo.record.partitions for echo in echoes if isinstance(echo.record, RegistryWatermark)}
    return copies == {len(echoes)}
