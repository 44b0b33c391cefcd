"""Pods that change while other transactions read them."""

import functools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from coordinator.db.engine import temporary_engine
from coordinator.db.locks import PODS_LOCK
from coordinator.db.session import read_connection
from coordinator.domain.facts import Fact
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import PodKind
from coordinator.errors import ConflictError, NotFoundError, UsageError
from coordinator.pods import table as pods
from coordinator.pods import view as queries
from coordinator.pods.of_kind import PodOfKind
from coordinator.reconcile import table as reconcile
from coordinator.table import expiry, progress, renames
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item
from tests.support.tables import (
    NOW,
    add_dead_letter,
    add_done_job,
    add_gap,
    add_job,
    add_prefixes,
    add_process,
    ago,
    await_lock_wait,
    read_open_gaps,
    set_kind,
)
from tests.table.harness import Row, Table

NEW = PodName("pod-new")


def do(table: Table, work: Callable[[Any], Any]) -> Any:
    with temporary_engine(table.url, name="test") as engine:
        return work(engine)


def add(table: Table, kind: PodKind = PodKind.LINK) -> int:
    new = pods.NewPod(name=NEW, prefixes=[RepositoryName("new")], kind=kind)
    do(table, lambda engine: pods.add_pod(engine, new))
    ((number,),) = table.rows("SELECT id FROM pods WHERE name = %s", (NEW,))
    return int(number)


def gap(table: Table, pod: int) -> None:
    add_gap(table.connection, pod)


@pytest.mark.parametrize(
    "again",
    [
        gap,
        lambda table, pod: renames.record_rename_gaps(table.connection, {pod}),
        lambda table, _: progress.record_log_cut(table.connection, "registry.events"),
    ],
    ids=["another", "renamed", "log-cut"],
)
def test_a_gap_that_is_noticed_while_storage_is_checked(fresh: Table, again: Callable[[Table, int], None]) -> None:
    """A gap that is noticed during a removal keeps the pod, and the next attempt checks storage again."""
    pod = add(fresh)
    again(fresh, pod)
    checks: list[list[str]] = []

    def checked(pod_of_kind: PodOfKind) -> bool:
        checks.append(list(pod_of_kind.prefixes))
        if len(checks) == 1:
            again(fresh, pod)
        return False

    with pytest.raises(ConflictError, match="try again"):
        do(fresh, lambda engine: pods.remove_pod(engine, NEW, checked))
    do(fresh, lambda engine: pods.remove_pod(engine, NEW, checked))
    assert checks == [["new"], ["new"]]
    assert fresh.rows("SELECT FROM pods WHERE name = %s", (NEW,)) == []


def test_a_prefix_that_is_added_while_a_reconcile_begins(fresh: Table) -> None:
    """A reconcile that begins waits for a prefix that is being added, and reads it."""
    pod = add(fresh)
    with fresh.connect() as adding, fresh.connect() as reading, ThreadPoolExecutor(1) as pool:
        with adding.transaction():
            adding.execute("SELECT pg_advisory_xact_lock(%s)", (PODS_LOCK,))
            add_prefixes(adding, pod, "more")
            found = pool.submit(reconcile.read_pod, reading, pod)
            assert await_lock_wait(fresh.connection, found)
        seen = found.result(30)
    assert seen is not None
    assert seen.prefixes == ["more", "new"]


def test_prefixes_have_a_limit(fresh: Table) -> None:
    """A pod gets no more prefixes than it may be registered with."""
    pod = add(fresh)
    more = [RepositoryName(f"more{number}") for number in range(pods.PREFIXES_LIMIT)]
    with pytest.raises(UsageError):
        do(fresh, lambda engine: pods.add_prefixes(engine, NEW, more))
    do(fresh, lambda engine: pods.add_prefixes(engine, NEW, [RepositoryName("new"), *more[1:]]))
    assert fresh.rows("SELECT count(*) FROM pod_prefixes WHERE pod_id = %s", (pod,)) == [(pods.PREFIXES_LIMIT,)]
    assert read_open_gaps(fresh.connection) == ["prefix-added"]


def test_a_prefix_of_a_pod_whose_links_are_elsewhere(fresh: Table) -> None:
    """A new prefix of a pod of kind relay blocks GC until an operator resolves the gap."""
    add(fresh, PodKind.RELAY)
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "it is new"))
    do(fresh, lambda engine: pods.add_prefixes(engine, NEW, [RepositoryName("more")]))
    (shown,) = read_state(fresh).open_items.describe_blocks(NEW, is_reconcilable=False)
    assert f"`baleen pods resolve-gaps {NEW} --why …`" in shown
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "its database was compared"))
    assert read_state(fresh).open_items.describe_blocks("pod") == []


def anything(*_: Any) -> bool:
    return True


def nothing(*_: Any) -> bool:
    return False


@pytest.mark.parametrize(
    "before",
    [
        lambda *_: None,
        functools.partial(add_process, dead_since=NOW, dead_why="refused"),
        functools.partial(add_job, state="done", finished_at=NOW),
        add_gap,
    ],
    ids=["never reconciled", "a process died", "reconciled", "a gap"],
)
def test_a_pod_with_links_that_the_table_lacks(fresh: Table, before: Callable[[Any, int], object]) -> None:
    """A pod is not removed while storage has links of it that the table does not have."""
    pod = add(fresh)
    before(fresh.connection, pod)
    with pytest.raises(ConflictError, match="reconcile it first"):
        do(fresh, lambda engine: pods.remove_pod(engine, NEW, anything))
    do(fresh, lambda engine: pods.remove_pod(engine, NEW, nothing))
    with pytest.raises(NotFoundError):
        do(fresh, lambda engine: pods.remove_pod(engine, NEW, nothing))


def test_what_the_table_has_is_refused_without_a_check(fresh: Table) -> None:
    """If the table has links of the pod, its removal is refused with that, and storage is not read."""
    set_kind(fresh.connection, "link", "pod-a")
    fresh.apply(fresh.link("a", "l", 0))

    def checked(*_: Any) -> bool:
        pytest.fail("storage was asked")

    with pytest.raises(ConflictError, match="link blobs"):
        do(fresh, lambda engine: pods.remove_pod(engine, PodName("pod-a"), checked))


def test_links_that_vanished(fresh: Table) -> None:
    """A pod is not removed while links of it have vanished that no operator has accepted: that alarm would go, too."""
    set_kind(fresh.connection, "link", "pod-a")
    fresh.apply(fresh.link("a", "l", 0))
    fresh.connection.execute(
        """
        WITH gone AS (DELETE FROM repository_blobs RETURNING repository_id, blob_id)
        INSERT INTO removals
            (repository_id, digest, removed_at, reported, vanished_since, vanished_added_at, vanished_kind)
        SELECT g.repository_id, b.digest, now(), false, now(), now(), 'blob'
        FROM gone g JOIN blobs b ON b.id = g.blob_id
        """
    )
    with pytest.raises(ConflictError, match="links that vanished without a delete event"):
        do(fresh, lambda engine: pods.remove_pod(engine, PodName("pod-a"), nothing))
    fresh.connection.execute(
        "UPDATE removals SET reported = true, vanished_since = NULL, vanished_added_at = NULL, vanished_kind = NULL"
    )
    do(fresh, lambda engine: pods.remove_pod(engine, PodName("pod-a"), nothing))


def named(table: Table, repository: str, *facts: Fact) -> None:
    """Apply facts of a repository with exactly this name."""
    table.apply(*(fact._replace(repository=RepositoryName(repository)) for fact in facts))


def test_what_baleen_made_goes_with_the_pod(fresh: Table) -> None:
    """Repositories of probes and doctors are removed with the pod, and other pods' references stay counted."""
    scratch = f"pod-a/baleen-doctor-{'0' * 16}"
    named(fresh, "pod-a/baleen-probe", fresh.link("", "l"), fresh.push("", "m", ["l"]))
    named(fresh, f"{scratch}-other", fresh.link("", "x"))
    named(fresh, scratch, fresh.push("", "y", ["x"]))
    named(fresh, "pod-b/baleen-probe", fresh.link("", "l"), fresh.push("", "m", ["l"]))
    image = [fresh.digest(name) for name in ("l", "m")]
    do(fresh, lambda engine: pods.remove_pod(engine, PodName("pod-a"), nothing, image))
    assert fresh.rows("SELECT name FROM repositories") == [("pod-b/baleen-probe",)]
    assert fresh.blob("l") == Row(1, 1, BlobState.LIVE, unreferenced=False, size=7)
    assert fresh.blob("m") == Row(1, 0, BlobState.LIVE, unreferenced=False, size=70)
    assert fresh.blob("x") == Row(0, 0, BlobState.UNREFERENCED, unreferenced=True, size=7)
    assert fresh.check().differences == []
    shown = fresh.rows("SELECT digest FROM lifecycle_outbox WHERE change = 'unreferenced' ORDER BY digest")
    assert shown == [(digest,) for digest in sorted([fresh.digest("x"), fresh.digest("y")])]


@pytest.mark.parametrize(
    "repository",
    ["pod-a/baleen-probe", "pod-a/x/baleen-probe", "pod-a/baleen-doctor-x", f"pod-a/baleen-doctor-{'0' * 16}/x"],
)
@pytest.mark.parametrize("links", [True, False], ids=["links", "holds"])
def test_what_others_made_by_such_names_is_theirs(fresh: Table, repository: str, links: bool) -> None:
    """Another image in the repository of probes, or a name that only looks alike, prevents a removal."""
    named(fresh, "pod-a/baleen-probe", fresh.push("", "m", ["l"]))
    named(fresh, repository, fresh.link("", "other") if links else fresh.push("", "other", []))
    image = [fresh.digest(name) for name in ("l", "m")]
    with pytest.raises(ConflictError, match=f"({re.escape(repository)})"):
        do(fresh, lambda engine: pods.remove_pod(engine, PodName("pod-a"), nothing, image))
    assert fresh.check().differences == []


def test_a_refused_removal_changes_nothing(fresh: Table) -> None:
    """A refused removal leaves Baleen's own repositories as they are, and names a few of the others."""
    named(fresh, "pod-a/baleen-probe", fresh.push("", "m", ["l"]))
    for name in "abcd":
        named(fresh, f"pod-a/{name}", fresh.push("", "other", []))
    image = [fresh.digest(name) for name in ("l", "m")]
    with pytest.raises(ConflictError, match="pod-a/a, pod-a/b, pod-a/c, …"):
        do(fresh, lambda engine: pods.remove_pod(engine, PodName("pod-a"), nothing, image))
    assert fresh.blob("l") == Row(1, 0, BlobState.LIVE, unreferenced=False, size=7)


def test_a_pod_whose_links_are_elsewhere(fresh: Table) -> None:
    """A pod of kind relay is removed without a check of storage."""
    gap(fresh, add(fresh, PodKind.RELAY))
    do(fresh, lambda engine: pods.remove_pod(engine, NEW, anything))


def read_state(table: Table, request_bound: timedelta = timedelta(hours=1), pod: PodName = NEW) -> queries.PodState:
    def asked(engine: Any) -> queries.PodState:
        with read_connection(engine) as connection:
            return queries.read_pod_states(connection, timedelta(minutes=1), request_bound)[pod]

    found: queries.PodState = do(table, asked)
    return found


def read_state_while(table: Table, locked: str, work: Callable[[Any], object], pod: PodName = NEW) -> queries.PodState:
    """The truth as read while this table is locked, with other work committed in between."""
    with table.connect() as other, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            other.execute(f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE")
            found = pool.submit(read_state, table, pod=pod)
            assert await_lock_wait(table.connection, found)
            work(other)
        return found.result(30)


def test_what_a_watermark_has_passed_is_reported(fresh: Table) -> None:
    """A batch that is committed while the truth is read shows its dead letters together with its watermark."""
    add(fresh)

    # The reader stops before it reads watermarks: only they ask for endpoints.
    assert (
        read_state_while(
            fresh, "endpoints", lambda connection: add_dead_letter(connection, NEW)
        ).open_items.dead_letters
        == 1
    )


@pytest.mark.parametrize("locked", ["endpoints", "findings"])
def test_what_a_reconcile_has_found_is_reported(fresh: Table, locked: str) -> None:
    """A reconcile that ends while the truth is read counts only together with its unread manifests."""
    pod = PodName("pod-a")

    def reconciled(connection: Any) -> None:
        BatchApplier(fresh.connection, timedelta()).apply_stored([Item(0, 0, fresh.pods[pod], unread, None)])
        add_done_job(connection, fresh.pods[pod])

    unread = fresh.push("r", "m", None)
    found = read_state_while(fresh, locked, reconciled, pod)
    assert found.reconciled_at is None or found.open_items.unread_manifests == 1
    assert read_state(fresh, pod=pod).reconciled_at is not None


def test_what_came_before_the_first_event(fresh: Table) -> None:
    """A reconcile counts if it began so long after a pod's first event that all earlier requests have ended."""
    pod = add(fresh)
    add_process(fresh.connection, pod, first_seen=ago("2 hours"))
    ((first,),) = fresh.rows("SELECT first_seen FROM processes")
    for after, shown in ((timedelta(seconds=-1), 1), (timedelta(minutes=59), 1), (timedelta(hours=1), 0)):
        add_done_job(fresh.connection, pod, first + after)
        reasons = read_state(fresh).describe_blocks(NEW)
        assert sum("before its first event" in reason for reason in reasons) == shown, after
    assert not any("never reconciled" in reason for reason in reasons)


def test_gaps_that_only_a_later_reconcile_resolves(fresh: Table) -> None:
    """A gap shows the time from which a reconcile resolves it, the latest one if there are several."""
    pod = add(fresh)
    gap(fresh, pod)
    (shown,) = read_state(fresh).open_items.describe_blocks("pod")
    assert shown.startswith("1 gap in which events may be lost: a reconcile of the pod resolves")
    for hours in (2, 1):
        add_gap(fresh.connection, pod, resolves_from=f"2126-11-25 0{hours}:00:00+00")
    (shown,) = read_state(fresh).open_items.describe_blocks("pod")
    assert "a reconcile of the pod that begins after 2126-11-25 02:00:00 UTC resolves it" in shown


def test_gaps_that_no_reconcile_can_resolve(fresh: Table) -> None:
    """An operator resolves the gaps of a pod of kind relay with a reason; those of any other need a reconcile."""
    pod = add(fresh, PodKind.RELAY)
    gap(fresh, pod)
    gap(fresh, pod)
    for why in (" ", "x" * 1001, "\0"):
        with pytest.raises(UsageError):
            do(fresh, lambda engine, why=why: pods.resolve_gaps(engine, NEW, why))
    resolved = "SELECT resolved_why FROM gaps WHERE pod_id = %s ORDER BY id"
    assert fresh.rows(resolved, (pod,)) == [(None,)] * 2
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, " its database was compared "))
    gap(fresh, pod)
    assert fresh.rows(resolved, (pod,)) == [("operator: its database was compared",)] * 2 + [(None,)]
    set_kind(fresh.connection, "link", NEW)
    with pytest.raises(ConflictError, match="a reconcile resolves its gaps"):
        do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "I think so"))
    assert fresh.rows(resolved, (pod,))[-1] == (None,)
    with pytest.raises(NotFoundError):
        do(fresh, lambda engine: pods.resolve_gaps(engine, PodName("nobody"), "no pod"))


def test_what_no_reconcile_can_find(fresh: Table) -> None:
    """A pod of kind relay blocks GC until an operator has confirmed, after the first event, what it has."""
    pod = add(fresh, PodKind.RELAY)
    command = "baleen pods resolve-gaps pod-new"

    def held() -> list[str]:
        shown = read_state(fresh).describe_blocks(NEW)
        assert not any("pods reconcile" in reason for reason in shown)
        return [reason for reason in shown if "before its first event" in reason]

    assert command in held()[0]
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "it is new"))
    assert held() == []
    add_process(fresh.connection, pod)
    assert command in held()[0]
    fresh.connection.execute("UPDATE processes SET first_seen = now() - interval '2 hours'")
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "its database was compared"))
    assert held() == []
    assert read_open_gaps(fresh.connection) == []


def test_doubtful_removals_that_no_check_can_resolve(fresh: Table) -> None:
    """An operator ends the doubtful removals of a pod of kind relay, and the blobs are kept."""
    add(fresh, PodKind.RELAY)
    fresh.connection.execute("UPDATE pod_prefixes SET pod_id = (SELECT max(id) FROM pods) WHERE prefix = 'pod-a'")
    set_kind(fresh.connection, "link", *fresh.pods)
    fresh.pods["pod-a"] = fresh.rows("SELECT max(id) FROM pods")[0][0]
    fresh.apply(fresh.push("a", "m", ["l"], 0), fresh.removed("a", "m", 60), margin=timedelta(minutes=5))
    assert "resolve-gaps" in " ".join(read_state(fresh).open_items.describe_blocks(NEW, is_reconcilable=False))
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "it is kept"))
    assert read_state(fresh).open_items.describe_blocks("pod") == []
    assert fresh.blob("m") == Row(1, 0, BlobState.LIVE, unreferenced=False, size=70)


def test_an_operator_releases_manifests_that_need_links(fresh: Table) -> None:
    """An operator releases the held manifests of a pod of kind relay that were pushed an hour ago; their links
    stay.
    """
    add(fresh, PodKind.RELAY)
    fresh.connection.execute("UPDATE pod_prefixes SET pod_id = (SELECT max(id) FROM pods) WHERE prefix = 'pod-a'")
    fresh.pods["pod-a"] = fresh.rows("SELECT max(id) FROM pods")[0][0]

    def pushed(name: str, age: timedelta) -> None:
        fresh.apply(fresh.push("a", name, ["l"])._replace(by_links=True))
        fresh.connection.execute(
            "UPDATE repository_manifests SET pushed_at = now() - %s"
            " WHERE manifest_id = (SELECT id FROM blobs WHERE digest = %s)",
            (age, fresh.digest(name)),
        )

    def held() -> list[str]:
        return [reason for reason in read_state(fresh).describe_blocks(NEW) if "held manifest" in reason]

    fresh.apply(fresh.link("a", "linked"))
    pushed("old", timedelta(hours=2))
    pushed("new", timedelta(minutes=50))
    (shown,) = held()
    assert shown.startswith("2 held manifests ")
    assert "resolve-gaps" in shown
    assert f"{fresh.repository('a')}@{fresh.text('old')}" in shown
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "its layers were compared"))
    (shown,) = held()
    assert shown.startswith("1 held manifest ")
    assert fresh.text("old") not in shown
    assert fresh.text("new") in shown
    fresh.connection.execute("UPDATE repository_manifests SET pushed_at = now() - interval '2 hours'")
    do(fresh, lambda engine: pods.resolve_gaps(engine, NEW, "its layers were compared"))
    assert held() == []
    fresh.connection.execute("UPDATE repository_blobs SET linked_at = now() - interval '9 days'")
    assert expiry.delete_expired_links(fresh.connection, timedelta(days=1)) == 0
    assert fresh.blob("linked") == Row(0, 1, BlobState.LIVE, unreferenced=False, size=7)
    assert fresh.blob("l") == Row(2, 0, BlobState.LIVE, unreferenced=False, size=7)
    fresh.apply(fresh.push("a", "old", None, 10.0**7))
    assert len(held()) == 1
