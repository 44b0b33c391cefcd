"""A registry that sends no events, declared so: only reconciles show what it holds, and each purge waits for one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from coordinator.domain.findings import CHECKS_OF_RUNS, UNMANAGED_CHECKS, Check, Result, describe_block
from coordinator.domain.gc import Facts, PodFacts, Times, Why, hide_policy, purge_policy
from coordinator.domain.perimeter import Listing

NOW = datetime(2030, 1, 10, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def facts(pod: PodFacts) -> Facts:
    return Facts(NOW, Times(DAY, DAY, HOUR), [pod], listing=Listing(NOW))


@pytest.mark.parametrize(
    ("reconciled", "hide", "purge"),
    [
        (None, Why.NOT_RECONCILED, Why.NOT_RECONCILED),
        (NOW - 3 * DAY, Why.NOT_RECONCILED, Why.NOT_RECONCILED),
        (NOW - 2 * DAY, None, Why.NOT_RECONCILED),
        (NOW - 2 * DAY + HOUR, None, None),
    ],
)
def test_it_needs_a_reconcile_and_no_watermark(
    reconciled: datetime | None, hide: Why | None, purge: Why | None
) -> None:
    """What became unreferenced two days ago goes once a reconcile began late enough, whatever was reported."""
    known = facts(PodFacts("pod", None, reconciled, managed=False))
    for policy, why in ((hide_policy(known), hide), (purge_policy(known), purge)):
        kept = policy.reason_to_keep(NOW - 2 * DAY)
        assert (None if kept is None else kept.why) is why


@pytest.mark.parametrize("check", list(Check))
def test_what_a_doctor_must_have_proved(check: Check) -> None:
    """GC is blocked until the doctor has proved each check that needs no events; repositories of no pod are checked by
    each run.
    """
    found = {each: Result.PROVED for each in Check if each is not check}
    text = describe_block(found, "pod", managed=False)
    assert (text is not None) is (check in UNMANAGED_CHECKS - CHECKS_OF_RUNS)
    assert Check.NO_DESCRIPTOR_CACHE in UNMANAGED_CHECKS
    assert describe_block({}, "pod", managed=False) is not None
