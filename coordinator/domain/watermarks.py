"""How far a pod has reported: what its watermark is, and what a process's echo says about the others.

A *source* is one registry process. W(source, partition) is a time by the database's clock such that every event of
that source whose request finished before it, and that belongs to the partition, is applied. It comes from a probe: a
request with a nonce, whose event the process delivers after all earlier ones (its *echo*). W of a pod is the least over
the sources that count, and over all partitions; where one of these is not known, neither is W of the pod. Nor does it
pass a probe that was answered and that no event has brought back: somebody is there, or was, of whom nothing is known.

Route: workers/interpret.py finds echoes -> table/processes.py -> `heard` decides -> rows. pods/watermarks.py reads
them -> `pod_watermark` -> what the API shows and garbage collection waits for.

Invariant: nothing here makes W larger than what was applied; where something is not known the answer is "not known",
and a source that may be alive counts.
Not here: SQL, clocks, who sends probes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple


class DeathReason(StrEnum):
    """What proved that a process runs no more. Never that it is merely silent."""

    #: Another process answers where it did.
    REPLACED = "replaced"
    #: Its address refuses connections.
    REFUSED = "refused"


class SourceState(StrEnum):
    LIVE = "live"
    #: No echo for longer than the setting probe_silence. It freezes W like any other.
    SILENT = "silent"
    #: Proved to run no more; what it had not delivered is lost, so it freezes W until a reconcile.
    DEAD = "dead"
    #: Counts no more.
    RETIRED = "retired"


class SourceView(NamedTuple):
    """A source as it is shown. `at` is its W, None where any partition has none."""

    instance_id: str
    at: datetime | None
    heard_at: datetime | None
    state: SourceState
    dead_since: datetime | None
    dead_why: str | None
    retired_at: datetime | None
    retired_why: str | None
    #: W by partition of registry.events.
    partitions: dict[int, datetime]
    #: The same of registry.dead-letters: what it sent and could not be understood is in the table up to here.
    dead_letters: dict[int, datetime]


class EndpointView(NamedTuple):
    """An address of the pod's registry. `source` is the instance id of the process that last echoed from there."""

    url: str
    address: str
    answered_at: datetime | None
    failing_since: datetime | None
    error: str | None
    source: str | None
    echoed_at: datetime | None
    shared: bool


class PodWatermark(NamedTuple):
    """W of a pod, and in sentences what keeps it from being known or from moving on."""

    at: datetime | None
    waits_for: list[str]
    sources: list[SourceView]
    endpoints: list[EndpointView]
    #: When a process of it was heard again, the last time that one may have been paused.
    paused_until: datetime | None = None


class Source(NamedTuple):
    """A source as it is known. `first_seen` is when anything of it was first applied."""

    instance_id: str
    first_seen: datetime
    heard_at: datetime | None
    dead_since: datetime | None
    dead_why: str | None
    retired_at: datetime | None
    retired_why: str | None
    #: W by partition of registry.events, and of registry.dead-letters; None where none was applied yet.
    events: Mapping[int, datetime | None]
    letters: Mapping[int, datetime | None]


class Endpoint(NamedTuple):
    """An endpoint as it is known."""

    view: EndpointView
    first_seen: datetime
    #: The pod lists its URL, and the name led here the last time.
    listed: bool
    #: When that was: who has come to another address of the name since then is not known. None: not known.
    resolved_at: datetime | None
    #: When the last probe was sent whose connection was refused: nobody was there.
    refused_at: datetime | None = None

    @property
    def known_until(self) -> datetime | None:
        """Up to when it is known who was there; None if it never brought a probe back."""
        echoed_at = self.view.echoed_at
        return echoed_at if echoed_at is None or self.refused_at is None else max(echoed_at, self.refused_at)


class Unheard(NamedTuple):
    """Probes of one endpoint, listed or not, that were answered and that no event has brought back.

    In a healthy pod it is the one under way, which was sent after the last that came back: it holds nothing up.
    """

    url: str
    address: str
    #: When the first was sent.
    since: datetime
    #: The least time up to which it was known who was there, of when they were sent; None if it was not for any.
    known_until: datetime | None


class Pod(NamedTuple):
    """What W of a pod is made of. `unread`: sources that count, and were too many to be read."""

    registries: Sequence[str]
    sources: Sequence[Source]
    endpoints: Sequence[Endpoint]
    unheard: Sequence[Unheard] = ()
    unread: int = 0
    #: When one of its processes, retired or not, was heard again after it may have been paused: the last time.
    paused_until: datetime | None = None


class WaitFor(StrEnum):
    """What keeps W of a pod from being known, or from moving on: a sentence about a subject."""

    NO_REGISTRY = "the pod lists no registry that could be asked: list the address of every process"
    NO_ADDRESS = "no address of {subject} is known yet"
    NO_SOURCE = "no process of the pod's registry counts: none has told anything yet, or all that did have ended"
    NO_PARTITION = "no partition is known yet: has a worker run?"
    UNREAD = "there are {subject} processes more than are looked at: retire those that run no more"
    NOT_LOOKED_UP = "the name of {subject} was not looked up{since}: who has come to it is not known"
    ENDPOINT_UNHEARD = "{subject} has brought no probe back in a notification{since}"
    ANSWER_UNHEARD = (
        "{subject} has answered probes that no notification brought back{since}: a process there does not tell"
        " Baleen, check its notifications; once it runs no more, a reconcile that begins late enough settles it"
    )
    ANSWER_ONCE_UNHEARD = (
        "{subject} has answered probes that no notification brought back{since}, and brings some back since then: if"
        " its notifications are mended, a reconcile that begins late enough after its last such answer settles it,"
        " and follows by itself"
    )
    SOURCE_UNHEARD = "process {subject} was reached by no probe{since}: list its address, or retire it"
    SOURCE_SILENT = "process {subject} brought no probe back{since}: retire it if it runs no more"
    SOURCE_DEAD = "process {subject} runs no more{since}: a reconcile that begins late enough after that retires it"
    PARTITION_UNHEARD = "no probe of process {subject} was applied yet"
    PARTITION_BEHIND = "no probe of process {subject} was applied{since}"
    CLOCK_SET_BACK = (
        "the database's clock was set back: what was noted while it was ahead, up to {subject}, counts no more"
    )


class Wait(NamedTuple):
    what: WaitFor
    subject: str = ""
    since: datetime | None = None
    detail: str = ""

    def sentence(self) -> str:
        since = "" if self.since is None else f" since {_shown(self.since)}"
        return self.what.format(subject=self.subject, since=f"{since} ({self.detail})" if self.detail else since)


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


class Watermark(NamedTuple):
    """W of a pod, None where it is not known; and all that it waits for."""

    at: datetime | None
    waits_for: list[Wait]


#: What a view tells of that for which W waits; the rest is counted.
WAITS_SHOWN = 20


def silent(source: Source, now: datetime, silence: timedelta) -> bool:
    """Whether it has given no echo for so long. That proves nothing."""
    return now - (source.heard_at or source.first_seen) > silence


def state_of(source: Source, now: datetime, silence: timedelta) -> SourceState:
    if source.retired_at is not None:
        return SourceState.RETIRED
    if source.dead_since is not None:
        return SourceState.DEAD
    return SourceState.SILENT if silent(source, now, silence) else SourceState.LIVE


def may_retire(dead_since: datetime | None, reconcile_began: datetime, request_bound: timedelta) -> bool:
    """Whether a reconcile saw all that a dead process left: when it began, its last request's writes had landed."""
    return dead_since is not None and reconcile_began - dead_since >= request_bound


def least(source: Source, partitions: Collection[int]) -> datetime | None:
    """W of a source over all partitions; None where one has none. `partitions` are those of registry.events.

    Of registry.dead-letters those count that are known to be the pod's: all of its dead letters are in one.
    """
    marks = [mark for _, mark in _marks(source, partitions)]
    known = [mark for mark in marks if mark is not None]
    return min(known) if known and len(known) == len(marks) else None


def _marks(source: Source, partitions: Collection[int]) -> list[tuple[str, datetime | None]]:
    """W of a source in each partition that it may have spoken in, with the partition's name."""
    numbers = sorted({*partitions, *source.events})
    marks = [(f"partition {number} of events", source.events.get(number)) for number in numbers]
    return marks + [(f"partition {number} of dead letters", mark) for number, mark in sorted(source.letters.items())]


def watermark(pod: Pod, partitions: Collection[int], now: datetime, silence: timedelta) -> Watermark:
    """W of a pod: the least over all sources that are not retired, and over all partitions of registry.events.

    Nor does it pass the time up to which it is known who was at an endpoint: who has come there since then is not
    known, though the process that was there before may be retired, or heard elsewhere. That is the last echo from
    there, but for whoever answered a probe and was not heard: for him it is what it was when that probe was sent.
    """
    counted = [source for source in pod.sources if source.retired_at is None]
    asked = [endpoint for endpoint in pod.endpoints if endpoint.listed]
    waits = [*_pod_waits(pod, counted, partitions)]
    bounds = [
        *(least(source, partitions) for source in counted),
        *(endpoint.known_until for endpoint in asked),
        *(endpoint.resolved_at for endpoint in asked),
        *(probes.known_until for probes in pod.unheard),
    ]
    known = [bound for bound in bounds if bound is not None]
    if (ahead := lies_ahead(pod, now)) is not None:
        waits.append(Wait(WaitFor.CLOCK_SET_BACK, _shown(ahead)))
    at = min(known) if known and len(known) == len(bounds) and not waits else None
    waits += _name_waits(asked, now, silence)
    echoed = {(endpoint.view.url, endpoint.view.address): endpoint.view.echoed_at for endpoint in pod.endpoints}
    for probes in pod.unheard:
        waits += _answer_waits(probes, echoed.get((probes.url, probes.address)), now, silence)
    for endpoint in asked:
        waits += _endpoint_waits(endpoint, now, silence)
    for source in counted:
        waits += _source_waits(source, partitions, now, silence)
    return Watermark(at, waits)


def lies_ahead(pod: Pod, now: datetime) -> datetime | None:
    """Return the latest time that is known of the pod if it is later than now: it was noted by a clock that was ahead.

    Once the clock has passed it nothing tells it from a true one: what was noted so has to be voided, not waited for.
    """
    times = [
        *(time for each in pod.sources for time in (each.first_seen, each.heard_at, each.dead_since, each.retired_at)),
        *(mark for each in pod.sources for mark in (*each.events.values(), *each.letters.values())),
        *(time for each in pod.endpoints for time in (each.view.echoed_at, each.resolved_at, each.refused_at)),
        *(time for each in pod.unheard for time in (each.since, each.known_until)),
    ]
    newest = max((time for time in times if time is not None), default=now)
    return newest if newest > now else None


def _pod_waits(pod: Pod, counted: Collection[Source], partitions: Collection[int]) -> Iterable[Wait]:
    """What keeps W from being known at all."""
    if not pod.registries:
        yield Wait(WaitFor.NO_REGISTRY)
    addressed = {endpoint.view.url for endpoint in pod.endpoints if endpoint.listed}
    for url in pod.registries:
        if url not in addressed:
            yield Wait(WaitFor.NO_ADDRESS, url)
    if not counted:
        yield Wait(WaitFor.NO_SOURCE)
    if not partitions:
        yield Wait(WaitFor.NO_PARTITION)
    if pod.unread:
        yield Wait(WaitFor.UNREAD, str(pod.unread))


def _name_waits(asked: Iterable[Endpoint], now: datetime, silence: timedelta) -> Iterable[Wait]:
    # All addresses of a name are looked up at once.
    for url, resolved_at in {endpoint.view.url: endpoint.resolved_at for endpoint in asked}.items():
        if resolved_at is None or now - resolved_at > silence:
            yield Wait(WaitFor.NOT_LOOKED_UP, url, resolved_at)


def _answer_waits(probes: Unheard, echoed_at: datetime | None, now: datetime, silence: timedelta) -> Iterable[Wait]:
    if probes.known_until is None or now - probes.since > silence:
        tells = echoed_at is not None and echoed_at > probes.since
        what = WaitFor.ANSWER_ONCE_UNHEARD if tells else WaitFor.ANSWER_UNHEARD
        yield Wait(what, f"{probes.url} at {probes.address}", probes.since)


def _endpoint_waits(endpoint: Endpoint, now: datetime, silence: timedelta) -> Iterable[Wait]:
    view, until = endpoint.view, endpoint.known_until
    if until is None or now - until > silence:
        name = f"{view.url} at {view.address}"
        yield Wait(WaitFor.ENDPOINT_UNHEARD, name, until or endpoint.first_seen, view.error or "")


def _source_waits(source: Source, partitions: Collection[int], now: datetime, silence: timedelta) -> Iterable[Wait]:
    name = source.instance_id
    if source.dead_since is not None:
        yield Wait(WaitFor.SOURCE_DEAD, name, source.dead_since, source.dead_why or "")
    elif not source.events and not source.letters:
        yield Wait(WaitFor.SOURCE_UNHEARD, name, source.first_seen)
    elif silent(source, now, silence):
        yield Wait(WaitFor.SOURCE_SILENT, name, source.heard_at)
    else:
        for place, mark in _marks(source, partitions):
            if mark is None:
                yield Wait(WaitFor.PARTITION_UNHEARD, f"{name} in {place}")
            elif now - mark > silence:
                yield Wait(WaitFor.PARTITION_BEHIND, f"{name} in {place}", mark)


def pod_watermark(pod: Pod, partitions: Collection[int], now: datetime, silence: timedelta) -> PodWatermark:
    """W of a pod as it is shown."""
    at, waits = watermark(pod, partitions, now, silence)
    sentences = [wait.sentence() for wait in waits]
    if len(sentences) > WAITS_SHOWN:
        sentences[WAITS_SHOWN:] = [f"there are {len(sentences) - WAITS_SHOWN} more such things"]
    return PodWatermark(
        at,
        sentences,
        [_source_view(source, partitions, now, silence) for source in pod.sources],
        [endpoint.view for endpoint in pod.endpoints],
        pod.paused_until,
    )


def _source_view(source: Source, partitions: Collection[int], now: datetime, silence: timedelta) -> SourceView:
    return SourceView(
        source.instance_id,
        least(source, partitions),
        source.heard_at,
        state_of(source, now, silence),
        source.dead_since,
        source.dead_why,
        source.retired_at,
        source.retired_why,
        _known(source.events),
        _known(source.letters),
    )


def _known(marks: Mapping[int, datetime | None]) -> dict[int, datetime]:
    return {number: mark for number, mark in sorted(marks.items()) if mark is not None}


class Known(NamedTuple):
    """A source as far as an echo can change it."""

    #: When the newest probe was sent that it echoed, at whatever endpoint.
    newest: datetime | None
    dead_since: datetime | None = None
    dead_why: str | None = None
    retired_at: datetime | None = None


#: Half of the shortest bound that is safe (settings.FLOORS). With a shorter one, for a trial, each probe that is a
#: little late would count as a pause, and nothing would ever be purged.
LEAST_PAUSE = timedelta(seconds=30)


def was_paused(newest: datetime | None, now: datetime, request_bound: timedelta) -> bool:
    """Whether a process that is heard now may have been stopped for a part of a request's time that counts.

    A request ends within the bound if its process runs. A virtual machine that is suspended, or a process that is
    stopped, takes it along: it goes on as long after as it would have taken. `newest` is when the newest probe was sent
    that it has brought back. That it was silent for so long may have other reasons, such as a worker that was away;
    then a purge waits for nothing.
    """
    return newest is not None and now - newest > max(request_bound / 2, LEAST_PAUSE)


class Place(NamedTuple):
    """Which source last echoed from an endpoint, and when that probe was sent."""

    source: int | None = None
    echoed_at: datetime | None = None
    #: More than one process answers here: nothing that happens here proves a death.
    shared: bool = False


class Verdict(NamedTuple):
    """What an echo makes of its endpoint, and of sources."""

    place: Place
    dead: int | None = None
    #: The source that echoed is alive, against what was believed.
    revived: bool = False


def heard(place: Place, source: int, sent_at: datetime, known: Mapping[int, Known]) -> Verdict:
    """Decide what an echo says: of `source`, at an endpoint, of a probe that was sent at `sent_at`.

    | the endpoint last echoed        | and                                 | then                                   |
    |---------------------------------|-------------------------------------|----------------------------------------|
    | nothing, or the same source     |                                     | it moves on                            |
    | another, of the same probe      |                                     | shared: one probe reached two          |
    | another, of an older probe      | this source was replaced by another | shared: they take turns                |
    | another, of an older probe      | that one was heard since, elsewhere | it moves on, shared: that one lives    |
    | another, of an older probe      | neither                             | it moves on, the other is dead         |
    | another, of a newer probe       | this source was heard since that    | it stays, shared                       |
    | another, of a newer probe       | not                                 | it stays, this one is dead             |

    At a shared endpoint nobody is dead. A source that is believed dead or is retired is revived by an echo of a probe
    that was sent after it died; if another echoed from its endpoint, they take turns, so that it is shared.
    The same echoes come to the same end in any order but for who was believed dead in between; an echo that is seen
    again changes nothing.
    """
    known_source = known[source]
    revived = _lives(known_source, sent_at)
    other = place.source
    if other is None or place.echoed_at is None or other == source:
        moved = place.echoed_at is None or sent_at > place.echoed_at
        return Verdict(Place(source, sent_at, place.shared) if moved else place, None, revived)
    newer = sent_at > place.echoed_at
    if newer and known_source.dead_why == DeathReason.REPLACED:
        # What replaced it has been replaced by it: neither was ever a proof.
        revived = True
    after = Place(source, sent_at, place.shared) if newer else place
    loser, last = (other, sent_at) if newer else (source, place.echoed_at)
    newest = known[loser].newest
    if revived or sent_at == place.echoed_at or (newest is not None and newest > last):
        return Verdict(after._replace(shared=True), None, revived)
    dies = not place.shared and known[loser].dead_since is None and known[loser].retired_at is None
    return Verdict(after, loser if dies else None, revived)


def refused(place: Place, sent_at: datetime, known: Mapping[int, Known]) -> int | None:
    """Decide who is dead, if anybody, when an endpoint refused the connection of a probe that was sent at `sent_at`.

    Not who was heard since that, nor who was heard elsewhere since he was heard here: where he was heard last proves
    it. He would else be dead and alive in turns, for as long as one of his addresses refuses and another answers.
    """
    if place.source is None or place.shared:
        return None
    last = known[place.source]
    heard_since = last.newest is not None and (
        last.newest >= sent_at or place.echoed_at is None or last.newest > place.echoed_at
    )
    return None if heard_since or last.dead_since or last.retired_at else place.source


def _lives(source: Known, sent_at: datetime) -> bool:
    """Whether an echo of a probe contradicts what is believed of its source."""
    since = source.dead_since or source.retired_at
    return since is not None and sent_at > since
