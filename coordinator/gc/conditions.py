"""Read everything that garbage collection relies on: pods, watermarks, reconciles, controls.

The queries are those of `/v1/status` and `/v1/pods`: collection relies on what operators see there.
Not here: what follows (domain/gc.py).
"""

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text

from coordinator.domain.gc import Facts, PodFacts, Times
from coordinator.gc import controls_view
from coordinator.gc import mark_view as mark
from coordinator.perimeter import root_listing_table
from coordinator.pods import view as queries

#: Reads the present facts on a connection of its own; raises UnavailableError.
FactsReader = Callable[[], Facts]
#: Reads the present facts.
ReadFacts = Callable[[Connection], Facts]

_RECONCILABLE = text("SELECT name, is_reconcilable FROM pods")
_SELECT_NOW = text("SELECT clock_timestamp()")
_SELECT_LISTING = text(root_listing_table.SELECT_LISTING)


class FactsWithRows(NamedTuple):
    """The facts, and the rows from which they were made."""

    facts: Facts
    pod_states: Mapping[str, queries.PodState]
    #: Open dead letters of pods that are not registered.
    orphans: int


#: Reads the present facts, and the rows from which they were made.
ReadFactsWithRows = Callable[[Connection], FactsWithRows]


def facts_only(read: ReadFactsWithRows) -> ReadFacts:
    """Return a reader of the facts alone."""

    def facts(connection: Connection) -> Facts:
        return read(connection).facts

    return facts


def read_facts(
    connection: Connection, times: Times, silence: timedelta, unsafe_findings: Collection[str] = ()
) -> FactsWithRows:
    """Read the facts: the time first, and watermarks before what may hold them, so that no time is too late."""
    now = connection.scalar(_SELECT_NOW)
    switch = controls_view.read_switch_on(connection)
    pod_states = queries.read_pod_states(connection, silence, times.request_bound, unsafe_findings)
    orphans = queries.count_orphaned_dead_letters(connection)
    listing = root_listing_table.make_listing(connection.execute(_SELECT_LISTING).one_or_none())
    reconcilable = {row.name: row.is_reconcilable for row in connection.execute(_RECONCILABLE)}
    # Every hold that is not of a single pod is added here: status, plan, metrics and each run read it. A permit checks
    # again, in its own transaction, what an operator may have changed since: the switch, holds, a claim (table.py).
    held = mark.mark_reasons(connection)
    held += controls_view.hold_reasons(connection)
    held += orphan_reasons(orphans)
    # A pod that was removed between the queries had nothing left. One that was added blocks GC until it is known.
    unknown = sorted(reconcilable.keys() - pod_states.keys())
    held += [f"pod {name}: it was only just added" for name in unknown]
    facts = Facts(
        now,
        times,
        [
            PodFacts(
                name,
                state.watermark.at,
                state.reconciled_at,
                is_reconcilable=reconcilable.get(name, True),
                blocked_by=state.describe_blocks(name),
                paused_until=state.watermark.paused_until,
                managed=state.managed,
            )
            for name, state in sorted(pod_states.items())
        ],
        None if switch.enabled else switch.why,
        held,
        sorted(unsafe_findings),
        listing,
    )
    return FactsWithRows(facts, pod_states, orphans)


def orphan_reasons(count: int) -> list[str]:
    if not count:
        return []
    what = "1 open dead letter" if count == 1 else f"{count} open dead letters"
    remedy = "register each pod with `baleen pods add` and its prefixes, then `baleen dead-letters retry --pod …`"
    return [f"{what} of pods that are not registered: {remedy}"]
