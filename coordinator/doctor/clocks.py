"""Compare the clocks of registries, their databases and the object store with that of Baleen's database."""

import math
from datetime import datetime, timedelta

from coordinator.doctor.registry import failed_push_parts, no_event_part
from coordinator.doctor.results import RUN_AGAIN, Part, make_finding, not_tried, proved, refuted, unproved
from coordinator.doctor.visit import PushReport, Visit
from coordinator.domain.findings import Check, Finding
from coordinator.errors import BaleenError
from schemas.records import RegistryEvent

#: Object stores give times in whole seconds.
STORE_STEP = timedelta(seconds=1)
NO_TIME = timedelta()


def check_clocks(visit: Visit) -> Finding:
    """Compare the times of a push and of a stored object with those around them."""
    bound = timedelta(seconds=visit.instruments.settings.safety_clock_skew) / 2
    parts = failed_push_parts(visit)
    parts += [_registry_part(report, bound) for report in visit.reports]
    if not parts:
        parts = [not_tried("the registry", "no process of it answers", Check.REGISTRY_ANSWERS)]
    parts.append(_store_part(visit, bound))
    if visit.pod.kind.has_registry_database:
        parts.append(_database_part(visit, bound))
    return make_finding(Check.CLOCKS, parts, visit.pod_facts)


def _registry_part(report: PushReport, bound: timedelta) -> Part:
    where, push = str(report.push.place), report.push
    if report.manifest is None or push.asked_at is None or push.answered_at is None:
        return no_event_part(where)
    assert isinstance(report.manifest.record, RegistryEvent)
    return clock_part(where, clock_error(report.manifest.record.timestamp, push.asked_at, push.answered_at), bound)


def _store_part(visit: Visit, bound: timedelta) -> Part:
    blob = visit.scratch.make_layer()
    before = visit.read_clock()
    key = visit.scratch.store_blob(blob)
    after = visit.read_clock()
    stored = visit.instruments.store.head(key)
    where = "the object store"
    if stored is None:
        return unproved(where, "it does not have an object that was stored", RUN_AGAIN)
    return clock_part(where, clock_error(stored.modified_at, before, after, STORE_STEP), bound)


def _database_part(visit: Visit, bound: timedelta) -> Part:
    """Compare the clock that gives a registry's rows their times."""
    where = "the registry's database"
    before = visit.read_clock()
    try:
        found = visit.instruments.databases.of(visit.pod.name).read_clock()
    except BaleenError:
        return not_tried(where, "it could not be read", Check.REGISTRY_DATABASE)
    return clock_part(where, clock_error(found, before, visit.read_clock()), bound)


def clock_error(time: datetime, before: datetime, after: datetime, step: timedelta = NO_TIME) -> timedelta:
    """Return the least error of a clock that gave `time`, rounded down to its step, between `before` and `after`."""
    if time > after:
        return time - after
    return min(time + step - before, NO_TIME)


def clock_part(where: str, found: timedelta, bound: timedelta) -> Part:
    seconds, limit = found.total_seconds(), bound.total_seconds()
    sentence = (
        f"its clock is {seconds:+.3f} s off the database's; {limit:g} s are allowed, half of BALEEN_SAFETY_CLOCK_SKEW"
    )
    if abs(found) <= bound:
        return proved(where, sentence)
    enough = math.floor(2 * abs(seconds)) + 1
    return refuted(
        where,
        sentence,
        f"Run a time service (chrony, ntpd) on the machine of {where}, or on that of the database. Or set, for every "
        f"process of Baleen:\nBALEEN_SAFETY_CLOCK_SKEW={enough}s",
    )
