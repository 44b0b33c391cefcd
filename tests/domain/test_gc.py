"""What may be hidden and purged: each bound is needed, unknown means keep, and any hold stops everything."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.gc import (
    Amount,
    Facts,
    Limits,
    PodFacts,
    Times,
    Why,
    describe_excess,
    finish_policy,
    hide_policy,
    purge_policy,
)
from coordinator.domain.perimeter import Listing

NOW = datetime(2030, 1, 10, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
TIMES = Times(DAY, DAY, HOUR)
FRESH = PodFacts("pod-a", NOW, NOW)
LISTED = Listing(NOW)


def facts(*pods: PodFacts, **more: Any) -> Facts:
    return Facts(NOW, TIMES, pods or (FRESH,), **{"listing": LISTED} | more)


@pytest.mark.parametrize("policy", [hide_policy, purge_policy])
def test_a_day_and_no_less(policy: Any) -> None:
    """When all is known a blob is hidden after the grace, and purged after the quarantine."""
    made = policy(facts())
    why = Why.GRACE if policy is hide_policy else Why.QUARANTINE
    assert made.reason_to_keep(NOW - DAY) is None
    assert made.reason_to_keep(NOW - DAY + timedelta(microseconds=1)).why is why
    assert made.until == NOW - DAY


def test_a_time_that_lies_in_the_future() -> None:
    """A blob that was hidden or unreferenced at a time in the future is kept, even with no grace and quarantine."""
    known = Facts(NOW, Times(timedelta(), timedelta(), timedelta()), [FRESH], listing=LISTED)
    for policy in (hide_policy(known), purge_policy(known)):
        assert policy.reason_to_keep(NOW) is None
        assert policy.reason_to_keep(NOW + timedelta(microseconds=1)) is not None


@pytest.mark.parametrize(
    ("pod", "hide", "purge"),
    [
        (FRESH._replace(watermark=None), Why.NOT_REPORTED, Why.NOT_REPORTED),
        (FRESH._replace(watermark=NOW - 3 * DAY), Why.NOT_REPORTED, Why.NOT_REPORTED),
        (FRESH._replace(watermark=NOW - 2 * DAY), None, Why.NOT_REPORTED),
        (FRESH._replace(watermark=NOW - 2 * DAY + HOUR), None, None),
        (FRESH._replace(reconciled_at=None), Why.NOT_RECONCILED, Why.NOT_RECONCILED),
        (FRESH._replace(reconciled_at=NOW - 3 * DAY), Why.NOT_RECONCILED, Why.NOT_RECONCILED),
        (FRESH._replace(reconciled_at=NOW - 2 * DAY), None, Why.NOT_RECONCILED),
        (FRESH._replace(reconciled_at=NOW - 2 * DAY + HOUR), None, None),
        (FRESH._replace(reconciled_at=None, is_reconcilable=False), None, None),
        (FRESH._replace(blocked_by=["a dead letter"]), Why.HELD, Why.HELD),
        # A process was paused until then: what it was doing may take until R beyond.
        (FRESH._replace(paused_until=NOW - HOUR), None, None),
        (FRESH._replace(paused_until=NOW - HOUR + timedelta(microseconds=1)), None, Why.NOT_REPORTED),
        (FRESH._replace(paused_until=NOW - DAY, watermark=NOW - DAY + HOUR), None, None),
        (FRESH._replace(paused_until=NOW - DAY, watermark=NOW - DAY), None, Why.NOT_REPORTED),
        (FRESH._replace(paused_until=NOW - DAY, reconciled_at=NOW - DAY), None, Why.NOT_RECONCILED),
    ],
)
def test_one_pod_keeps_all(pod: PodFacts, hide: Why | None, purge: Why | None) -> None:
    """One pod that has not reported keeps a blob of two days ago, whatever other pods reported (rules 2 and 3)."""
    known = facts(FRESH, pod._replace(name="pod-b"), FRESH._replace(name="pod-c"))
    for policy, why in ((hide_policy(known), hide), (purge_policy(known), purge)):
        kept = policy.reason_to_keep(NOW - 2 * DAY)
        assert (None if kept is None else kept.why) is why
        if kept is not None:
            assert "pod-b" in kept.detail


def test_what_holds_all() -> None:
    """The switch, holds of all pods, and a table without pods keep everything, and are named."""
    for known, reason in (
        (facts(switched_off="an incident"), "switched off: an incident"),
        (facts(blocked_by=["letters of nobody"]), "letters of nobody"),
        (Facts(NOW, TIMES, []), "no pod"),
        (facts(listing=None), "not known whether every stored repository belongs to a pod"),
        (facts(listing=Listing(NOW, ["team/x", "y"])), "no pod owns team/x, y, which are stored in the root"),
        (facts(listing=Listing(NOW, [], complete=False)), "no pod owns some repositories and more"),
    ):
        for policy in (hide_policy(known), purge_policy(known), finish_policy(known)):
            assert policy.until is None
            kept = policy.reason_to_keep(NOW - 100 * DAY)
            assert kept.why is Why.HELD
            assert reason in kept.detail


def test_a_pin() -> None:
    """A pinned blob is kept, however old."""
    for policy in (hide_policy(facts()), purge_policy(facts())):
        kept = policy.reason_to_keep(NOW - 100 * DAY, pinned=True)
        assert kept.why is Why.PINNED


times = st.none() | st.integers(0, 200).map(lambda hours: NOW - timedelta(hours=hours))
pods = st.builds(PodFacts, st.just("pod"), times, times, st.booleans(), st.just(()), times, st.booleans())


@given(
    known=st.lists(pods, min_size=1, max_size=4),
    at=st.integers(0, 300).map(lambda hours: NOW - hours * HOUR),
    listed=st.integers(0, 300).map(lambda hours: NOW - hours * HOUR),
)
def test_bounds_are_the_rules(known: list[PodFacts], at: datetime, listed: datetime) -> None:
    """A blob is hidden or purged exactly if every pod meets every rule; these are the blobs not later than `until`."""
    given_facts = facts(*known, listing=Listing(listed))
    hide, purge, finish = hide_policy(given_facts), purge_policy(given_facts), finish_policy(given_facts)
    marks = [pod.watermark for pod in known if pod.managed]
    reconciled = [pod.reconciled_at for pod in known if pod.is_reconcilable or not pod.managed]
    wanted = at <= NOW - DAY and all(mark is not None and at <= mark for mark in [*marks, *reconciled])
    assert (hide.reason_to_keep(at) is None) is wanted
    assert (hide.until is not None and at <= hide.until) is wanted
    # A pause of a pod concerns the requests of its own processes.
    ended_of = [max(at, pod.paused_until or at) + HOUR for pod in known]
    wanted = at <= NOW - DAY and all(
        each is not None and each >= ended
        for pod, ended in zip(known, ended_of, strict=True)
        for each in [
            *([pod.watermark] if pod.managed else []),
            *([pod.reconciled_at] if pod.is_reconcilable or not pod.managed else []),
        ]
    )
    is_listed = at + HOUR <= listed
    assert (purge.reason_to_keep(at) is None) is (wanted and is_listed)
    assert (purge.until is not None and at <= purge.until) is (wanted and is_listed)
    assert (finish.reason_to_keep(at) is None) is is_listed


LIMITS = Limits(10, 5, Amount(100, 1000))
EARLIER = [Amount(10, 0), Amount(100, 0)]


@pytest.mark.parametrize(
    ("planned", "history", "reason"),
    [
        (Amount(100, 1000), [], []),
        (Amount(1000, 1000), [], []),
        (Amount(1001, 1000), [], ["1001 blobs of 10000 are more than 10 %"]),
        (Amount(100, 10_001), [], ["10001 bytes of 100000 are more than 10 %"]),
        (Amount(501, 1), EARLIER, ["501 blobs are more than 5 times the 100 of any earlier run"]),
        (Amount(500, 1), EARLIER, []),
        (Amount(500, 1), [Amount(10, 0)], []),
        (Amount(900, 1), [Amount(0, 0), Amount(0, 0)], []),
    ],
)
def test_too_much(planned: Amount, history: list[Amount], reason: list[str]) -> None:
    """A run is limited to a share of the blobs and bytes and to a multiple of earlier runs, but a few may always go."""
    assert describe_excess(planned, Amount(10_000, 100_000), history, LIMITS) == reason
