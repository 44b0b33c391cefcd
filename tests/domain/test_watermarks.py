"""How far a pod has reported, and what echoes say of processes: the rules alone.

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
    EndpointView,
    Known,
    Place,
    ReportingPod,
    Source,
    SourceState,
    Unheard,
    heard,
    may_retire,
    pod_watermark,
    refused,
    state_of,
    watermark,
)

URL = "http://r1:5000"
SILENCE = timedelta(seconds=60)
BOUND = timedelta(hours=1)
#: Sources.
S, T = 1, 2


def at(second: float) -> datetime:
    return datetime(2026, 11, 24, 12, tzinfo=UTC) + timedelta(seconds=second)


NOW = at(1000)


def source(name: str = "s", marks: Mapping[int, float] | None = None, **changes: object) -> Source:
    """A source that was heard just now, and everywhere."""
    events = {number: at(second) for number, second in ({0: 990, 1: 991} if marks is None else marks).items()}
    return Source(name, at(0), NOW, None, None, None, None, events, {3: at(992)})._replace(**changes)


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


def pod(sources: list[Source] | None = None, endpoints: list[Endpoint] | None = None) -> ReportingPod:
    return ReportingPod(
        [URL], [source()] if sources is None else sources, [endpoint()] if endpoints is None else endpoints
    )


def w(asked: ReportingPod, partitions: tuple[int, ...] = (0, 1)) -> datetime | None:
    return watermark(asked, partitions, NOW, SILENCE).at


def waits(asked: ReportingPod, partitions: tuple[int, ...] = (0, 1)) -> list[str]:
    return pod_watermark(asked, partitions, NOW, SILENCE).waits_for


def test_the_least_of_all() -> None:
    """W of a pod is the least over its sources and all partitions, of dead letters too."""
    assert w(pod()) == at(990)
    assert waits(pod()) == []
    assert w(pod([source(), source("t", {0: 985, 1: 999})])) == at(985)
    assert w(pod([source(letters={3: at(5)})])) == at(5)
    assert w(pod([source(marks={0: 990, 1: 991, 7: 4})])) == at(4)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (ReportingPod([], [source()], []), "lists no registry"),
        (pod(endpoints=[]), f"no address of {URL}"),
        (pod(endpoints=[endpoint(listed=False)]), f"no address of {URL}"),
        (pod(endpoints=[endpoint(None, source=None, error="401")]), f"no notification has returned a probe of {URL}"),
        (pod([]), "no process"),
        (pod([source(retired_at=at(5), retired_why="gone")]), "no process"),
        (pod([source(), source("t", {}, letters={})]), "no probe has reached process t since 2026-11-24 12:00:00"),
        (pod([source(marks={0: 990})]), "no probe of process s in partition 1 of events was applied yet"),
        (pod([source(letters={3: None})]), "no probe of process s in partition 3 of dead letters was applied yet"),
        (pod([source(events={0: at(990), 1: at(990), 2: None})]), "was applied yet"),
        (pod()._replace(unread=7), "7 processes are beyond the limit"),
        (pod()._replace(unheard=[Unheard(URL, "10.0.0.9", at(999), None)]), "10.0.0.9 has answered probes that no"),
        (
            pod([source(), source("t", {0: 1001, 1: 990})]),
            "set back: what was recorded while it was ahead, up to 2026-11-24 12:16:41 UTC, is void",
        ),
        (pod(endpoints=[endpoint(1001)]), "clock was set back"),
        (pod(endpoints=[endpoint(resolved=1001)]), "clock was set back"),
        (pod(endpoints=[endpoint(), endpoint(1001, listed=False)]), "clock was set back"),
        (pod([source(), source("t", retired_at=at(1001), retired_why="gone")]), "clock was set back"),
        (pod()._replace(unheard=[Unheard(URL, "10.0.0.9", at(1001), at(990))]), "clock was set back"),
        (pod(endpoints=[endpoint()._replace(resolved_at=None)]), f"the name of {URL} was not looked up, so new"),
    ],
)
def test_unknown(asked: ReportingPod, told: str) -> None:
    """Where a source, a partition or a listed address has said nothing, W is not known, and it is told why."""
    assert w(asked) is None
    assert any(told in sentence for sentence in waits(asked)), waits(asked)


def test_no_partition() -> None:
    """While no partition is known, nothing is."""
    assert w(pod(), ()) is None
    assert any("no partition" in sentence for sentence in waits(pod(), ()))


def test_new_partition() -> None:
    """A partition that was added makes W unknown until a probe has come back in it (scenario 25)."""
    assert w(pod(), (0, 1, 2)) is None
    assert w(pod([source(marks={0: 990, 1: 991, 2: 995})]), (0, 1, 2)) == at(990)


def test_retired_sources_do_not_count() -> None:
    """A source that is retired holds nothing up."""
    gone = source("old", {0: 1}, dead_since=at(2), dead_why="replaced", retired_at=at(9), retired_why="reconciled")
    assert w(pod([source(), gone])) == at(990)


def test_frozen_sources_are_told() -> None:
    """A silent or dead source freezes W, and is told with since when."""
    quiet = source(marks={0: 90, 1: 90}, heard_at=at(100))
    assert w(pod([quiet])) == at(90)
    (told,) = waits(pod([quiet]))
    assert told.startswith("process s has returned no probe since 2026-11-24 12:01:40 UTC: ")
    assert "`baleen pods retire-source`" in told
    dead = quiet._replace(dead_since=at(105), dead_why="refused")
    assert w(pod([dead, source("t")])) == at(90)
    (told,) = waits(pod([dead, source("t")]))
    assert told.startswith("process s has been dead since 2026-11-24 12:01:45 UTC (refused)")


def test_a_partition_that_lags_is_told() -> None:
    """A partition that is not applied for long is told, though the source is heard in the others."""
    (told,) = waits(pod([source(marks={0: 990, 1: 100})]))
    assert told.startswith("no probe of process s in partition 1 of events was applied since 2026-11-24 12:01:40 UTC: ")


def test_an_endpoint_that_echoes_no_more() -> None:
    """W does not pass the last echo from a listed address, though its process is heard from another one."""
    asked = pod(endpoints=[endpoint(), endpoint(300, address="10.0.0.2", error="timed out")])
    assert w(asked) == at(300)
    (told,) = waits(asked)
    since = "since 2026-11-24 12:05:00 UTC (timed out): "
    assert told.startswith(f"no notification has returned a probe of {URL} at 10.0.0.2 {since}")
    assert w(pod(endpoints=[endpoint(), endpoint(300, listed=False)])) == at(990)


def test_an_endpoint_where_nobody_is() -> None:
    """W passes an address up to when it refused a connection; one that never brought a probe back is waited for."""
    other = endpoint(address="10.0.0.2")
    assert w(pod(endpoints=[other, endpoint(300, refused=999)])) == at(990)
    assert waits(pod(endpoints=[other, endpoint(300, refused=999)])) == []
    assert w(pod(endpoints=[other, endpoint(300, refused=400)])) == at(400)
    assert w(pod(endpoints=[other, endpoint(300, refused=200)])) == at(300)
    assert w(pod(endpoints=[other, endpoint(None, refused=999)])) is None


def test_answers_that_nobody_hears_of() -> None:
    """W does not pass what was known when a probe was sent that was answered and never came back; it is told late."""
    gone = Unheard(URL, "10.0.0.9", at(941), at(935))
    assert w(pod()._replace(unheard=[gone])) == at(935)
    assert waits(pod()._replace(unheard=[gone])) == []
    assert w(pod()._replace(unheard=[gone._replace(known_until=at(995))])) == at(990)
    (told,) = waits(pod()._replace(unheard=[gone._replace(since=at(939))]))
    assert told.startswith(f"{URL} at 10.0.0.9 has answered probes that no notification returned since 2026-11-24")
    assert "check the notifications" in told
    mended = gone._replace(address="10.0.0.1", since=at(939))
    (told,) = waits(pod(endpoints=[endpoint(990)])._replace(unheard=[mended]))
    assert "has answered probes that no notification returned since 2026-11-24" in told
    assert "check the notifications" not in told
    assert "wait for the reconcile" in told


def test_names_that_are_not_looked_up() -> None:
    """W does not pass the last look at where a registry's name leads, and tells of it once for all its addresses."""
    two = [endpoint(resolved=930), endpoint(resolved=930, address="10.0.0.2")]
    assert w(pod(endpoints=two)) == at(930)
    (told,) = waits(pod(endpoints=two))
    assert told.startswith(f"the name of {URL} was not looked up since 2026-11-24 12:15:30 UTC")
    assert w(pod(endpoints=[endpoint(), endpoint(listed=False, resolved=1, address="10.0.0.2")])) == at(990)


def test_states() -> None:
    """A source is live, silent, dead or retired, the later before the earlier."""
    quiet = source(heard_at=at(900))
    dead = quiet._replace(dead_since=at(1), dead_why="replaced")
    assert [
        state_of(each, NOW, SILENCE)
        for each in (source(), quiet, source(heard_at=None), dead, dead._replace(retired_at=NOW))
    ] == [SourceState.LIVE, SourceState.SILENT, SourceState.SILENT, SourceState.DEAD, SourceState.RETIRED]


def test_waits_are_limited() -> None:
    """However much is waited for, a bounded number of sentences tells it."""
    told = waits(pod([source(f"s{number}", {}, letters={}) for number in range(100)]))
    assert len(told) == WAITS_SHOWN + 1
    assert told[-1] == f"and {100 - WAITS_SHOWN} more reasons"


def test_a_view() -> None:
    """A view shows W of each source, and only what is applied."""
    (shown,) = pod_watermark(pod([source(events={0: at(1), 1: None})]), (0, 1), NOW, SILENCE).sources
    assert (shown.at, shown.partitions, shown.dead_letters) == (None, {0: at(1)}, {3: at(992)})


@pytest.mark.parametrize(
    ("dead_since", "began", "retired"),
    [(None, 9999, False), (0, 3599.9, False), (0, 3600, True), (0, 99999, True), (50, 3600, False)],
)
def test_may_retire(dead_since: float | None, began: float, retired: bool) -> None:
    """A reconcile retires only what had been dead for a request's longest time when it began."""
    assert may_retire(None if dead_since is None else at(dead_since), at(began), BOUND) is retired


# What an echo says


def dead(second: float, why: DeathReason = DeathReason.REPLACED, newest: float | None = None) -> Known:
    return Known(None if newest is None else at(newest), at(second), why)


ALIVE = {S: Known(at(10)), T: Known(at(10))}
LET_GO = dead(15)._replace(retired_at=at(25))


@pytest.mark.parametrize(
    ("place", "sent", "known", "verdict"),
    [
        # Nothing or the same source.
        (Place(), 20, ALIVE, EchoEffect(Place(S, at(20)))),
        (Place(S, at(10)), 20, ALIVE, EchoEffect(Place(S, at(20)))),
        (Place(S, at(20)), 10, ALIVE, EchoEffect(Place(S, at(20)))),
        (Place(S, at(20)), 20, ALIVE, EchoEffect(Place(S, at(20)))),
        (Place(S, at(10), shared=True), 20, ALIVE, EchoEffect(Place(S, at(20), shared=True))),
        # Another, of the same probe.
        (Place(T, at(20)), 20, ALIVE, EchoEffect(Place(T, at(20), shared=True))),
        # Another, of an older probe.
        (Place(T, at(10)), 20, ALIVE, EchoEffect(Place(S, at(20)), dead=T)),
        (Place(T, at(10), shared=True), 20, ALIVE, EchoEffect(Place(S, at(20), shared=True))),
        (Place(T, at(10)), 20, ALIVE | {T: Known(at(21))}, EchoEffect(Place(S, at(20), shared=True))),
        (Place(T, at(10)), 20, ALIVE | {T: dead(12)}, EchoEffect(Place(S, at(20)))),
        (Place(T, at(10)), 20, ALIVE | {T: Known(at(10), None, None, at(15))}, EchoEffect(Place(S, at(20)))),
        (Place(T, at(10)), 20, ALIVE | {S: dead(30)}, EchoEffect(Place(S, at(20), shared=True), revived=True)),
        (Place(T, at(10)), 20, ALIVE | {S: dead(30, DeathReason.REFUSED)}, EchoEffect(Place(S, at(20)), dead=T)),
        # Another, of a newer probe: this echo is late.
        (Place(T, at(30)), 20, ALIVE, EchoEffect(Place(T, at(30)), dead=S)),
        (Place(T, at(30)), 20, ALIVE | {S: Known(at(31))}, EchoEffect(Place(T, at(30), shared=True))),
        (Place(T, at(30), shared=True), 20, ALIVE, EchoEffect(Place(T, at(30), shared=True))),
        (Place(T, at(30)), 20, ALIVE | {S: dead(31)}, EchoEffect(Place(T, at(30)))),
        # Back from the dead.
        (Place(S, at(10)), 20, ALIVE | {S: dead(15, DeathReason.REFUSED)}, EchoEffect(Place(S, at(20)), revived=True)),
        (Place(S, at(10)), 20, ALIVE | {S: dead(20)}, EchoEffect(Place(S, at(20)))),
        (
            Place(S, at(10)),
            20,
            ALIVE | {S: LET_GO},
            EchoEffect(Place(S, at(20)), revived=True),
        ),
        (Place(S, at(10)), 20, ALIVE | {S: Known(None, retired_at=at(19))}, EchoEffect(Place(S, at(20)), revived=True)),
        (Place(S, at(10)), 20, ALIVE | {S: Known(None, retired_at=at(21))}, EchoEffect(Place(S, at(20)))),
        (Place(T, at(17)), 20, ALIVE | {S: dead(15)}, EchoEffect(Place(S, at(20), shared=True), revived=True)),
        (Place(T, at(27)), 20, ALIVE | {S: dead(15)}, EchoEffect(Place(T, at(27), shared=True), revived=True)),
    ],
)
def test_heard(place: Place, sent: float, known: dict[int, Known], verdict: EchoEffect) -> None:
    """Each row of the table of `heard`."""
    assert heard(place, S, at(sent), known) == verdict


@pytest.mark.parametrize(
    ("place", "sent", "known", "gone"),
    [
        (Place(), 20, {}, None),
        (Place(S, at(10)), 20, ALIVE, S),
        (Place(S, at(10), shared=True), 20, ALIVE, None),
        (Place(S, at(20)), 20, ALIVE | {S: Known(at(20))}, None),
        (Place(S, at(10)), 20, ALIVE | {S: Known(at(21))}, None),
        # Heard elsewhere after it was heard here.
        (Place(S, at(10)), 20, ALIVE | {S: Known(at(10))}, S),
        (Place(S, at(10)), 20, ALIVE | {S: Known(at(11))}, None),
        (Place(S), 20, ALIVE | {S: Known(at(11))}, None),
        (Place(S), 20, ALIVE | {S: Known(None)}, S),
        (Place(S, at(10)), 20, ALIVE | {S: dead(5)}, None),
        (Place(S, at(10)), 20, ALIVE | {S: Known(at(10), retired_at=at(11))}, None),
    ],
)
def test_refused(place: Place, sent: float, known: dict[int, Known], gone: int | None) -> None:
    """A refused connection proves the death of who echoed there last, but if it was heard since, be it elsewhere, or is
    not alone.
    """
    assert refused(place, at(sent), known) == gone


class Model:
    """One endpoint and its sources, as table/echoes.py keeps them. Nobody's clock stands still."""

    def __init__(self) -> None:
        self.place = Place()
        self.known: dict[int, Known] = {}

    def take(self, source: int, sent: float, now: float) -> None:
        known = self.known.setdefault(source, Known(None))
        newest = at(sent) if known.newest is None else max(known.newest, at(sent))
        self.known[source] = known._replace(newest=newest)
        verdict = heard(self.place, source, at(sent), self.known)
        self.place = verdict.place
        if verdict.revived:
            self.known[source] = Known(newest)
        if verdict.dead is not None:
            self.known[verdict.dead] = self.known[verdict.dead]._replace(
                dead_since=at(now), dead_why=DeathReason.REPLACED
            )

    def dead(self) -> set[int]:
        return {source for source, known in self.known.items() if known.dead_since is not None}


lives = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(lives, st.randoms(use_true_random=False), st.booleans())
def test_one_after_the_other(probes: list[int], random: object, again: bool) -> None:
    """Where one process follows the other, all but the last are dead, in whatever order their echoes are applied."""
    sent = itertools.count(1)
    echoes = [(number, next(sent)) for number, count in enumerate(probes) for _ in range(count)]
    mixed = [*echoes, *echoes] if again else list(echoes)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    model = Model()
    for step, (source, second) in enumerate(mixed):
        model.take(source, second, 1000 + step)
    assert model.dead() == set(range(len(probes) - 1))
    assert model.place == Place(len(probes) - 1, at(len(echoes)))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(0, 5))
def test_taking_turns(turns: list[int], lag: int) -> None:
    """Of processes that take turns at one address none stays dead: whoever is heard again lives, and it is shared."""
    model = Model()
    for second, source in enumerate([*turns, 0, 1, 2, 0, 1, 2, 0, 1, 2]):
        model.take(source, 10 * second, 10 * second + lag)
    assert model.dead() == set()
    assert model.place.shared
