"""How far a pod has reported, and what echoes show of processes: the rules alone.

That no watermark claims too much, with everything real but Kafka's client, is in tests/pods/test_watermark_oracle.py.
"""

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.watermarks import (
    WAITS_SHOWN,
    DeathReason,
    EchoEffect,
    Endpoint,
    EndpointEcho,
    EndpointView,
    KnownProcess,
    Process,
    ProcessState,
    ReportingPod,
    UnechoedProbes,
    apply_echo,
    compute_pod_watermark,
    compute_watermark,
    is_retirable,
    process_ended_by_refusal,
    state_of,
)

URL = "http://r1:5000"
SILENCE = timedelta(seconds=60)
BOUND = timedelta(hours=1)
#: Registry processes.
S, T = 1, 2


def at(second: float) -> datetime:
    return datetime(2026, 11, 24, 12, tzinfo=UTC) + timedelta(seconds=second)


NOW = at(1000)


def process(name: str = "s", marks: Mapping[int, float] | None = None, **changes: object) -> Process:
    """A process that echoed just now, in every partition."""
    events = {number: at(second) for number, second in ({0: 990, 1: 991} if marks is None else marks).items()}
    return Process(name, at(0), NOW, None, None, None, None, events, {3: at(992)})._replace(**changes)


def endpoint(
    echoed: float | None = 995,
    *,
    listed: bool = True,
    refused: float | None = None,
    resolved: float = 999,
    **more: object,
) -> Endpoint:
    view = EndpointView(URL, "10.0.0.1", NOW, None, None, "s", None if echoed is None else at(echoed), shared=False)
    return Endpoint(view._replace(**more), at(0), listed, at(resolved), None if refused is None else at(refused))


def pod(processes: list[Process] | None = None, endpoints: list[Endpoint] | None = None) -> ReportingPod:
    return ReportingPod(
        [URL], [process()] if processes is None else processes, [endpoint()] if endpoints is None else endpoints
    )


def w(asked: ReportingPod, partitions: tuple[int, ...] = (0, 1)) -> datetime | None:
    return compute_watermark(asked, partitions, NOW, SILENCE).at


def waits(asked: ReportingPod, partitions: tuple[int, ...] = (0, 1)) -> list[str]:
    return compute_pod_watermark(asked, partitions, NOW, SILENCE).waits_for


def test_the_least_of_all() -> None:
    """W of a pod is the least over its processes and all partitions, of dead letters too."""
    assert w(pod()) == at(990)
    assert waits(pod()) == []
    assert w(pod([process(), process("t", {0: 985, 1: 999})])) == at(985)
    assert w(pod([process(dead_letters={3: at(5)})])) == at(5)
    assert w(pod([process(marks={0: 990, 1: 991, 7: 4})])) == at(4)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (ReportingPod([], [process()], []), "lists no registry"),
        (pod(endpoints=[]), f"no address of {URL}"),
        (pod(endpoints=[endpoint(listed=False)]), f"no address of {URL}"),
        (pod(endpoints=[endpoint(None, process=None, error="401")]), f"no notification has returned a probe of {URL}"),
        (pod([]), "no process"),
        (pod([process(retired_at=at(5), retired_why="gone")]), "no process"),
        (
            pod([process(), process("t", {}, dead_letters={})]),
            "no probe has reached process t since 2026-11-24 12:00:00",
        ),
        (pod([process(marks={0: 990})]), "no probe of process s in partition 1 of events was applied yet"),
        (
            pod([process(dead_letters={3: None})]),
            "no probe of process s in partition 3 of dead letters was applied yet",
        ),
        (pod([process(events={0: at(990), 1: at(990), 2: None})]), "was applied yet"),
        (pod()._replace(unread=7), "7 processes are beyond the limit"),
        (
            pod()._replace(unechoed=[UnechoedProbes(URL, "10.0.0.9", at(999), None)]),
            "10.0.0.9 has answered probes that no",
        ),
        (
            pod([process(), process("t", {0: 1001, 1: 990})]),
            "set back: what was recorded while it was ahead, up to 2026-11-24 12:16:41 UTC, is void",
        ),
        (pod(endpoints=[endpoint(1001)]), "clock was set back"),
        (pod(endpoints=[endpoint(resolved=1001)]), "clock was set back"),
        (pod(endpoints=[endpoint(), endpoint(1001, listed=False)]), "clock was set back"),
        (pod([process(), process("t", retired_at=at(1001), retired_why="gone")]), "clock was set back"),
        (pod()._replace(unechoed=[UnechoedProbes(URL, "10.0.0.9", at(1001), at(990))]), "clock was set back"),
        (pod(endpoints=[endpoint()._replace(resolved_at=None)]), f"the name of {URL} was not looked up, so new"),
    ],
)
def test_unknown(asked: ReportingPod, expected: str) -> None:
    """If a process, a partition or a listed address has reported nothing, W is unknown, and the reason is given."""
    assert w(asked) is None
    assert any(expected in sentence for sentence in waits(asked)), waits(asked)


def test_no_partition() -> None:
    """While no partition is known, W is unknown."""
    assert w(pod(), ()) is None
    assert any("no partition" in sentence for sentence in waits(pod(), ()))


def test_new_partition() -> None:
    """A partition that was added makes W unknown until a probe has come back in it (scenario 25)."""
    assert w(pod(), (0, 1, 2)) is None
    assert w(pod([process(marks={0: 990, 1: 991, 2: 995})]), (0, 1, 2)) == at(990)


def test_retired_processes_do_not_count() -> None:
    """A retired process does not delay W."""
    gone = process("old", {0: 1}, dead_since=at(2), dead_why="replaced", retired_at=at(9), retired_why="reconciled")
    assert w(pod([process(), gone])) == at(990)


def test_frozen_processes_are_reported() -> None:
    """A silent or dead process freezes W, and is named with the time since when."""
    quiet = process(marks={0: 90, 1: 90}, echoed_at=at(100))
    assert w(pod([quiet])) == at(90)
    (sentence,) = waits(pod([quiet]))
    assert sentence.startswith("process s has returned no probe since 2026-11-24 12:01:40 UTC: ")
    assert "`baleen pods retire-process`" in sentence
    dead = quiet._replace(dead_since=at(105), dead_why="refused")
    assert w(pod([dead, process("t")])) == at(90)
    (sentence,) = waits(pod([dead, process("t")]))
    assert sentence.startswith("process s has been dead since 2026-11-24 12:01:45 UTC (refused)")


def test_a_partition_that_lags_is_reported() -> None:
    """A partition without an echo for long is named, even if the process echoes in the others."""
    (sentence,) = waits(pod([process(marks={0: 990, 1: 100})]))
    assert sentence.startswith(
        "no probe of process s in partition 1 of events was applied since 2026-11-24 12:01:40 UTC: "
    )


def test_an_endpoint_that_echoes_no_more() -> None:
    """W does not pass the last echo from a listed address, even if its process echoes from another one."""
    asked = pod(endpoints=[endpoint(), endpoint(300, address="10.0.0.2", error="timed out")])
    assert w(asked) == at(300)
    (sentence,) = waits(asked)
    since = "since 2026-11-24 12:05:00 UTC (timed out): "
    assert sentence.startswith(f"no notification has returned a probe of {URL} at 10.0.0.2 {since}")
    assert w(pod(endpoints=[endpoint(), endpoint(300, listed=False)])) == at(990)


def test_an_endpoint_without_a_process() -> None:
    """W passes an address up to its last refused connection, and waits for one that has never echoed."""
    other = endpoint(address="10.0.0.2")
    assert w(pod(endpoints=[other, endpoint(300, refused=999)])) == at(990)
    assert waits(pod(endpoints=[other, endpoint(300, refused=999)])) == []
    assert w(pod(endpoints=[other, endpoint(300, refused=400)])) == at(400)
    assert w(pod(endpoints=[other, endpoint(300, refused=200)])) == at(300)
    assert w(pod(endpoints=[other, endpoint(None, refused=999)])) is None


def test_answers_that_no_event_follows() -> None:
    """W stays at what was known before a probe that was answered and never echoed; after a while that is named."""
    gone = UnechoedProbes(URL, "10.0.0.9", at(941), at(935))
    assert w(pod()._replace(unechoed=[gone])) == at(935)
    assert waits(pod()._replace(unechoed=[gone])) == []
    assert w(pod()._replace(unechoed=[gone._replace(known_until=at(995))])) == at(990)
    (sentence,) = waits(pod()._replace(unechoed=[gone._replace(since=at(939))]))
    assert sentence.startswith(f"{URL} at 10.0.0.9 has answered probes that no notification returned since 2026-11-24")
    assert "check the notifications" in sentence
    repaired = gone._replace(address="10.0.0.1", since=at(939))
    (sentence,) = waits(pod(endpoints=[endpoint(990)])._replace(unechoed=[repaired]))
    assert "has answered probes that no notification returned since 2026-11-24" in sentence
    assert "check the notifications" not in sentence
    assert "wait for the reconcile" in sentence


def test_names_that_are_not_looked_up() -> None:
    """W does not pass the last look-up of a registry's name, which is named once for all its addresses."""
    two = [endpoint(resolved=930), endpoint(resolved=930, address="10.0.0.2")]
    assert w(pod(endpoints=two)) == at(930)
    (sentence,) = waits(pod(endpoints=two))
    assert sentence.startswith(f"the name of {URL} was not looked up since 2026-11-24 12:15:30 UTC")
    assert w(pod(endpoints=[endpoint(), endpoint(listed=False, resolved=1, address="10.0.0.2")])) == at(990)


def test_states() -> None:
    """A process is live, silent, dead or retired; of several the last of these counts."""
    quiet = process(echoed_at=at(900))
    dead = quiet._replace(dead_since=at(1), dead_why="replaced")
    assert [
        state_of(each, NOW, SILENCE)
        for each in (process(), quiet, process(echoed_at=None), dead, dead._replace(retired_at=NOW))
    ] == [ProcessState.LIVE, ProcessState.SILENT, ProcessState.SILENT, ProcessState.DEAD, ProcessState.RETIRED]


def test_waits_are_limited() -> None:
    """The number of reasons that are shown is bounded."""
    sentence = waits(pod([process(f"s{number}", {}, dead_letters={}) for number in range(100)]))
    assert len(sentence) == WAITS_SHOWN + 1
    assert sentence[-1] == f"and {100 - WAITS_SHOWN} more reasons"


def test_a_view() -> None:
    """A view shows W of each process, and only applied echoes."""
    (shown,) = compute_pod_watermark(pod([process(events={0: at(1), 1: None})]), (0, 1), NOW, SILENCE).processes
    assert (shown.at, shown.partitions, shown.dead_letters) == (None, {0: at(1)}, {3: at(992)})


@pytest.mark.parametrize(
    ("dead_since", "began", "retired"),
    [(None, 9999, False), (0, 3599.9, False), (0, 3600, True), (0, 99999, True), (50, 3600, False)],
)
def test_may_retire(dead_since: float | None, began: float, retired: bool) -> None:
    """A reconcile retires only processes that had been dead for the request bound when it began."""
    assert is_retirable(None if dead_since is None else at(dead_since), at(began), BOUND) is retired


# Echoes


def dead(second: float, why: DeathReason = DeathReason.REPLACED, newest: float | None = None) -> KnownProcess:
    return KnownProcess(None if newest is None else at(newest), at(second), why)


ALIVE = {S: KnownProcess(at(10)), T: KnownProcess(at(10))}
RELEASED = dead(15)._replace(retired_at=at(25))


@pytest.mark.parametrize(
    ("place", "sent", "known", "result"),
    [
        # Nothing or the same process.
        (EndpointEcho(), 20, ALIVE, EchoEffect(EndpointEcho(S, at(20)))),
        (EndpointEcho(S, at(10)), 20, ALIVE, EchoEffect(EndpointEcho(S, at(20)))),
        (EndpointEcho(S, at(20)), 10, ALIVE, EchoEffect(EndpointEcho(S, at(20)))),
        (EndpointEcho(S, at(20)), 20, ALIVE, EchoEffect(EndpointEcho(S, at(20)))),
        (EndpointEcho(S, at(10), shared=True), 20, ALIVE, EchoEffect(EndpointEcho(S, at(20), shared=True))),
        # Another, of the same probe.
        (EndpointEcho(T, at(20)), 20, ALIVE, EchoEffect(EndpointEcho(T, at(20), shared=True))),
        # Another, of an older probe.
        (EndpointEcho(T, at(10)), 20, ALIVE, EchoEffect(EndpointEcho(S, at(20)), dead=T)),
        (EndpointEcho(T, at(10), shared=True), 20, ALIVE, EchoEffect(EndpointEcho(S, at(20), shared=True))),
        (
            EndpointEcho(T, at(10)),
            20,
            ALIVE | {T: KnownProcess(at(21))},
            EchoEffect(EndpointEcho(S, at(20), shared=True)),
        ),
        (EndpointEcho(T, at(10)), 20, ALIVE | {T: dead(12)}, EchoEffect(EndpointEcho(S, at(20)))),
        (
            EndpointEcho(T, at(10)),
            20,
            ALIVE | {T: KnownProcess(at(10), None, None, at(15))},
            EchoEffect(EndpointEcho(S, at(20))),
        ),
        (
            EndpointEcho(T, at(10)),
            20,
            ALIVE | {S: dead(30)},
            EchoEffect(EndpointEcho(S, at(20), shared=True), revived=True),
        ),
        (
            EndpointEcho(T, at(10)),
            20,
            ALIVE | {S: dead(30, DeathReason.REFUSED)},
            EchoEffect(EndpointEcho(S, at(20)), dead=T),
        ),
        # Another, of a newer probe: this echo is late.
        (EndpointEcho(T, at(30)), 20, ALIVE, EchoEffect(EndpointEcho(T, at(30)), dead=S)),
        (
            EndpointEcho(T, at(30)),
            20,
            ALIVE | {S: KnownProcess(at(31))},
            EchoEffect(EndpointEcho(T, at(30), shared=True)),
        ),
        (EndpointEcho(T, at(30), shared=True), 20, ALIVE, EchoEffect(EndpointEcho(T, at(30), shared=True))),
        (EndpointEcho(T, at(30)), 20, ALIVE | {S: dead(31)}, EchoEffect(EndpointEcho(T, at(30)))),
        # Back from the dead.
        (
            EndpointEcho(S, at(10)),
            20,
            ALIVE | {S: dead(15, DeathReason.REFUSED)},
            EchoEffect(EndpointEcho(S, at(20)), revived=True),
        ),
        (EndpointEcho(S, at(10)), 20, ALIVE | {S: dead(20)}, EchoEffect(EndpointEcho(S, at(20)))),
        (EndpointEcho(S, at(10)), 20, ALIVE | {S: RELEASED}, EchoEffect(EndpointEcho(S, at(20)), revived=True)),
        (
            EndpointEcho(S, at(10)),
            20,
            ALIVE | {S: KnownProcess(None, retired_at=at(19))},
            EchoEffect(EndpointEcho(S, at(20)), revived=True),
        ),
        (
            EndpointEcho(S, at(10)),
            20,
            ALIVE | {S: KnownProcess(None, retired_at=at(21))},
            EchoEffect(EndpointEcho(S, at(20))),
        ),
        (
            EndpointEcho(T, at(17)),
            20,
            ALIVE | {S: dead(15)},
            EchoEffect(EndpointEcho(S, at(20), shared=True), revived=True),
        ),
        (
            EndpointEcho(T, at(27)),
            20,
            ALIVE | {S: dead(15)},
            EchoEffect(EndpointEcho(T, at(27), shared=True), revived=True),
        ),
    ],
)
def test_apply_echo(place: EndpointEcho, sent: float, known: dict[int, KnownProcess], result: EchoEffect) -> None:
    """An echo has the effect of its row in the table of `apply_echo`."""
    assert apply_echo(place, S, at(sent), known) == result


@pytest.mark.parametrize(
    ("place", "sent", "known", "gone"),
    [
        (EndpointEcho(), 20, {}, None),
        (EndpointEcho(S, at(10)), 20, ALIVE, S),
        (EndpointEcho(S, at(10), shared=True), 20, ALIVE, None),
        (EndpointEcho(S, at(20)), 20, ALIVE | {S: KnownProcess(at(20))}, None),
        (EndpointEcho(S, at(10)), 20, ALIVE | {S: KnownProcess(at(21))}, None),
        # Echoed elsewhere after it echoed here.
        (EndpointEcho(S, at(10)), 20, ALIVE | {S: KnownProcess(at(10))}, S),
        (EndpointEcho(S, at(10)), 20, ALIVE | {S: KnownProcess(at(11))}, None),
        (EndpointEcho(S), 20, ALIVE | {S: KnownProcess(at(11))}, None),
        (EndpointEcho(S), 20, ALIVE | {S: KnownProcess(None)}, S),
        (EndpointEcho(S, at(10)), 20, ALIVE | {S: dead(5)}, None),
        (EndpointEcho(S, at(10)), 20, ALIVE | {S: KnownProcess(at(10), retired_at=at(11))}, None),
    ],
)
def test_refused(place: EndpointEcho, sent: float, known: dict[int, KnownProcess], gone: int | None) -> None:
    """A refused connection proves the death of the process that echoed there last, unless that echoed since or shares
    the address.
    """
    assert process_ended_by_refusal(place, at(sent), known) == gone


class Model:
    """One endpoint and its processes, as table/echoes.py keeps them."""

    def __init__(self) -> None:
        self.place = EndpointEcho()
        self.known: dict[int, KnownProcess] = {}

    def take(self, process: int, sent: float, now: float) -> None:
        known = self.known.setdefault(process, KnownProcess(None))
        newest = at(sent) if known.newest is None else max(known.newest, at(sent))
        self.known[process] = known._replace(newest=newest)
        result = apply_echo(self.place, process, at(sent), self.known)
        self.place = result.place
        if result.revived:
            self.known[process] = KnownProcess(newest)
        if result.dead is not None:
            self.known[result.dead] = self.known[result.dead]._replace(
                dead_since=at(now), dead_why=DeathReason.REPLACED
            )

    def dead(self) -> set[int]:
        return {process for process, known in self.known.items() if known.dead_since is not None}


lives = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(lives, st.randoms(use_true_random=False), st.booleans())
def test_one_after_the_other(probes: list[int], random: object, again: bool) -> None:
    """Of processes that follow one another all but the last are dead, in any order of their echoes."""
    sent = itertools.count(1)
    echoes = [(number, next(sent)) for number, count in enumerate(probes) for _ in range(count)]
    mixed = [*echoes, *echoes] if again else list(echoes)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    model = Model()
    for step, (process, second) in enumerate(mixed):
        model.take(process, second, 1000 + step)
    assert model.dead() == set(range(len(probes) - 1))
    assert model.place == EndpointEcho(len(probes) - 1, at(len(echoes)))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(0, 5))
def test_taking_turns(turns: list[int], lag: int) -> None:
    """Of processes that take turns at one address none stays dead, and the address is shared."""
    model = Model()
    for second, process in enumerate([*turns, 0, 1, 2, 0, 1, 2, 0, 1, 2]):
        model.take(process, 10 * second, 10 * second + lag)
    assert model.dead() == set()
    assert model.place.shared
