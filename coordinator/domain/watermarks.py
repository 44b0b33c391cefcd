"""Compute a pod's watermark: the time up to which its registry processes have reported.

A *process* is one registry process. W(process, partition) is its watermark, a time by the database's clock: every event
of that process and partition whose request finished before it is applied. It comes from a probe: a request with a
nonce, whose event the process delivers after all earlier ones (its *echo*). W of a pod is the least over all processes
that are not retired and over all partitions; where one of these is not known, neither is W of the pod. Nor does W pass
a probe that was answered without an echo: an unknown process is, or was, at that address.

Route: workers/interpret.py finds echoes -> table/processes.py -> `echoed` decides -> rows. pods/watermarks.py reads
them -> `compute_pod_watermark` -> what the API shows and garbage collection waits for.

Invariant: nothing here makes W larger than what was applied; where something is not known the answer is "not known",
and a process that may be alive counts.
Not here: SQL, clocks, sending probes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple


class DeathReason(StrEnum):
    """What proved that a process has ended. Silence alone never proves it."""

    #: Another process answers at its address.
    REPLACED = "replaced"
    #: Its address refuses connections.
    REFUSED = "refused"


class ProcessState(StrEnum):
    LIVE = "live"
    #: No echo for longer than the setting probe_silence. It still counts, so W stands still.
    SILENT = "silent"
    #: Proved to have ended. What it had not delivered is lost, so W stands still until a reconcile.
    DEAD = "dead"
    #: No longer counts.
    RETIRED = "retired"


class ProcessReport(NamedTuple):
    """A process as it is shown. `at` is its W, None where any partition has none."""

    instance_id: str
    at: datetime | None
    echoed_at: datetime | None
    state: ProcessState
    dead_since: datetime | None
    dead_why: str | None
    retired_at: datetime | None
    retired_why: str | None
    #: W by partition of registry.events.
    partitions: dict[int, datetime]
    #: W by partition of registry.dead-letters: the process's dead letters up to here are in the table.
    dead_letters: dict[int, datetime]


class EndpointView(NamedTuple):
    """An address of the pod's registry. `process` is the instance id of the process that last echoed from there."""

    url: str
    address: str
    answered_at: datetime | None
    failing_since: datetime | None
    error: str | None
    process: str | None
    echoed_at: datetime | None
    shared: bool


class PodWatermark(NamedTuple):
    """W of a pod, and the sentences that say why it is not known or stands still."""

    at: datetime | None
    waits_for: list[str]
    processes: list[ProcessReport]
    endpoints: list[EndpointView]
    #: When one of its processes last sent an echo after it may have been paused.
    paused_until: datetime | None = None


class Process(NamedTuple):
    """A process, as read from the table. `first_seen` is when anything from it was first applied."""

    instance_id: str
    first_seen: datetime
    echoed_at: datetime | None
    dead_since: datetime | None
    dead_why: str | None
    retired_at: datetime | None
    retired_why: str | None
    #: W by partition of registry.events, and of registry.dead-letters; None where none was applied yet.
    events: Mapping[int, datetime | None]
    dead_letters: Mapping[int, datetime | None]


class Endpoint(NamedTuple):
    """An endpoint, as read from the table."""

    view: EndpointView
    first_seen: datetime
    #: The pod lists its URL, and the last look-up of the name gave this address.
    listed: bool
    #: When that look-up was: processes at new addresses of the name are not known since then. None: not known.
    resolved_at: datetime | None
    #: When the last probe was sent whose connection was refused: no process was there.
    refused_at: datetime | None = None

    @property
    def known_until(self) -> datetime | None:
        """Up to when it is known which process was there; None if no probe of it was ever echoed."""
        echoed_at = self.view.echoed_at
        return echoed_at if echoed_at is None or self.refused_at is None else max(echoed_at, self.refused_at)


class UnechoedProbes(NamedTuple):
    """Probes of one endpoint, listed or not, that were answered and not echoed.

    In a healthy pod this is the probe under way, sent after the last echoed one: it delays nothing.
    """

    url: str
    address: str
    #: When the first was sent.
    since: datetime
    #: Up to when it was known which process was there, at the time each was sent: the least; None if never known.
    known_until: datetime | None


class ReportingPod(NamedTuple):
    """What W of a pod is computed from. `unread`: processes that count and are beyond the limit of a read."""

    registries: Sequence[str]
    processes: Sequence[Process]
    endpoints: Sequence[Endpoint]
    unechoed: Sequence[UnechoedProbes] = ()
    unread: int = 0
    #: When one of its processes, retired or not, last sent an echo after it may have been paused.
    paused_until: datetime | None = None


class WaitFor(StrEnum):
    """Why W of a pod is not known or stands still: a sentence about a subject, with what to do."""

    NO_REGISTRY = "the pod lists no registry: set the URL of every process with `baleen pods set-registries`"
    NO_ADDRESS = "no address of {subject} is known yet: check that the scheduler runs and can look the name up"
    NO_PROCESS = (
        "no process of the pod's registry counts: none has sent an event yet, or all have ended; check that the"
        " registry runs and sends notifications"
    )
    NO_PARTITION = "no partition is known yet: check that a worker runs"
    UNREAD = (
        "{subject} processes are beyond the limit and were not read: retire those that have ended with"
        " `baleen pods retire-process`"
    )
    NOT_LOOKED_UP = (
        "the name of {subject} was not looked up{since}, so new addresses behind it are not known: check that the"
        " scheduler runs and can look the name up"
    )
    ENDPOINT_UNECHOED = (
        "no notification has returned a probe of {subject}{since}: check that the registry answers there and sends"
        " notifications"
    )
    ANSWER_UNECHOED = (
        "{subject} has answered probes that no notification returned{since}: check the notifications of the process"
        " there; once it has ended, a reconcile that begins BALEEN_SAFETY_REQUEST_BOUND after its last such answer"
        " resolves this"
    )
    ANSWER_ONCE_UNECHOED = (
        "{subject} has answered probes that no notification returned{since}, and has returned others since then: if"
        " its notifications are repaired, wait for the reconcile that the scheduler starts"
        " BALEEN_SAFETY_REQUEST_BOUND after the last such answer"
    )
    PROCESS_UNREACHED = (
        "no probe has reached process {subject}{since}: add its address with `baleen pods set-registries`, or retire"
        " it with `baleen pods retire-process`"
    )
    PROCESS_SILENT = (
        "process {subject} has returned no probe{since}: check that it runs and sends notifications; if it has ended,"
        " retire it with `baleen pods retire-process`"
    )
    PROCESS_DEAD = (
        "process {subject} has been dead{since}: wait for the reconcile that the scheduler starts"
        " BALEEN_SAFETY_REQUEST_BOUND later and that retires it"
    )
    PARTITION_UNECHOED = "no probe of process {subject} was applied yet: check that workers run and keep up"
    PARTITION_BEHIND = "no probe of process {subject} was applied{since}: check that workers run and keep up"
    CLOCK_SET_BACK = (
        "the database's clock was set back: what was recorded while it was ahead, up to {subject}, is void; wait for"
        " the next probes"
    )


class Wait(NamedTuple):
    what: WaitFor
    subject: str = ""
    since: datetime | None = None
    detail: str = ""

    def sentence(self) -> str:
        since = "" if self.since is None else f" since {_format_time(self.since)}"
        return self.what.format(subject=self.subject, since=f"{since} ({self.detail})" if self.detail else since)


def _format_time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


class Watermark(NamedTuple):
    """W of a pod, None where it is not known; and everything it waits for."""

    at: datetime | None
    waits_for: list[Wait]


#: How many waits a view shows; the rest is counted.
WAITS_SHOWN = 20


def is_silent(process: Process, now: datetime, silence: timedelta) -> bool:
    """Whether the process has sent no echo for longer than `silence`. That does not prove that it has ended."""
    return now - (process.echoed_at or process.first_seen) > silence


def state_of(process: Process, now: datetime, silence: timedelta) -> ProcessState:
    if process.retired_at is not None:
        return ProcessState.RETIRED
    if process.dead_since is not None:
        return ProcessState.DEAD
    return ProcessState.SILENT if is_silent(process, now, silence) else ProcessState.LIVE


def is_retirable(dead_since: datetime | None, reconcile_began: datetime, request_bound: timedelta) -> bool:
    """Whether a reconcile saw everything a dead process wrote: it began after the last request's writes had landed."""
    return dead_since is not None and reconcile_began - dead_since >= request_bound


def process_watermark(process: Process, partitions: Collection[int]) -> datetime | None:
    """Return W of a process over all partitions; None where one has none. `partitions` are those of registry.events.

    Of registry.dead-letters, only partitions known to be the pod's count: all of its dead letters are in one.
    """
    marks = [mark for _, mark in partition_marks(process, partitions)]
    known = [mark for mark in marks if mark is not None]
    return min(known) if known and len(known) == len(marks) else None


def partition_marks(process: Process, partitions: Collection[int]) -> list[tuple[str, datetime | None]]:
    """Return W of a process in each partition that may have its events, with the partition's name (rule 2)."""
    numbers = sorted({*partitions, *process.events})
    marks = [(f"partition {number} of events", process.events.get(number)) for number in numbers]
    return marks + [
        (f"partition {number} of dead letters", mark) for number, mark in sorted(process.dead_letters.items())
    ]


def counting_processes(pod: ReportingPod) -> list[Process]:
    """Return the processes that count: all that are not retired (rule 2), so dead ones too (rule 6)."""
    return [process for process in pod.processes if process.retired_at is None]


def address_bounds(pod: ReportingPod) -> list[datetime | None]:
    """Return the times up to which it is known which process was at each address (rule 2)."""
    asked = _listed_endpoints(pod)
    return [
        *(endpoint.known_until for endpoint in asked),
        *(endpoint.resolved_at for endpoint in asked),
        *(probes.known_until for probes in pod.unechoed),
    ]


def _listed_endpoints(pod: ReportingPod) -> list[Endpoint]:
    return [endpoint for endpoint in pod.endpoints if endpoint.listed]


def compute_watermark(pod: ReportingPod, partitions: Collection[int], now: datetime, silence: timedelta) -> Watermark:
    """Compute W of a pod: the least over all processes that are not retired, and over all partitions of
    registry.events.

    W does not pass the time up to which it is known which process was at an endpoint: a new process may have come
    since, even if the previous one is retired or echoes from elsewhere. That time is the last echo from the endpoint.
    For a process that answered a probe without an echo, it is what was known when that probe was sent.
    """
    processes, asked = counting_processes(pod), _listed_endpoints(pod)
    waits = [*_pod_waits(pod, processes, partitions)]
    bounds = [*(process_watermark(process, partitions) for process in processes), *address_bounds(pod)]
    known = [bound for bound in bounds if bound is not None]
    if (ahead := find_time_ahead(pod, now)) is not None:
        waits.append(Wait(WaitFor.CLOCK_SET_BACK, _format_time(ahead)))
    at = min(known) if known and len(known) == len(bounds) and not waits else None
    waits += _name_waits(asked, now, silence)
    echoed = {(endpoint.view.url, endpoint.view.address): endpoint.view.echoed_at for endpoint in pod.endpoints}
    for probes in pod.unechoed:
        waits += _answer_waits(probes, echoed.get((probes.url, probes.address)), now, silence)
    for endpoint in asked:
        waits += _endpoint_waits(endpoint, now, silence)
    for process in processes:
        waits += _process_waits(process, partitions, now, silence)
    return Watermark(at, waits)


def find_time_ahead(pod: ReportingPod, now: datetime) -> datetime | None:
    """Return the latest time recorded for the pod if it is later than now: the clock was ahead when it was recorded.

    Once the clock has passed that time, nothing distinguishes it from a correct one. So it must be voided, not waited
    for.
    """
    times = [
        *(
            time
            for each in pod.processes
            for time in (each.first_seen, each.echoed_at, each.dead_since, each.retired_at)
        ),
        *(mark for each in pod.processes for mark in (*each.events.values(), *each.dead_letters.values())),
        *(time for each in pod.endpoints for time in (each.view.echoed_at, each.resolved_at, each.refused_at)),
        *(time for each in pod.unechoed for time in (each.since, each.known_until)),
    ]
    newest = max((time for time in times if time is not None), default=now)
    return newest if newest > now else None


def _pod_waits(pod: ReportingPod, processes: Collection[Process], partitions: Collection[int]) -> Iterable[Wait]:
    """Give the waits for which W is not known at all."""
    if not pod.registries:
        yield Wait(WaitFor.NO_REGISTRY)
    addressed = {endpoint.view.url for endpoint in pod.endpoints if endpoint.listed}
    for url in pod.registries:
        if url not in addressed:
            yield Wait(WaitFor.NO_ADDRESS, url)
    if not processes:
        yield Wait(WaitFor.NO_PROCESS)
    if not partitions:
        yield Wait(WaitFor.NO_PARTITION)
    if pod.unread:
        yield Wait(WaitFor.UNREAD, str(pod.unread))


def _name_waits(asked: Iterable[Endpoint], now: datetime, silence: timedelta) -> Iterable[Wait]:
    # All addresses of a name are looked up together.
    for url, resolved_at in {endpoint.view.url: endpoint.resolved_at for endpoint in asked}.items():
        if resolved_at is None or now - resolved_at > silence:
            yield Wait(WaitFor.NOT_LOOKED_UP, url, resolved_at)


def _answer_waits(
    probes: UnechoedProbes, echoed_at: datetime | None, now: datetime, silence: timedelta
) -> Iterable[Wait]:
    if probes.known_until is None or now - probes.since > silence:
        echoes_again = echoed_at is not None and echoed_at > probes.since
        what = WaitFor.ANSWER_ONCE_UNECHOED if echoes_again else WaitFor.ANSWER_UNECHOED
        yield Wait(what, f"{probes.url} at {probes.address}", probes.since)


def _endpoint_waits(endpoint: Endpoint, now: datetime, silence: timedelta) -> Iterable[Wait]:
    view, until = endpoint.view, endpoint.known_until
    if until is None or now - until > silence:
        name = f"{view.url} at {view.address}"
        yield Wait(WaitFor.ENDPOINT_UNECHOED, name, until or endpoint.first_seen, view.error or "")


def _process_waits(process: Process, partitions: Collection[int], now: datetime, silence: timedelta) -> Iterable[Wait]:
    name = process.instance_id
    if process.dead_since is not None:
        yield Wait(WaitFor.PROCESS_DEAD, name, process.dead_since, process.dead_why or "")
    elif not process.events and not process.dead_letters:
        yield Wait(WaitFor.PROCESS_UNREACHED, name, process.first_seen)
    elif is_silent(process, now, silence):
        yield Wait(WaitFor.PROCESS_SILENT, name, process.echoed_at)
    else:
        for place, mark in partition_marks(process, partitions):
            if mark is None:
                yield Wait(WaitFor.PARTITION_UNECHOED, f"{name} in {place}")
            elif now - mark > silence:
                yield Wait(WaitFor.PARTITION_BEHIND, f"{name} in {place}", mark)


def compute_pod_watermark(
    pod: ReportingPod, partitions: Collection[int], now: datetime, silence: timedelta
) -> PodWatermark:
    """Compute W of a pod, with its waits as sentences."""
    at, waits = compute_watermark(pod, partitions, now, silence)
    sentences = [wait.sentence() for wait in waits]
    if len(sentences) > WAITS_SHOWN:
        sentences[WAITS_SHOWN:] = [f"and {len(sentences) - WAITS_SHOWN} more reasons"]
    return PodWatermark(
        at,
        sentences,
        [_process_report(process, partitions, now, silence) for process in pod.processes],
        [endpoint.view for endpoint in pod.endpoints],
        pod.paused_until,
    )


def _process_report(process: Process, partitions: Collection[int], now: datetime, silence: timedelta) -> ProcessReport:
    return ProcessReport(
        process.instance_id,
        process_watermark(process, partitions),
        process.echoed_at,
        state_of(process, now, silence),
        process.dead_since,
        process.dead_why,
        process.retired_at,
        process.retired_why,
        _without_unknown(process.events),
        _without_unknown(process.dead_letters),
    )


def _without_unknown(marks: Mapping[int, datetime | None]) -> dict[int, datetime]:
    return {number: mark for number, mark in sorted(marks.items()) if mark is not None}


class KnownProcess(NamedTuple):
    """What an echo can change of a process."""

    #: When the newest probe that it echoed was sent, at any endpoint.
    newest: datetime | None
    dead_since: datetime | None = None
    dead_why: str | None = None
    retired_at: datetime | None = None


#: Half of the shortest safe bound (settings.FLOORS). With a shorter one, as in a trial, each slightly late probe would
#: count as a pause, and nothing would ever be purged.
LEAST_PAUSE = timedelta(seconds=30)


def was_paused(newest: datetime | None, now: datetime, request_bound: timedelta) -> bool:
    """Whether a process that echoes now may have been paused for a significant part of the request bound.

    A request ends within the bound if its process runs. When a virtual machine is suspended, or a process is stopped,
    its requests pause too and continue afterwards. `newest` is when the newest probe that it echoed was sent. The
    silence may have another reason, such as a stopped worker; then a purge waits without need.
    """
    return newest is not None and now - newest > max(request_bound / 2, LEAST_PAUSE)


class EndpointEcho(NamedTuple):
    """Which process last echoed from an endpoint, and when that probe was sent."""

    process: int | None = None
    echoed_at: datetime | None = None
    #: More than one process answers here: nothing that happens here proves a death.
    shared: bool = False


class EchoEffect(NamedTuple):
    """What an echo makes of its endpoint, and of processes."""

    place: EndpointEcho
    dead: int | None = None
    #: The process that echoed is alive, although it was recorded as dead or retired.
    revived: bool = False


def apply_echo(place: EndpointEcho, process: int, sent_at: datetime, known: Mapping[int, KnownProcess]) -> EchoEffect:
    """Decide what an echo of `process` changes, at an endpoint, for a probe that was sent at `sent_at`.

    | the endpoint last echoed        | and                                 | then                                   |
    |---------------------------------|-------------------------------------|----------------------------------------|
    | nothing, or the same process     |                                     | it moves on                            |
    | another, of the same probe      |                                     | shared: one probe reached two          |
    | another, of an older probe      | this process was replaced by another | shared: they take turns                |
    | another, of an older probe      | that one has echoed since, elsewhere| it moves on, shared: that one lives    |
    | another, of an older probe      | neither                             | it moves on, the other is dead         |
    | another, of a newer probe       | this process has echoed since that   | it stays, shared                       |
    | another, of a newer probe       | not                                 | it stays, this one is dead             |

    At a shared endpoint no process is found dead. A dead or retired process is revived by an echo of a probe that was
    sent after its death; if another process echoed from its endpoint, they take turns, so the endpoint is shared.
    The result does not depend on the order of the echoes, except for which process is dead in between. A repeated echo
    changes nothing.
    """
    known_process = known[process]
    revived = _is_alive(known_process, sent_at)
    other = place.process
    if other is None or place.echoed_at is None or other == process:
        moved = place.echoed_at is None or sent_at > place.echoed_at
        return EchoEffect(EndpointEcho(process, sent_at, place.shared) if moved else place, None, revived)
    newer = sent_at > place.echoed_at
    if newer and known_process.dead_why == DeathReason.REPLACED:
        # Each has replaced the other, so neither replacement proved a death.
        revived = True
    after = EndpointEcho(process, sent_at, place.shared) if newer else place
    loser, last = (other, sent_at) if newer else (process, place.echoed_at)
    newest = known[loser].newest
    if revived or sent_at == place.echoed_at or (newest is not None and newest > last):
        return EchoEffect(after._replace(shared=True), None, revived)
    dies = not place.shared and known[loser].dead_since is None and known[loser].retired_at is None
    return EchoEffect(after, loser if dies else None, revived)


def process_ended_by_refusal(place: EndpointEcho, sent_at: datetime, known: Mapping[int, KnownProcess]) -> int | None:
    """Return the process that is dead, if any, when an endpoint refused a probe that was sent at `sent_at`.

    A process that has echoed since then is alive. So is one whose last echo came from elsewhere: otherwise it would be
    dead and alive in turns while one of its addresses refuses and another answers.
    """
    if place.process is None or place.shared:
        return None
    last = known[place.process]
    echoed_since = last.newest is not None and (
        last.newest >= sent_at or place.echoed_at is None or last.newest > place.echoed_at
    )
    return None if echoed_since or last.dead_since or last.retired_at else place.process


def _is_alive(process: KnownProcess, sent_at: datetime) -> bool:
    """Whether an echo of a probe proves that a process recorded as dead or retired is alive."""
    since = process.dead_since or process.retired_at
    return since is not None and sent_at > since
