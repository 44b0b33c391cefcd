"""Check that a probe's echo waits for everything before it: that the registry has one queue for all events.

A registry has a queue for each endpoint, and endpoints may ignore different events. Then an echo says nothing of the
other queues, and the watermark passes events that have not come.

Route: for each kind by itself, at all places together: push or mount it, and ask ingest to delay its event
(ingest/delays.py); send a probe -> both come -> the echo must be behind the event. Two kinds are never delayed at
once: the probes' queue might wait for one of them, and hide that it does not wait for the other.
An echo that did not come early proves something only if it could have: an undelayed probe has to be quicker than this
one waited. If it is not, the kind is tried again with a longer delay. It is never assumed that ingest delayed an event.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from coordinator.doctor import table as findings
from coordinator.doctor.kinds import FAMILIES, MOUNT
from coordinator.doctor.results import RUN_AGAIN, Part, not_tried, proved, refuted, unproved
from coordinator.doctor.scratch import Announcement
from coordinator.doctor.visit import Place, Visit
from coordinator.domain.findings import Check, Result
from coordinator.ingest import delays
from coordinator.kafka.tail import TailedRecord
from coordinator.kafka.topics import EVENTS
from coordinator.registry.client import RegistryError
from coordinator.registry.images import Image, Index
from schemas.records import RegistryWatermark

BLOB: Final = "blob"
KINDS: Final = (BLOB, *(kind for names in FAMILIES.values() for kind in names), MOUNT)
#: How long ingest is asked to delay an event, one try after the other.
DELAYS_S: Final = (2, 4, delays.DELAY_LIMIT_S)
#: How much longer an echo has to wait than one without a delay takes.
MARGIN_S: Final = 1.0


class SentProbe(NamedTuple):
    """A probe: its nonce, and when the registry answered it."""

    nonce: str
    answered: float


class Trial(NamedTuple):
    """Something whose event ingest was asked to delay, and the probe that was sent after it."""

    done: Announcement
    probe: SentProbe


class LogEnds(NamedTuple):
    """The end of each partition, at this time or later."""

    at: float
    offsets: Mapping[int, int]


class TrialResult(NamedTuple):
    """The result of a trial of one kind."""

    kind: str
    entry: TailedRecord | None = None
    #: The first of each partition.
    echoes: Sequence[TailedRecord] = ()
    #: How long after the probe's answer the event had certainly not come, in seconds.
    awaited: float = 0.0
    #: How long the echo of another probe took after its answer, without a delayed event, in seconds.
    unhindered: float | None = None
    #: Why it could not be tried; None if it was.
    error: str | None = None

    @property
    def is_too_close(self) -> bool:
        return self.unhindered is not None and self.awaited < self.unhindered + MARGIN_S


def queue_parts(visit: Visit) -> list[Part]:
    """Return a part for each place that reported the visit's push."""
    found: dict[Place, list[TrialResult]] = {report.push.place: [] for report in visit.reports if report.echoes}
    #: An event that is never sent cannot be delayed.
    unreported = {each.kinds.place: each.missing for each in visit.kinds}
    for kind in KINDS:
        places = [
            place
            for place in found
            if kind not in unreported.get(place, [])
            and all(trial_part(each).result is Result.PROVED for each in found[place])
        ]
        for seconds in DELAYS_S:
            outcomes = _try_kind(visit, places, kind, seconds)
            again = [place for place, each in outcomes.items() if each.is_too_close and seconds != DELAYS_S[-1]]
            for place in outcomes.keys() - set(again):
                found[place].append(outcomes[place])
            places = again
    return [
        queue_part(str(place), found.get(place, []), unreported.get(place, []))
        for place in (report.push.place for report in visit.reports if report.processes)
    ]


def queue_part(where: str, outcomes: Sequence[TrialResult], unreported: Sequence[str] = ()) -> Part:
    """Join the outcomes of all kinds at one place. There are none where no probe comes back."""
    if not outcomes:
        return not_tried(where, "no probe comes back that could overtake a delayed event", Check.PROBES_ARRIVE)
    for outcome in outcomes:
        if (part := trial_part(outcome)).result is not Result.PROVED:
            return part._replace(where=where)
    if unreported:
        return not_tried(where, f"the registry does not report {', '.join(unreported)}", Check.EVENTS_ARRIVE)
    awaited = min(outcome.awaited for outcome in outcomes)
    unhindered = max(outcome.unhindered or 0.0 for outcome in outcomes)
    kinds = ", ".join(outcome.kind for outcome in outcomes)
    return proved(
        where,
        f"while ingest delayed the events of {kinds}, each for {awaited:.1f} s or longer, no later probe came back; "
        f"without a delay a probe takes {unhindered:.1f} s at most",
    )


def trial_part(outcome: TrialResult) -> Part:
    kind, entry = outcome.kind, outcome.entry
    if outcome.error is not None:
        return unproved("", outcome.error, RUN_AGAIN)
    if entry is None or not _has_every_copy(outcome.echoes):
        return unproved("", f"not all events came of a {kind} that ingest was to delay and of the probe after it")
    if {entry.record.process} != {echo.record.process for echo in outcome.echoes}:
        return unproved("", f"a {kind} and the probe after it were reported by different processes")
    (echo,) = [echo for echo in outcome.echoes if echo.partition == entry.partition]
    if echo.offset < entry.offset:
        return refuted(
            "", f"a probe came back before the event of an earlier {kind}, which was delayed: they have two queues"
        )
    if outcome.unhindered is None or outcome.is_too_close:
        alone = "did not come back" if outcome.unhindered is None else f"takes {outcome.unhindered:.1f} s"
        return unproved(
            "",
            f"the event of a {kind} that ingest was to delay came {outcome.awaited:.1f} s after a later probe was "
            f"sent, and a probe without a delay {alone}: that does not show whether they have one queue. Check that "
            "each process of the API is of this release",
        )
    return proved("", f"a probe came back after the event of the {kind} before it, which was delayed")


def _try_kind(visit: Visit, places: Iterable[Place], kind: str, seconds: int) -> dict[Place, TrialResult]:
    """Try a kind at all these places. One that does not mount has no outcome for mounts."""
    trials: dict[Place, Trial] = {}
    outcomes: dict[Place, TrialResult] = {}
    ends: list[LogEnds] = []
    for place in places:
        try:
            trial = _start_trial(visit, place, kind, seconds)
        except RegistryError as error:
            outcomes[place] = TrialResult(kind, error=str(error))
        else:
            trials |= {} if trial is None else {place: trial}
        ends.append(_read_log_ends(visit))

    def is_over() -> bool:
        if all(
            visit.find_event(each.done) and _has_every_copy(_find_echoes(visit, each.probe)) for each in trials.values()
        ):
            return True
        ends.append(_read_log_ends(visit))
        return False

    visit.read_until(is_over, seconds)
    return outcomes | {place: _make_result(visit, place, kind, trial, ends) for place, trial in trials.items()}


def _start_trial(visit: Visit, place: Place, kind: str, seconds: int) -> Trial | None:
    do, done = _prepare_trial(visit, place, kind)
    key = visit.query(lambda connection: findings.read_token_sha256(connection, visit.pod))
    with place.client.use_user_agent(delays.delayed_user_agent(key, visit.pod.name, secrets.token_hex(16), seconds)):
        if do() is False:
            return None
    return Trial(done, _send_probe(visit, place))


def _prepare_trial(visit: Visit, place: Place, kind: str) -> tuple[Callable[[], bool | None], Announcement]:
    """Push what the kind needs. Return a function that does it (False: the registry does not), and its event."""
    scratch, client, layer = visit.scratch, place.client, visit.scratch.make_layer()
    if kind == BLOB:
        return lambda: scratch.push_blob(client, layer), Announcement("push", scratch.repository, layer.digest)
    scratch.push_blob(client, layer)
    if kind == MOUNT:
        return lambda: scratch.mount(client, layer), Announcement("mount", scratch.other, layer.digest)
    family = next(family for family, names in FAMILIES.items() if kind in names)
    image = scratch.make_image([layer], family)
    scratch.push_blob(client, image.config)
    manifest: Image | Index = image
    if kind != FAMILIES[family][0]:
        scratch.put_manifest(client, image)
        manifest = scratch.make_index([image], family)
    return lambda: scratch.put_manifest(client, manifest), Announcement("push", scratch.repository, manifest.digest)


def _send_probe(visit: Visit, place: Place) -> SentProbe:
    image = next(push.image for push in visit.pushes if push.place == place)
    nonce = visit.make_nonce(place)
    visit.send_probe(place, image, nonce)
    return SentProbe(nonce, time.monotonic())


def _make_result(visit: Visit, place: Place, kind: str, trial: Trial, ends: Sequence[LogEnds]) -> TrialResult:
    entry, echoes = visit.find_event(trial.done), _find_echoes(visit, trial.probe)
    if entry is None or not _has_every_copy(echoes):
        return TrialResult(kind, entry, echoes)
    before = [end.at - trial.probe.answered for end in ends if end.offsets[entry.partition] <= entry.offset]
    try:
        return TrialResult(kind, entry, echoes, max(before, default=0.0), _time_undelayed_probe(visit, place))
    except RegistryError as error:
        return TrialResult(kind, error=str(error))


def _time_undelayed_probe(visit: Visit, place: Place) -> float | None:
    probe = _send_probe(visit, place)
    return time.monotonic() - probe.answered if visit.read_until(lambda: bool(_find_echoes(visit, probe))) else None


def _read_log_ends(visit: Visit) -> LogEnds:
    began = time.monotonic()
    partitions = visit.instruments.inspector.read_state(EVENTS).partitions
    return LogEnds(began, {number: offsets.latest for number, offsets in partitions.items()})


def _find_echoes(visit: Visit, probe: SentProbe) -> list[TailedRecord]:
    """Return the first echo of each partition."""
    found: dict[int, TailedRecord] = {}
    for entry in visit.entries:
        if isinstance(entry.record, RegistryWatermark) and entry.record.nonce == probe.nonce:
            found.setdefault(entry.partition, entry)
    return list(found.values())


def _has_every_copy(echoes: Sequence[TailedRecord]) -> bool:
    copies = {echo.record.partitions for echo in echoes if isinstance(echo.record, RegistryWatermark)}
    return copies == {len(echoes)}
