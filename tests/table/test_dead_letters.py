"""Dead letters of one pod have a limit, and a reconcile resolves them, or the gap that replaces them."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

import pytest

from coordinator.db.engine import temporary_engine
from coordinator.domain.dead_letters import REPOSITORIES_LIMIT
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.progress import GapReason
from coordinator.errors import ConflictError
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job
from coordinator.pods import clock
from coordinator.pods import table as registry
from coordinator.reconcile import table as reconcile
from coordinator.table import dead_letters
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import DeadLetterFound, DeadLetterLimits
from tests.support.tables import add_gap, add_job, add_prefixes, set_kind
from tests.table.harness import NO_MARGIN, Table

BOUND = timedelta()
LIMITS = DeadLetterLimits(number=5, bytes=10_000)
OVER = GapReason.DEAD_LETTERS_OVER_LIMIT.value


@pytest.fixture
def linked(fresh: Table) -> Table:
    """Pods whose links are in shared storage."""
    set_kind(fresh.connection, "link")
    return fresh


def a_dead_letter(*about: str, pod: str = "pod-a", payload: str = "{}") -> DeadLetterFound:
    """A dead letter about these repositories; about any, with none."""
    repositories = [RepositoryName(name) for name in about] or None
    return DeadLetterFound(pod, "not-owned", "A test.", 1000, payload, len(payload), "", repositories)


def store(table: Table, *found: DeadLetterFound, limits: DeadLetterLimits = LIMITS) -> int:
    """Apply a batch of dead letters; return how many were not kept."""
    piece = table.slice([None] * len(found))
    items = [item._replace(dead_letter=each) for item, each in zip(piece.items, found, strict=True)]
    applied = BatchApplier(table.connection, NO_MARGIN, limits=limits).apply([piece._replace(items=items)])
    table.set_applied(piece)
    assert applied.dead_letters == len(found)
    return applied.dead_letters_not_kept


def begun(table: Table, pod: str = "pod-a") -> Job:
    add_job(table.connection, table.pods[pod])
    job = jobs.take_job(table.connection, ["reconcile"])
    assert job is not None
    return job


def ended(
    table: Table, job: Job, absent: Collection[RepositoryName] = (), limits: DeadLetterLimits = LIMITS
) -> dict[str, Any]:
    found = reconcile.write_result(table.connection, job, BOUND, absent, limits)
    jobs.finish_job(table.connection, job, {})
    return found


def opened(table: Table, pod: str = "pod-a") -> int:
    return len(table.rows("SELECT FROM dead_letters WHERE resolved_at IS NULL AND pod = %s", (pod,)))


def gaps(table: Table) -> list[tuple[str, str, list[str] | None, int | None]]:
    """Pod, reason, repositories and letters of each that is open."""
    rows: Sequence[Any] = table.rows(
        "SELECT p.name, g.reason, g.repositories, g.dead_letters FROM gaps g JOIN pods p ON p.id = g.pod_id"
        " WHERE g.resolved_at IS NULL ORDER BY p.name, g.reason"
    )
    return [tuple(row) for row in rows]


def test_a_reconcile_resolves_what_came_before_it(linked: Table) -> None:
    """A dead letter about the pod's repositories is resolved by the first reconcile that begins after it."""
    job = begun(linked)
    store(linked, a_dead_letter("pod-a/app"))
    assert ended(linked, job)["dead_letters_resolved"] == 0
    assert opened(linked) == 1
    ended(linked, begun(linked, "pod-b"))
    assert opened(linked) == 1
    assert ended(linked, begun(linked))["dead_letters_resolved"] == 1
    assert linked.rows("SELECT resolution FROM dead_letters") == [("reconciled",)]


def test_each_pod_that_it_concerns_is_reconciled(linked: Table) -> None:
    """A dead letter is resolved by a reconcile of each pod that it concerns; one about any repository, of all pods."""
    store(linked, a_dead_letter("pod-a/x", "pod-b/y"), a_dead_letter())
    ended(linked, begun(linked, "pod-a"))
    assert opened(linked) == 2
    ended(linked, begun(linked, "pod-b"))
    assert opened(linked) == 1
    ended(linked, begun(linked, "pod-l"))
    assert opened(linked) == 0


def test_what_no_pod_owns_is_searched_for(linked: Table) -> None:
    """A dead letter about a repository of no pod stays until storage has nothing of it, or a pod owns it."""
    store(linked, a_dead_letter("elsewhere/x"), a_dead_letter("other/y"))
    job = begun(linked)
    assert sorted(dead_letters.read_unlisted_repositories(linked.connection, job)) == ["elsewhere/x", "other/y"]
    ended(linked, job)
    assert opened(linked) == 2
    ended(linked, begun(linked), [RepositoryName("elsewhere/x")])
    assert opened(linked) == 1
    add_prefixes(linked.connection, linked.pods["pod-b"], "other")
    ended(linked, begun(linked))
    assert opened(linked) == 1
    ended(linked, begun(linked, "pod-b"))
    assert opened(linked) == 0


def test_of_a_pod_whose_links_are_elsewhere(fresh: Table) -> None:
    """No reconcile resolves a dead letter of a pod whose links cannot be listed."""
    set_kind(fresh.connection, "link", "pod-a", "pod-l")
    store(fresh, a_dead_letter("pod-b/x", pod="pod-b"), a_dead_letter(pod="pod-b"), a_dead_letter(pod="pod-a"))
    for pod in ("pod-a", "pod-l"):
        ended(fresh, begun(fresh, pod))
    assert (opened(fresh, "pod-a"), opened(fresh, "pod-b")) == (0, 2)


def test_a_pod_has_a_limit_of_dead_letters(linked: Table) -> None:
    """Attempt 20: dead letters beyond the limit, however many, are one gap of each pod concerned."""
    assert store(linked, *[a_dead_letter(f"pod-a/{n}") for n in range(4)]) == 0
    for n in range(20):
        assert store(linked, a_dead_letter("pod-a/app"), a_dead_letter(f"pod-b/{n}")) == (2 if n else 1)
    assert opened(linked) == LIMITS.number
    assert gaps(linked) == [
        ("pod-a", OVER, ["pod-a/app"], 19),
        ("pod-b", OVER, sorted(f"pod-b/{n}" for n in range(20)), 20),
    ]
    # Another pod has its own.
    assert store(linked, a_dead_letter("pod-b/x", pod="pod-b")) == 0


def test_a_pod_has_a_limit_of_bytes(linked: Table) -> None:
    """A dead letter whose payload exceeds the limit of bytes is not kept, and a small one after it is."""
    large = a_dead_letter("pod-a/x", payload="x" * 6000)
    assert store(linked, large, large, a_dead_letter("pod-a/x")) == 1
    assert opened(linked) == 2


@pytest.mark.parametrize(
    ("about", "sender", "pods"),
    [
        ((), "pod-a", ["pod-a", "pod-b", "pod-l"]),
        (("elsewhere/x",), "pod-a", ["pod-a"]),
        (("elsewhere/x", "pod-b/y"), "pod-a", ["pod-a", "pod-b"]),
        (("elsewhere/x",), "", ["pod-a", "pod-b", "pod-l"]),
    ],
)
def test_what_is_not_kept_leaves_a_gap(linked: Table, about: tuple[str, ...], sender: str, pods: list[str]) -> None:
    """A dead letter that is not kept is a gap of each pod that it concerns: the owners, and the sender or else all."""
    store(linked, a_dead_letter(*about, pod=sender), limits=DeadLetterLimits(number=0))
    assert [gap[0] for gap in gaps(linked)] == pods


def test_a_gap_names_so_many_repositories(linked: Table) -> None:
    """A gap with more repositories than the limit is about any repository of the pod."""
    for n in range(REPOSITORIES_LIMIT + 1):
        store(linked, a_dead_letter(f"pod-a/{n}"), limits=DeadLetterLimits(number=0))
    assert gaps(linked) == [("pod-a", OVER, None, REPOSITORIES_LIMIT + 1)]


def test_it_ends_with_one_reconcile_after_the_last(linked: Table) -> None:
    """Any number of dead letters about a pod's repositories are resolved by the first reconcile that begins after the
    last one.
    """
    for n in range(30):
        store(linked, a_dead_letter(f"pod-a/{n}"))
    job = begun(linked)
    store(linked, a_dead_letter("pod-a/late"))
    found = ended(linked, job)
    assert (found["dead_letters_resolved"], found["gaps_resolved"]) == (LIMITS.number, 0)
    assert gaps(linked) != []
    assert asked_for(linked) == []  # one has just been done
    linked.connection.execute("UPDATE jobs SET finished_at = finished_at - interval '10 seconds'")
    (number,) = asked_for(linked)
    again = jobs.take_job(linked.connection, ["reconcile"])
    assert again.id == number
    ended(linked, again)
    assert (opened(linked), gaps(linked)) == (0, [])
    linked.connection.execute("UPDATE jobs SET finished_at = finished_at - interval '10 seconds'")
    assert asked_for(linked) == []


def asked_for(table: Table) -> list[int]:
    """The reconciles of pod-a that are needed; the others are deleted."""
    asked = jobs.request_needed_reconciles(table.connection, timedelta(days=1), BOUND)
    others = table.rows(
        "DELETE FROM jobs WHERE state = 'waiting' AND pod_id <> %s RETURNING id", (table.pods["pod-a"],)
    )
    return sorted(set(asked) - {row[0] for row in others})


def test_the_table_does_not_grow(linked: Table) -> None:
    """Attempt 20: the newest resolved dead letters are kept, up to the limit, and those that an operator resolved."""
    for _ in range(10):
        store(linked, *[a_dead_letter("pod-a/x") for _ in range(LIMITS.number)])
        ended(linked, begun(linked))
    kept = [row[0] for row in linked.rows("SELECT id FROM dead_letters ORDER BY id")]
    assert len(kept) == LIMITS.number
    linked.connection.execute("UPDATE dead_letters SET resolution = 'discarded', resolved_why = 'a test'")
    for _ in range(3):
        store(linked, *[a_dead_letter("pod-a/x") for _ in range(LIMITS.number)])
        ended(linked, begun(linked))
    assert len(linked.rows("SELECT FROM dead_letters WHERE id = ANY(%s)", (kept,))) == LIMITS.number
    assert len(linked.rows("SELECT FROM dead_letters")) == 2 * LIMITS.number


def test_a_gap_that_does_not_fit_stays(linked: Table) -> None:
    """Neither a reconcile, an operator nor a removal of the pod resolves a gap about other pods' repositories."""
    add_gap(linked.connection, linked.pods["pod-a"], reason=OVER, repositories=["pod-a/x", "pod-ab/y"])
    assert ended(linked, begun(linked))["gaps_resolved"] == 0
    set_kind(linked.connection, "relay")

    with temporary_engine(linked.url, name="test") as engine:
        registry.resolve_gaps(engine, PodName("pod-a"), "a test")
        with pytest.raises(ConflictError, match="not below its prefixes"):
            registry.remove_pod(engine, PodName("pod-a"), lambda *_: False)
    assert [gap[0] for gap in gaps(linked)] == ["pod-a"]
    add_prefixes(linked.connection, linked.pods["pod-a"], "pod-ab")
    set_kind(linked.connection, "link")
    assert ended(linked, begun(linked))["gaps_resolved"] == 1


def test_a_clock_that_was_set_back(linked: Table) -> None:
    """A dead letter that was resolved by a clock that was ahead is open again, and was stored no later than now."""
    store(linked, a_dead_letter("pod-a/x"))
    ended(linked, begun(linked))
    linked.connection.execute(
        "UPDATE dead_letters SET resolved_at = now() + interval '1 day', stored_at = now() + interval '1 day'"
    )
    linked.connection.execute("UPDATE jobs SET began_at = now() + interval '1 day', state = 'done'")
    assert clock.void_if_ahead(linked.connection)
    assert opened(linked) == 1
    assert linked.rows("SELECT stored_at <= clock_timestamp() FROM dead_letters") == [(True,)]
    ended(linked, begun(linked))
    assert opened(linked) == 0
