"""Rules of docs/SAFETY.md, each switched off in the real code: histories must then come to a violation.

Some rules are covered by another: since purge also waits for a listing of every pod that began after t_h + R, a lost or
late event alone costs no bytes, and since every removal is looked up, rule 5 alone does nothing. Their mutants leave
out both, and say so in their names. Each says which plots it is noticed in (history.py), and how probable things are
there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

from coordinator.domain import gc as policy
from coordinator.domain import mark, perimeter, watermarks
from coordinator.gc import hide, mark_table, mark_view, purge, restore
from coordinator.gc import table as gc
from coordinator.pods import view as pods
from coordinator.storage.layout import blob_key
from coordinator.storage.port import Target
from coordinator.table import implied, statements
from tests.simulation.history import Odds, SavedBase, current_history
from tests.simulation.rules import Rule, always, instead

#: Little happens besides what a plot says: so a rule is noticed soon. Clocks of registries may be wrong.
QUIET = dict.fromkeys(Odds._fields, 0.0) | {"flush": 1.0, "noise": 0.1}
del QUIET["skew"]


class Loss(Enum):
    """What a history comes to, by what its violation says (world.py)."""

    BYTES = "its bytes are lost"
    SERVED = "is needed and not served"
    NAMED = "a delete names"
    CONFIRMED = "was hidden in spite of that row"


class Mutant(NamedTuple):
    name: str
    without: Sequence[Rule]
    #: What happens in histories, in which these rules matter; and how probable other things are there.
    plots: Sequence[str]
    odds: Mapping[str, float] = {}
    #: Where histories begin.
    base: str = "unreferenced"
    #: The kinds of bucket.
    versioned: Collection[bool] = (True, False)
    #: There is a pod of kind `gitlab`.
    mixed: bool = False
    #: So many histories notice it, from this seed on: one that notices it soon. A change of the code may move that.
    within: int = 400
    seed: int = 1
    #: Any of these is noticed. Where bytes are at stake, what is not served at rest would be noticed sooner.
    lost: Collection[Loss] = (Loss.BYTES, Loss.SERVED)

    def begins_at(self, place: SavedBase) -> bool:
        return (place.name, place.mixed) == (self.base, self.mixed) and place.versioned in self.versioned

    def is_noticed(self, violation: str) -> bool:
        """Whether a violation is what is lost without these rules, and no other: an error of the code, for example."""
        return any(loss.value in violation for loss in self.lost)


# What is weaker than a rule


def _first(original: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """One is asked, and not all."""
    return lambda *given: original(*given)[:1]


def _without_bound(original: Callable[[Any, timedelta], Any]) -> Callable[[Any, timedelta], Any]:
    return lambda pod, beyond: original(pod, timedelta(0))


def _living(original: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda pod: [each for each in original(pod) if each.dead_since is None]


def _all_versions(_: object) -> Callable[[Any], list[Target]]:
    """All that is there by the time of the purge."""

    def targets_of(found: Any) -> list[Target]:
        key = blob_key(found.digest)
        if found.marker is None:
            return [Target(key)]
        there = current_history().world.bucket.list_versions(key)
        return [Target(key, each.version) for each in there if not each.is_marker]

    return targets_of


_LATE = "the reference came before t_h"


def _noting_late(original: Any) -> Any:
    """Hides that take effect though the blob is needed by then are told from others."""

    def record(connection: Any, job: Any, hidden: Any) -> set[int]:
        recorded: set[int] = original(connection, job, hidden)
        connection.execute(
            f"""
            UPDATE hides h SET asked_why = '{_LATE}' FROM blobs b
            WHERE b.id = h.blob_id AND h.id = ANY(%s) AND b.unreferenced_since IS DISTINCT FROM h.unreferenced_since
            """,
            (sorted(recorded),),
        )
        return recorded

    return record


def _not_late(original: Any) -> Any:
    """A reference that comes before t_h finds nothing to restore."""

    def serve(self: Any, wanted: Any) -> Any:
        found = wanted[0]
        return original(self, wanted) if found.hidden_at is not None and found.asked != _LATE else None

    return serve


def _bytes_first(_: object) -> Any:
    """The bytes are shown, and then it is looked whether a delete can still land."""

    def serve(self: Any, wanted: Any) -> Any:
        found, why = wanted
        now = self._read_hide(found)
        if now is None:
            return restore.Served(found, why, is_served=True, has_ended=True)
        if now.purging_at is None and not self._serve_bytes(now):
            return None
        later = self._read_hide(found)
        if later is None or not later.is_harmless(self._delete_bound):
            return None
        with self._connections.use() as connection:
            is_over = gc.end_hide(connection, later, why)
        return restore.Served(later, why, is_served=True, has_ended=True) if is_over else None

    return serve


# The rules, by their names in the code. docs/SAFETY.md names those that have a number there.

T_H = Rule(gc, "T_H", instead("h.intended_at"))
PODS = Rule(policy, "reporting_pods", _first)
PARTITIONS = Rule(watermarks, "partition_marks", _first)
PROCESSES = Rule(watermarks, "counting_processes", _first)
ADDRESSES = Rule(watermarks, "address_bounds", always([]))
R = Rule(policy, "time_until_requests_end", always(timedelta(0)))
R_OF_WATERMARKS = Rule(policy, "reported_until", _without_bound)
R_OF_LISTINGS = Rule(policy, "reconciled_until", _without_bound)
TARGETS = Rule(purge, "targets_of", _all_versions)
LINKED = Rule(hide, "Hider.find_linked", always({}))
#: Removals are believed without a look: each pod's links are elsewhere.
CONFIRM_REMOVALS = Rule(statements, "read_pods_by_report", lambda _: lambda connection, pods: set(pods))
DEAD = Rule(watermarks, "counting_processes", _living)
COVERED = Rule(watermarks, "is_retirable", lambda _: lambda dead_since, began, bound: dead_since is not None)
HARMLESS = Rule(gc, "Hide.is_harmless", always(value=True))
UNDISTURBED = Rule(gc, "UNDISTURBED", instead("true"))
CANCELLED = (Rule(gc, "record_hidden", _noting_late), Rule(restore, "Restorer.serve", _not_late))
ONLY_ONE = Rule(hide, "CountedPermit.was_asked_once", always(value=True))
UNTOUCHED = Rule(gc, "UNTOUCHED", instead("true"))
BYTES_LAST = Rule(restore, "Restorer.serve", _bytes_first)
OWN_MARKERS = Rule(restore, "Restorer.has_ended", always(value=False))
LISTING = Rule(policy, "reconciled_until", always(datetime.max.replace(tzinfo=UTC)))
OWNED = Rule(perimeter, "block_reasons", always([]))
CHECK = Rule(purge, "Purger.check_concealed", always(purge.Concealment.CONCEALED))
CLAIMED = Rule(hide, "Hider.find_claimed", always({}))
STILL_CLAIMED = Rule(purge, "Purger.find_claimed", always({}))
PERMIT = Rule(gc, "permit_deletes", always(None))
VANISHED = Rule(pods, "OpenItems.describe_vanished", always([]))
CHILDREN = (Rule(implied, "IS_NOT_LISTED", instead("true")), Rule(implied, "add_implied", always(0)))
INSTANCE = Rule(mark, "describe_move", always(None))
OLDER_DATABASE = Rule(mark, "describe_older_database", always(None))
OLDER_BUCKET = (Rule(mark, "describe_lost_mark", always(None)), Rule(mark, "describe_older_bucket", always(None)))
CLAIM = Rule(mark_view, "describe_claim", always(None))
LOST_HISTORY = Rule(mark_table, "may_have_lost_history", always(value=False))

_STRAGGLER = "straggle collect probe collect"
_TABLE = (
    Mutant("1: t_h is read before the delete", [T_H], ["collect half collect"], {"sleep": 0.25}, seed=190),
    Mutant("2: one pod is not asked, and no listing", [PODS, LISTING], [_STRAGGLER], {"withhold": 1.0}),
    Mutant("2: one partition is not asked, and no listing", [PARTITIONS, LISTING], [_STRAGGLER], {"withhold": 1.0}),
    # What is known of addresses would stand in for the processes there.
    Mutant(
        "2: one process is not asked, and no listing",
        [PROCESSES, ADDRESSES, LISTING],
        [_STRAGGLER],
        {"withhold": 1.0},
    ),
    Mutant("3: without R", [R], ["straggle collect now collect"]),
    Mutant("3: W without R, and no listing", [R_OF_WATERMARKS, LISTING], ["straggle collect now collect"], seed=1160),
    Mutant(
        "4: purge deletes what is there, and does not look",
        [TARGETS, CHECK],
        ["straggle straggle collect wake"],
        base="due",
        lost=[Loss.NAMED],
    ),
    Mutant(
        "5: no look at former referrers, none at removals, and no listing",
        [LINKED, CONFIRM_REMOVALS, LISTING],
        ["swap probe collect probe collect"],
        lost=[Loss.BYTES],
    ),
    Mutant(
        "6: the dead are not waited for, and no listing",
        [DEAD, LISTING],
        ["straggle collect die probe probe collect"],
        lost=[Loss.BYTES],
    ),
    Mutant(
        "7: any reconcile covers the dead, and purge waits for none",
        [COVERED, LISTING],
        ["straggle collect half die half now collect"],
        lost=[Loss.BYTES],
    ),
    Mutant("8: a restore is final at once", [HARMLESS], ["straggle collect wake restore"], {"slow": 0.6}),
    # Three things see to it: the permit, what is recorded, and the restorer. Without any one nothing is lost.
    Mutant(
        "11: a reference does not cancel an intent",
        [UNDISTURBED, *CANCELLED],
        ["push collect restore"],
        {"noise": 1.0, "sleep": 0.2},
        seed=136,
    ),
    Mutant(
        "12: a delete that was sent twice counts as landed",
        [ONLY_ONE],
        ["collect push restore"],
        {"twice": 0.6, "noise": 1.0},
    ),
    Mutant(
        "13: an intent in spite of a reference, no look at removals, and no listing",
        [UNTOUCHED, CONFIRM_REMOVALS, LISTING],
        ["race probe collect"],
        lost=[Loss.BYTES],
    ),
    Mutant(
        "14: a restore looks at the bytes first",
        [BYTES_LAST],
        ["straggle collect wake restore wake"],
        {"slow": 0.9, "sleep": 0.5},
        seed=414,
        within=3000,
    ),
    Mutant(
        "15: a restorer removes the marker that is there by then, and no look before a purge",
        [OWN_MARKERS, CHECK],
        ["straggle collect wake restore forget report collect report wake straggle collect"],
        {"sleep": 0.2},
        versioned=[True],
        within=400,
        seed=30000,
    ),
    Mutant(
        "16: no listing, and an unmanaged registry",
        [LISTING],
        ["report straggle collect probe collect"],
        {"stranger": 1.0, "unmanaged": 1.0},
    ),
    Mutant(
        "16: a listing without R, and an unmanaged registry",
        [R_OF_LISTINGS],
        ["report straggle collect now probe collect"],
        {"stranger": 1.0, "unmanaged": 1.0},
    ),
    Mutant("17: no look before a purge", [CHECK], ["show straggle collect wake"], base="due", versioned=[True]),
    Mutant(
        "18: a blob is hidden in spite of a row in a registry's database",
        [CLAIMED],
        ["stored expire report collect confirm"],
        mixed=True,
        lost=[Loss.CONFIRMED],
    ),
    # The row is written after the hide, by a request whose event came before.
    Mutant(
        "18: a blob is purged in spite of a row in a registry's database",
        [STILL_CLAIMED],
        ["upload expire now collect wake report confirm"],
        mixed=True,
        lost=[Loss.BYTES],
    ),
    Mutant("no listing, and a link without an event", [LISTING], [_STRAGGLER], {"lossy": 1.0}),
    Mutant(
        "a listing without R, and a link without an event",
        [R_OF_LISTINGS],
        ["straggle collect now probe collect"],
        {"lossy": 1.0},
    ),
    Mutant(
        "no permit is asked for",
        [PERMIT],
        ["straggle collect wake restore"],
        {"sleep": 0.2},
        seed=73,
        lost=[Loss.BYTES, Loss.SERVED, Loss.NAMED],
    ),
    Mutant("repositories of no pod do not block", [OWNED], ["straggle collect report collect"], {"stranger": 1.0}),
    Mutant("links that vanished do not block", [VANISHED], ["unlink report now collect report collect"]),
    Mutant(
        "an index does not keep its children",
        CHILDREN,
        ["index report unlink unlink report accept now collect report collect"],
        lost=[Loss.BYTES],
    ),
    Mutant("a failover is not noticed by the timeline", [INSTANCE], ["straggle behind wake failover"]),
    Mutant(
        "a failover is not noticed by the timeline, and a database older than the bucket not by the mark",
        [INSTANCE, OLDER_DATABASE],
        ["straggle standby collect wake failover"],
    ),
    Mutant("a claim is not verified by an audit", [CLAIM], ["straggle behind wake failover"]),
    Mutant(
        "a bucket older than the database is not noticed, and no look before a purge",
        [*OLDER_BUCKET, CHECK],
        ["replica collect report rollback straggle collect wake"],
        versioned=[True],
    ),
    Mutant(
        "a restore after a failover removes markers",
        [LOST_HISTORY],
        ["behind failover undelete push"],
        {"slow": 0.9},
        base="due",
        versioned=[True],
    ),
)
MUTANTS: Mapping[str, Mutant] = {mutant.name: mutant for mutant in _TABLE}
