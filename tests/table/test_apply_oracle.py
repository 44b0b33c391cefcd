"""The batch apply against the oracle: any history, cut into any batches, ends as plain sets say.

Each example lives under names of its own in one database, so that none has to clean up.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coordinator.domain.facts import Fact
from coordinator.domain.names import parse_digest
from schemas.records import RegistryEvent
from tests.oracle import Oracle
from tests.table.harness import BLOBS, MANIFESTS, Events, Table, fact_of

REPOSITORIES = ("pod-a/x", "pod-a/x/deep", "pod-a/y", "pod-b/x", "pod-l/z")

#: A method of Events, and what it is called with.
Step = tuple[str, tuple[Any, ...]]

quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def steps(*, renames: bool = False, both_ways: bool = False) -> st.SearchStrategy[list[Step]]:
    """Histories of pushes, links and deletes; with `both_ways` a manifest's digest may be linked as a blob too."""
    repository = st.sampled_from(REPOSITORIES)
    manifest, blob = st.sampled_from(sorted(MANIFESTS)), st.sampled_from(BLOBS)
    linked = blob | manifest if both_ways else blob

    def step(method: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
        return st.tuples(st.just(method), st.tuples(*parts))

    kinds = [
        step("pushed", repository, manifest),
        step("pushed", repository, manifest),
        step("uploaded", repository, linked),
        step("mounted", repository, linked),
        step("deleted", repository, manifest),
        step("deleted", repository, linked),
        step("deleted", repository, st.none()),
    ]
    if renames:
        # A pod renames only what it owns.
        own = st.sampled_from([name for name in REPOSITORIES if name.startswith("pod-a/")])
        into = own | st.just("pod-a/new")
        kinds.append(step("renamed", own, into))
    return st.lists(st.one_of(kinds), min_size=1, max_size=40)


def _along_its_path(source: str, destination: str) -> bool:
    return destination.startswith(f"{source}/") or source.startswith(f"{destination}/")


cuts = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def history(made: Iterable[Step]) -> tuple[Events, list[RegistryEvent]]:
    events = Events()
    return events, [getattr(events, method)(*arguments) for method, arguments in made]


def batches(events: Sequence[RegistryEvent], sizes: Sequence[int]) -> Iterable[list[RegistryEvent]]:
    """Cut a history; the sizes begin anew when they are used up."""
    first, turn = 0, 0
    while first < len(events):
        size = sizes[turn % len(sizes)]
        yield list(events[first : first + size])
        first, turn = first + size, turn + 1


def facts(events: Iterable[RegistryEvent]) -> list[Fact | None]:
    return [fact_of(event) for event in events]


@pytest.fixture
def world(table: Table) -> Callable[[Events], Table]:
    """The table, with the names of these events."""

    def take(events: Events) -> Table:
        table.space = events.space
        table._offsets = {}
        return table

    return take


def feed(table: Table, events: Iterable[RegistryEvent]) -> None:
    table.apply_slices([table.slice(facts(events))])


@settings(quick, max_examples=50)
@given(steps(both_ways=True) | steps(renames=True), cuts)
def test_any_batches(world: Callable[[Events], Table], made: list[Step], sizes: list[int]) -> None:
    """After each batch, also with renames into free or taken names, every count, holding and link is the oracle's."""
    events, whole = history(made)
    table, oracle = world(events), Oracle()
    for batch in batches(whole, sizes):
        feed(table, batch)
        table.assert_equals(oracle.take(batch))
        assert table.check().is_healthy


@quick
@given(steps(renames=True, both_ways=True), cuts)
def test_doubled(world: Callable[[Events], Table], made: list[Step], sizes: list[int]) -> None:
    """Every event sent twice changes nothing."""
    events, whole = history(made)
    table = world(events)
    for batch in batches([event for event in whole for _ in range(2)], sizes):
        feed(table, batch)
    table.assert_equals(Oracle().take(whole))
    assert table.check().is_healthy


def _renames_once(made: list[Step]) -> bool:
    renames = [parts for method, parts in made if method == "renamed"]
    return len(renames) <= 1 and not any(_along_its_path(*parts) for parts in renames)


# Of several renames through one name, or one along a namespace's own path, a replay may leave things under two names:
# too much, and recorded as a gap.
@quick
@given(steps(renames=True).filter(_renames_once), cuts, cuts)
@example([("pushed", ("pod-a/x", "i0")), ("deleted", ("pod-a/x", None)), ("renamed", ("pod-a/x", "pod-a/x"))], [1], [1])
def test_replayed(world: Callable[[Events], Table], made: list[Step], sizes: list[int], again: list[int]) -> None:
    """A replay from the start ends where the history ended, and never has a smaller count."""
    events, whole = history(made)
    table, oracle = world(events), Oracle().take(whole)
    for batch in batches(whole, sizes):
        feed(table, batch)
    table.assert_equals(oracle)
    least = oracle.counts()
    for batch in batches(whole, again):
        feed(table, batch)
        found = table.blobs(parse_digest(digest) for digest in least)
        for digest, count in least.items():
            row = found[parse_digest(digest)]
            assert row.references >= count.reference_count
            assert row.links >= count.link_count
    table.assert_equals(oracle)
    assert table.check().is_healthy


@quick
@given(steps(both_ways=True), cuts, st.randoms(use_true_random=False))
def test_interleaved(world: Callable[[Events], Table], made: list[Step], sizes: list[int], random: Any) -> None:
    """The order between events of different repositories, over three partitions, makes no difference to the end."""
    events, whole = history(made)
    table = world(events)
    waiting = {name: [event for event in whole if event.repository == name] for name in {e.repository for e in whole}}
    mixed = []
    while waiting:
        name = random.choice(sorted(waiting))
        mixed.append(waiting[name].pop(0))
        if not waiting[name]:
            del waiting[name]
    for batch in batches(mixed, sizes):
        partitions = {len(event.repository) % 3 for event in batch}
        of = {each: [event for event in batch if len(event.repository) % 3 == each] for each in partitions}
        table.apply_slices([table.slice(facts(events), partition) for partition, events in of.items()])
    table.assert_equals(Oracle().take(whole))
    assert table.check().is_healthy
