"""Rules of docs/model/README.md, each left out of the real code: histories must then come to a violation.

A mutant replaces the smallest function or statement that a rule stands in. Some rules are covered by another: since
purge also waits for a listing of every pod that began after t_h + R, a lost or late event alone costs no bytes, and
since every removal is looked up, rule 5 alone does nothing. Their mutants leave out both, and say so in their names.
Each says which plots it is noticed in (history.py), and how probable things are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from coordinator.domain import gc as policy
from coordinator.domain import mark as past
from coordinator.domain import watermarks
from coordinator.domain.lifecycle import BlobState
from coordinator.gc import collect, hide, plan, purge, restore
from coordinator.gc import mark_table as past_table
from coordinator.gc import mark_view as questions
from coordinator.gc import table as gc
from coordinator.pods import view as pods
from coordinator.storage.layout import blob_key
from coordinator.storage.port import Target
from coordinator.table import implied, processes, statements

Mutate = Callable[[], None]
BOTH = (True, False)
#: Little happens besides what a plot says: so a rule is noticed soon.
QUIET = {
    "crash": 0.0,
    "lossy": 0.0,
    "slow": 0.0,
    "twice": 0.0,
    "errors": 0.0,
    "away": 0.0,
    "sleep": 0.0,
    "kill": 0.0,
    "again": 0.0,
    "operator": 0.0,
    "flush": 1.0,
    "withhold": 0.0,
    "noise": 0.1,
    "stranger": 0.0,
    "unmanaged": 0.0,
    "shown": 0.0,
    "unlinked": 0.0,
    "failover": 0.0,
    "rollback": 0.0,
    "literal": 0.0,
}


class Mutant(NamedTuple):
    name: str
    mutate: Mutate
    #: Where histories begin, and what happens in them, that this rule is for.
    base: str
    plots: Sequence[str]
    odds: Mapping[str, float]
    #: The kinds of bucket.
    versioned: Collection[bool]
    #: So many histories notice it.
    within: int
    #: It is noticed sooner by what is not served at rest, or by what the table has; but bytes are what is at stake.
    bytes_only: bool


MUTANTS: dict[str, Mutant] = {}


def mutant(
    name: str,
    *plots: str,
    base: str = "unreferenced",
    versioned: Collection[bool] = BOTH,
    within: int = 400,
    bytes_only: bool = False,
    **odds: float,
) -> Callable[[Mutate], Mutate]:
    def add(mutate: Mutate) -> Mutate:
        assert name not in MUTANTS
        MUTANTS[name] = Mutant(name, mutate, base, plots, QUIET | odds, versioned, within, bytes_only)
        return mutate

    return add


# How to leave something out


def _purging(purging: Callable[[Any], Any]) -> None:
    for module in (policy, plan, collect):
        module.purging = purging  # type: ignore[attr-defined]


def _no_listing() -> None:
    """Hide and purge do not wait for a reconcile."""
    original = policy._reconciled
    policy._reconciled = lambda pod, beyond: original(pod, beyond)._replace(at=datetime.max.replace(tzinfo=UTC))


def _by_word() -> None:
    """Removals are believed without a look."""
    statements.pods_elsewhere = lambda connection, pods: set(pods)


class _Cut:
    """A connection whose statements lack a part."""

    def __init__(self, connection: Any, part: str) -> None:
        self._connection = connection
        self._part = part

    def execute(self, statement: str, values: Any = None) -> Any:
        return self._connection.execute(statement.replace(self._part, ""), values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _without(function: str, part: str) -> None:
    """A function of gc/table.py lacks a part of its statements."""
    original = getattr(gc, function)
    setattr(gc, function, lambda connection, *given, **named: original(_Cut(connection, part), *given, **named))


# The rules


@mutant("1: t_h is read before the delete", "collect half collect", sleep=0.25)
def _() -> None:
    original = gc.record

    def record(connection: Any, job: Any, hidden: Any) -> set[int]:
        recorded = original(connection, job, hidden)
        connection.execute("UPDATE hides SET hidden_at = intended_at WHERE id = ANY(%s)", (sorted(recorded),))
        return recorded

    gc.record = record


@mutant("2: one pod is not asked, and no listing", "straggle collect probe collect", withhold=1.0)
def _() -> None:
    _no_listing()
    original = policy.purging
    _purging(lambda facts: original(facts._replace(pods=facts.pods[:1])))


@mutant("2: one partition is not asked, and no listing", "straggle collect probe collect", withhold=1.0)
def _() -> None:
    _no_listing()
    original = watermarks._marks
    watermarks._marks = lambda source, partitions: original(source, partitions)[:1]


@mutant("2: one process is not asked, and no listing", "straggle collect probe collect", withhold=1.0)
def _() -> None:
    _no_listing()
    original = watermarks.watermark

    def watermark(pod: Any, *more: Any) -> Any:
        counted = sorted((each for each in pod.sources if each.retired_at is None), key=lambda each: each.instance_id)
        # What is known of addresses would stand in for the processes there.
        return original(pod._replace(sources=counted[:1], endpoints=pod.endpoints[:1], unheard=[]), *more)

    watermarks.watermark = watermark


@mutant("3: without R", "straggle collect now collect")
def _() -> None:
    original = policy.purging
    _purging(lambda facts: original(facts._replace(times=facts.times._replace(request_bound=timedelta(0)))))


@mutant("3: W without R, and no listing", "straggle collect now collect")
def _() -> None:
    _no_listing()
    original = policy._reported
    policy._reported = lambda pod, beyond: original(pod, timedelta(0))


def _no_look() -> None:
    """A purge does not look before it deletes (rule 17)."""
    purge.Purger.look = lambda self, hide: purge.Look.CONCEALED  # type: ignore[method-assign]


@mutant("4: purge deletes what is there, and does not look", "straggle straggle collect wake", base="due")
def _() -> None:
    from tests.simulation.process import current  # noqa: PLC0415 - that one imports this

    def targets(found: Any) -> list[Target]:
        key = blob_key(found.digest)
        if found.marker is None:
            return [Target(key)]
        there = current().world.bucket.versions(key)
        return [Target(key, each.version) for each in there if not each.is_marker]

    purge._targets = targets
    _no_look()


@mutant(
    "5: no look at former referrers, none at removals, and no listing",
    "swap probe collect probe collect",
    bytes_only=True,
)
def _() -> None:
    hide.Hider.linked = lambda self, wanted: {}  # type: ignore[method-assign]
    _by_word()
    _no_listing()


@mutant("6: the dead are not waited for, and no listing", "straggle collect die probe probe collect", bytes_only=True)
def _() -> None:
    _no_listing()
    original = watermarks.watermark

    def watermark(pod: Any, *more: Any) -> Any:
        alive = [each for each in pod.sources if each.dead_since is None]
        return original(pod._replace(sources=alive, unheard=[]), *more)

    watermarks.watermark = watermark


@mutant(
    "7: any reconcile covers the dead, and purge waits for none",
    "straggle collect half die half now collect",
    bytes_only=True,
)
def _() -> None:
    _no_listing()
    processes.may_retire = lambda dead_since, began, bound: dead_since is not None


@mutant("8: a restore is final at once", "straggle collect wake restore", slow=0.6)
def _() -> None:
    gc.Hide.harmless = lambda self, bound: True  # type: ignore[method-assign]


@mutant("11: a reference does not cancel an intent", "push collect restore", noise=1.0, sleep=0.2)
def _() -> None:
    # Three things see to it: the permit, what is recorded, and whoever restores. Without any one nothing is lost.
    for function in ("permit", "undisturbed"):
        _without(function, "AND b.unreferenced_since = h.unreferenced_since")
    locked, back = gc._locked, restore.Restorer.restore
    unseen: set[int] = set()

    def all_of(connection: Any, hides: Any, *states: BlobState) -> set[int]:
        if states != (BlobState.HIDING,):
            return locked(connection, hides, *states)
        found = gc._blobs_first(connection, hides)
        unseen.update(found - locked(connection, hides, *states))
        return found

    def restored(self: Any, found: Any, why: str) -> bool:
        return found.hidden_at is not None and found.id not in unseen and back(self, found, why)

    gc._locked = all_of
    restore.Restorer.restore = restored  # type: ignore[method-assign]


@mutant("12: a delete that was sent twice counts as landed", "collect push restore", twice=0.6, noise=1.0)
def _() -> None:
    original = hide.AskedOnce.__call__

    def asked(self: Any) -> None:
        original(self)
        self.asked = 1

    hide.AskedOnce.__call__ = asked  # type: ignore[method-assign]


@mutant(
    "13: an intent in spite of a reference, no look at removals, and no listing", "race probe collect", bytes_only=True
)
def _() -> None:
    _by_word()
    _no_listing()
    _without("intend", "AND b.unreferenced_since = d.since")


@mutant("14: a restore looks at the bytes first", "straggle collect wake restore wake", slow=0.9, sleep=0.5)
def _() -> None:
    def bring_back(self: Any, found: Any, why: str) -> bool:
        now = self._now(found)
        if now is None:
            return True
        if now.purging_at is None and not self._show(now):
            return False
        later = self._now(found)
        if later is None or not later.harmless(self._delete_bound):
            return False
        with self._connections.use() as connection:
            return gc.shown(connection, later, why)

    restore.Restorer.restore = bring_back  # type: ignore[method-assign]


@mutant(
    "15: a restorer removes the marker that is there by then, and no look before a purge",
    "straggle collect wake restore forget report collect report wake straggle collect",
    versioned=(True,),
    within=3000,
    sleep=0.2,
)
def _() -> None:
    _no_look()

    def show(self: Any, found: Any) -> bool:
        if self._now(found) is None:
            return False
        key = blob_key(found.digest)
        for each in self._store.versions(key):
            if each.is_marker:
                self._store.remove_marker(key, each.version)
        if self._store.head(key) is None:
            self._copy_back(found)
        return True

    restore.Restorer._show = show  # type: ignore[method-assign]


@mutant("no listing, and a link without an event", "straggle collect probe collect", lossy=1.0)
def _() -> None:
    _no_listing()


@mutant("a listing without R, and a link without an event", "straggle collect now probe collect", lossy=1.0)
def _() -> None:
    original = policy._reconciled
    policy._reconciled = lambda pod, beyond: original(pod, timedelta(0))


@mutant("no permit is asked for", "straggle collect wake restore", sleep=0.2)
def _() -> None:
    def asked(self: Any) -> None:
        self.asked += 1

    hide.AskedOnce.__call__ = asked  # type: ignore[method-assign]


@mutant("repositories of no pod do not block", "straggle collect report collect", stranger=1.0)
def _() -> None:
    policy.perimeter.holds = lambda listing: []


@mutant("no listing, and an unmanaged registry", "report straggle collect probe collect", stranger=1.0, unmanaged=1.0)
def _() -> None:
    _no_listing()


@mutant(
    "a listing without R, and an unmanaged registry",
    "report straggle collect now probe collect",
    stranger=1.0,
    unmanaged=1.0,
)
def _() -> None:
    original = policy._reconciled
    policy._reconciled = lambda pod, beyond: original(pod, timedelta(0))


@mutant("17: no look before a purge", "show straggle collect wake", base="due", versioned=(True,))
def _() -> None:
    _no_look()


@mutant("links that vanished do not block", "unlink report now collect report collect")
def _() -> None:
    original = pods.holds

    def holds(connection: Any) -> dict[str, pods.Open]:
        return {name: opened._replace(vanished_links=0) for name, opened in original(connection).items()}

    pods.holds = holds


@mutant(
    "an index does not keep its children",
    "index report unlink unlink report accept now collect report collect",
    bytes_only=True,
)
def _() -> None:
    original = implied.release
    part = f"""AND NOT EXISTS (
                SELECT FROM manifests m JOIN repository_manifests i ON i.manifest_id = m.id
                WHERE m.refs @> ARRAY[d.id] AND m.kind IN ({implied._PARENTS}) AND i.repository_id = d.repository_id)"""
    implied.release = lambda connection, holdings: original(_Cut(connection, part), holdings)
    implied.complete = lambda connection, holdings: 0


def _unnoticed_failover() -> None:
    """Nobody compares the database's instance with the recorded one."""
    past.moved = questions.moved = lambda recorded, current: None


@mutant("a failover is not noticed by the timeline", "straggle behind wake failover")
def _() -> None:
    _unnoticed_failover()


@mutant(
    "a failover is not noticed by the timeline, and a database older than the bucket not by the mark",
    "straggle standby collect wake failover",
)
def _() -> None:
    _unnoticed_failover()
    original = past._mismatch
    past._mismatch = lambda found, before, after, key: (
        None if found is not None and found.epoch > after.writing else original(found, before, after, key)
    )


@mutant("a claim is not verified by an audit", "straggle behind wake failover")
def _() -> None:
    questions._claimed = lambda *_, **__: None  # type: ignore[assignment,return-value]


@mutant(
    "a bucket older than the database is not noticed, and no look before a purge",
    "replica collect report rollback straggle collect wake",
    versioned=(True,),
)
def _() -> None:
    past._mismatch = lambda found, before, after, key: None
    _no_look()


@mutant(
    "a restore after a failover removes markers",
    "behind failover undelete push",
    base="due",
    versioned=(True,),
    slow=0.9,
)
def _() -> None:
    past_table.may_have_lost_history = lambda connection: False
