"""Compare the clocks of registries and of the object store with the database's, by which all is measured."""

import math
from datetime import datetime, timedelta

from coordinator.doctor.registry import failed, no_event
from coordinator.doctor.results import AGAIN, Part, finding, follows, proved, refuted, unproved
from coordinator.doctor.visit import Report, Visit
from coordinator.domain.findings import Check, Finding
from schemas.records import RegistryEvent

#: Object stores give times in whole seconds.
STORE_STEP = timedelta(seconds=1)
NONE = timedelta()


def clocks(visit: Visit) -> Finding:
    """Compare the times of a push and of a stored object with those around them."""
    bound = timedelta(seconds=visit.instruments.settings.safety_clock_skew) / 2
    parts = failed(visit)
    parts += [_registry(report, bound) for report in visit.reports]
    if not parts:
        parts = [follows("the registry", "no process of it answers", Check.REGISTRY_ANSWERS)]
    return finding(Check.CLOCKS, [*parts, _store(visit, bound)], visit.patient)


def _registry(report: Report, bound: timedelta) -> Part:
    where, push = str(report.push.place), report.push
    if report.manifest is None or push.asked_at is None or push.answered_at is None:
        return no_event(where)
    assert isinstance(report.manifest.record, RegistryEvent)
    return clock_part(where, off(report.manifest.record.timestamp, push.asked_at, push.answered_at), bound)


def _store(visit: Visit, bound: timedelta) -> Part:
    blob = visit.scratch.layer()
    before = visit.now()
    key = visit.scratch.put(blob)
    after = visit.now()
    stored = visit.instruments.store.head(key)
    where = "the object store"
    if stored is None:
        return unproved(where, "it does not have an object that was stored", AGAIN)
    return clock_part(where, off(stored.modified_at, before, after, STORE_STEP), bound)


def off(time: datetime, before: datetime, after: datetime, step: timedelta = NONE) -> timedelta:
    """Return the least error of a clock that gave `time`, rounded down to its step, between `before` and `after`."""
    if time > after:
        return time - after
    return min(time + step - before, NONE)


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
