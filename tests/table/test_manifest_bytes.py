"""Where reports of a manifest differ its bytes decide what it lists and which report was false."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.domain.facts import ManifestRead
from coordinator.domain.lifecycle import BlobState
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item
from tests.table.harness import NO_MARGIN, Table

PODS = ("pod-a", "pod-b")
LAYERS = ("c", "l", "x", "y")
#: A report by a pod in a repository, a delete there, the bytes that were read, or bytes that cannot be had.
Step = tuple[Any, ...]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from(PODS), st.sampled_from("rs"), st.sets(st.sampled_from(LAYERS))),
        st.tuples(st.just("silent"), st.sampled_from(PODS), st.sampled_from("rs")),
        st.tuples(st.just("delete"), st.sampled_from(PODS), st.sampled_from("rs")),
        st.tuples(st.just("read")),
        st.tuples(st.just("unreadable")),
    ),
    max_size=15,
)


def bytes_of(table: Table, listed: list[str] | None) -> ManifestRead:
    content = None if listed is None else table.content(listed)
    return ManifestRead(table.digest("m"), 70, content, by_links=listed is None)


def counts(table: Table, *names: str) -> list[int]:
    rows = [table.blob(name) for name in names]
    return [0 if row is None else row.references for row in rows]


def false_reports(table: Table) -> dict[str, int]:
    return dict(table.rows("SELECT p.name, f.count FROM false_reports f JOIN pods p ON p.id = f.pod_id"))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.sets(st.sampled_from(LAYERS)), st.booleans())
def test_reports_are_joined_until_bytes_are_read(
    database: str, history: list[Step], truth: set[str], together: bool
) -> None:
    """Until a manifest's bytes are read every report counts; from then on only what the bytes list."""
    with Table(database) as table:
        holders: set[tuple[str, str]] = set()
        listed: set[str] = set()
        known = read = False
        facts: list[Any] = []
        for second, (what, *rest) in enumerate(history, 1):
            if what in {"report", "silent"}:
                pod, repository = rest[:2]
                reported = sorted(rest[2]) if what == "report" else None
                facts.append(table.push(repository, "m", reported, second, pod=pod))
                holders.add((pod, repository))
                known = True
                if not read:
                    listed |= set(reported or ())
            elif what == "delete":
                facts.append(table.removed(rest[1], "m", second, pod=rest[0]))
                holders.discard((rest[0], rest[1]))
            else:
                facts.append(bytes_of(table, sorted(truth) if what == "read" else None))
                if what == "read" and known:
                    listed, read = set(truth), True
            if not together:
                table.apply(facts.pop())
        if together and facts:
            # Within one batch what was read counts from its beginning on: bytes do not change.
            table.apply(*facts)
            if any(what == "read" for what, *_ in history) and known:
                listed = set(truth)
        wanted = [len(holders) if name in listed or name == "m" else 0 for name in ("m", *LAYERS)]
        assert counts(table, "m", *LAYERS) == wanted
        assert table.check().is_healthy


def test_a_false_report_that_came_first(table: Table) -> None:
    """Attempt 16: a layer that only a false report lists is unreferenced once the bytes were read, from then on."""
    table.apply(table.push("a", "m", ["x", "c"], pod="pod-b"))
    applied = table.apply(table.push("a", "m", ["c", "l"]))
    assert applied.disputed == {table.digest("m")}
    assert counts(table, "c", "l", "x") == [2, 2, 2]
    before = table.rows("SELECT now()")[0][0]
    table.apply(bytes_of(table, ["c", "l"]))
    assert counts(table, "c", "l", "x") == [2, 2, 0]
    ((state, since),) = table.rows(
        "SELECT state, unreferenced_since FROM blobs WHERE digest = %s", (table.digest("x"),)
    )
    assert state == BlobState.UNREFERENCED
    assert since > before
    assert table.check().is_healthy


def test_reports_after_the_bytes_change_nothing_and_are_counted(fresh: Table) -> None:
    """Attempt 16: once the bytes were read, a pod that reports others is counted, also one that leaves some out."""
    fresh.apply(fresh.push("a", "m", ["c", "l"])._replace(read=True))
    applied = fresh.apply(
        fresh.push("a", "m", [*"cl", "x"], 2, pod="pod-b"),
        fresh.push("b", "m", ["c"], 2, pod="pod-b"),
        fresh.push("c", "m", ["l", "c"], 2, pod="pod-b"),
        fresh.push("d", "m", None, 2, pod="pod-b"),
    )
    assert (applied.false_reports, applied.disputed) == (2, frozenset())
    assert counts(fresh, "m", "c", "l", "x") == [5, 5, 5, 0]
    assert false_reports(fresh) == {"pod-b": 2}


@pytest.mark.parametrize("first", ["pod-a", "pod-b"])
def test_whose_report_was_false(fresh: Table, first: str) -> None:
    """The pod whose report the bytes contradict is counted, whichever of two came first, and the other is not."""
    text = {"pod-a": ["c", "l"], "pod-b": ["x"]}
    second = {"pod-a": "pod-b", "pod-b": "pod-a"}[first]
    fresh.apply(fresh.push("r", "m", text[first], pod=first))
    push = fresh.push("r", "m", text[second], pod=second)
    assert fresh.apply(push).disputed
    assert push.content is not None
    reports = {push.digest: [(fresh.pods[second], push.content)]}
    items = [Item(0, 0, 0, bytes_of(fresh, ["c", "l"]), None)]
    BatchApplier(fresh.connection, NO_MARGIN).apply_stored(items, reports)
    assert false_reports(fresh) == {"pod-b": 1}


def test_a_read_of_what_nobody_holds(table: Table) -> None:
    """Reading the bytes of a manifest that was removed meanwhile, or never held, adds no reference."""
    table.apply(bytes_of(table, ["c"]))
    assert counts(table, "m", "c") == [0, 0]
    table.apply(table.push("a", "m", ["c"]), table.removed("a", "m", 5))
    table.apply(bytes_of(table, ["c", "l"]))
    assert counts(table, "m", "c", "l") == [0, 0, 0]
    assert table.check().is_healthy


def test_links_are_pending_from_the_batch_on(table: Table) -> None:
    """A holding of a manifest that is kept by links waits for the links of its repository, also when pushed again."""

    def pending() -> set[str]:
        found = table.rows(
            "SELECT n.name FROM repository_manifests h JOIN repositories n ON n.id = h.repository_id"
            " JOIN blobs b ON b.id = h.manifest_id WHERE h.links_pending AND b.digest = %s",
            (table.digest("m"),),
        )
        return {name.rpartition("/")[2] for (name,) in found}

    table.apply(table.push("a", "m", None)._replace(by_links=True))
    assert pending() == {"a"}
    table.connection.execute("UPDATE repository_manifests SET links_pending = false")
    table.apply(table.push("b", "m", None, 1))
    assert pending() == {"b"}
    table.apply(table.push("a", "m", ["c"], 2))
    assert pending() == {"a", "b"}
    assert counts(table, "m", "c") == [2, 2]
    table.apply(bytes_of(table, ["c"]))
    assert pending() == set()
    table.apply(table.push("c", "m", ["c"], 3))
    assert pending() == set()
