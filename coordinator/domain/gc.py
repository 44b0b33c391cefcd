"""Decide what garbage collection may hide and purge now, and why every other blob is kept.

A blob is *hidden* first: registries no longer see it, and its bytes stay. It is *purged* once every process that could
have seen it before has provably reported, and none needed it. Both depend on time: a blob that became unreferenced at
t_u may be hidden, and one that was hidden at t_h may be purged, if that time is no later than each *bound*. A policy is
a list of bounds and a list of holds, made once for a page of blobs and applied to each.

| rule                                                                        | bound                               |
|-----------------------------------------------------------------------------|-------------------------------------|
| unreferenced for at least the grace                                         | t_u <= now - grace                  |
| every process has reported up to then                                       | t_u <= W                            |
| every pod's links were read since: a delete event may be older than the     | t_u <= begin of the pod's reconcile |
| push behind it, and some events never come                                  |                                     |
| hidden for at least the quarantine                                          | t_h <= now - quarantine             |
| every request that was under way at t_h has ended, and every process has    | t_h + R <= W                        |
| reported since                                                              |                                     |
| every pod's links were read since: some links never make an event, and a    | t_h + R <= begin of the reconcile   |
| registry that is not managed sends none                                     |                                     |
| every repository belongs to a pod: the root was listed for others           | t_h + R <= begin of the listing     |

A request of a paused process may end up to R after the end of the pause. So for a purge, W and the reconciles must also
be R beyond the end of a pause; until then nothing is purged.

All times are by the database's clock. What is not known is a bound that nothing passes: unknown means keep.
Not here: which blobs there are (gc/table.py), checking the links of former referrers, hiding and purging (gc).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from coordinator.domain import perimeter
from coordinator.domain.names import PodName
from coordinator.domain.perimeter import Listing


class Times(NamedTuple):
    """The safety times (settings.py has their reasons and floors)."""

    grace: timedelta
    quarantine: timedelta
    #: R: how long one request of a registry may run.
    request_bound: timedelta


class PodFacts(NamedTuple):
    """What GC needs to know about one pod."""

    name: str
    #: W; None while it is not known.
    watermark: datetime | None
    #: When its last whole reconcile began.
    reconciled_at: datetime | None
    #: Its links are in shared storage, where a reconcile reads them.
    is_reconcilable: bool = True
    #: What blocks GC, in sentences.
    blocked_by: Sequence[str] = ()
    #: When one of its processes last sent an echo after it may have been paused.
    paused_until: datetime | None = None
    #: Its registry sends events. If it does not, only a reconcile shows what it holds.
    managed: bool = True


class Facts(NamedTuple):
    """What GC needs to know beside the blobs, read at `now`."""

    now: datetime
    times: Times
    pods: Sequence[PodFacts]
    #: Why the kill switch is off; None while it is on.
    switched_off: str | None = None
    #: What blocks GC for all pods.
    blocked_by: Sequence[str] = ()
    #: Checks of a doctor that block nothing, whatever their result: for tests and demonstrations.
    unsafe_findings: Sequence[str] = ()
    #: The last listing of repositories that no pod owns; None while none is known, which blocks GC.
    listing: Listing | None = None


class Why(StrEnum):
    """Why a blob is kept. The values are fixed: plans show them and scripts use them."""

    HELD = "held"
    PINNED = "pinned"
    GRACE = "grace"
    QUARANTINE = "quarantine"
    NOT_REPORTED = "not-reported"
    NOT_RECONCILED = "not-reconciled"
    #: No listing since shows that every repository belongs to a pod.
    NOT_LISTED = "not-listed"
    #: A former referrer still links it, against what its registry reported.
    LINKED = "linked"
    #: A registry would confirm it to clients without asking the object store.
    CLAIMED = "claimed"
    #: It is needed again.
    NEEDED = "needed"
    #: It was needed for a while since it was hidden.
    DISTURBED = "disturbed"


class Kept(NamedTuple):
    why: Why
    detail: str


class Bound(NamedTuple):
    """A blob whose time is later than `at` is kept; with None, every blob is."""

    at: datetime | None
    kept: Kept


class Policy(NamedTuple):
    """The rules of one step, hide or purge: `holds` keep every blob, `bounds` keep what is later than one of them."""

    holds: Sequence[str]
    #: The least first.
    bounds: Sequence[Bound]

    @property
    def until(self) -> datetime | None:
        """The latest time that passes; None if nothing does."""
        return None if self.holds or not self.bounds else self.bounds[0].at

    @property
    def waits_for(self) -> str | None:
        """The reason why `until` is not later; None where holds keep everything."""
        return None if self.holds or not self.bounds else self.bounds[0].kept.detail

    def reason_to_keep(self, at: datetime, *, pinned: bool = False) -> Kept | None:
        """Why a blob of that time is kept; None if it goes."""
        return next(self.reasons_to_keep(at, pinned=pinned), None)

    def reasons_to_keep(self, at: datetime, *, pinned: bool = False) -> Iterator[Kept]:
        """Give every reason to keep a blob of that time: it is deleted once none is left."""
        for hold in self.holds:
            yield Kept(Why.HELD, hold)
        if pinned:
            yield Kept(Why.PINNED, "it is pinned: remove the pin with `baleen unpin`")
        for bound in self.bounds:
            if bound.at is None or at > bound.at:
                yield bound.kept


class Amount(NamedTuple):
    blobs: int
    #: Bytes.
    size: int


class Limits(NamedTuple):
    """How much one run may delete. Less than the floor is never too much: small registries come and go."""

    #: Percent of the blobs, and of the bytes, that are served.
    share_percent: int
    #: How many times the most that one of the last runs deleted.
    over_history: int
    floor: Amount


def describe_excess(planned: Amount, stored: Amount, history: Sequence[Amount], limits: Limits) -> list[str]:
    """Return why a run would delete more than the limits permit, in sentences; none if it would not.

    `stored`: what is served before the run. `history`: what each of the last runs deleted.
    """
    reasons: list[str] = []
    for what, now, all_of, before, floor in (
        ("blobs", planned.blobs, stored.blobs, [run.blobs for run in history], limits.floor.blobs),
        ("bytes", planned.size, stored.size, [run.size for run in history], limits.floor.size),
    ):
        if now <= floor:
            continue
        if now * 100 > all_of * limits.share_percent:
            reasons.append(f"{now} {what} of {all_of} are more than {limits.share_percent} %")
        # Runs that deleted nothing do not limit the next one.
        most = max(before, default=0)
        if most and now > max(most, floor) * limits.over_history:
            reasons.append(f"{now} {what} are more than {limits.over_history} times the {most} of any earlier run")
    return reasons


NO_POD: Final = "no pod is registered, so it is not known which blobs are needed: register one with `baleen pods add`"


def describe_switched_off(why: str) -> str:
    return f"switched off: {why}"


def block_reasons(facts: Facts) -> list[str]:
    """Return every reason why nothing may be deleted now.

    Pods share blobs: any pod may link any blob that it sees. So what is not known about one pod blocks GC for all.
    """
    reasons = [] if facts.switched_off is None else [describe_switched_off(facts.switched_off)]
    reasons += facts.blocked_by
    if not facts.pods:
        reasons.append(NO_POD)
    reasons += perimeter.block_reasons(facts.listing)
    return reasons + [f"pod {pod.name}: {reason}" for pod in facts.pods for reason in pod.blocked_by]


def hide_policy(facts: Facts) -> Policy:
    """Return the policy for hiding, by the time since which a blob is unreferenced."""
    times = facts.times
    bounds = [
        Bound(facts.now - times.grace, Kept(Why.GRACE, f"unreferenced for less than {_format_hours(times.grace)}")),
        *(_reported_bound(pod, timedelta(0)) for pod in reporting_pods(facts)),
        *(_reconciled_bound(pod, timedelta(0)) for pod in facts.pods if pod.is_reconcilable or not pod.managed),
    ]
    return Policy(block_reasons(facts), _sort_bounds(bounds))


def purge_policy(facts: Facts) -> Policy:
    """Return the policy for purging, by the time at which a blob was hidden."""
    times, beyond = facts.times, time_until_requests_end(facts.times)
    bounds = [
        Bound(
            facts.now - times.quarantine,
            Kept(Why.QUARANTINE, f"hidden for less than {_format_hours(times.quarantine)}"),
        ),
        *(_reported_bound(pod, beyond) for pod in reporting_pods(facts)),
        *(_reconciled_bound(pod, beyond) for pod in facts.pods if pod.is_reconcilable or not pod.managed),
        _listed_bound(facts),
    ]
    return Policy(block_reasons(facts), _sort_bounds(bounds))


def finish_policy(facts: Facts) -> Policy:
    """Return the policy for finishing a purge that an earlier job began, by the time at which a blob was hidden.

    That job has found all bounds met. A repository that no pod owns may have appeared since, or that job did not check.
    """
    return Policy(block_reasons(facts), [_listed_bound(facts)])


def hide_reasons(policy: Policy, at: datetime, *, pinned: bool, claimed_by: PodName | None) -> Iterator[Kept]:
    """Yield why a blob that is unreferenced since `at` is not hidden; `claimed_by`: a pod, as the last run found."""
    yield from policy.reasons_to_keep(at, pinned=pinned)
    if claimed_by is not None:
        yield Kept(Why.CLAIMED, describe_claim(claimed_by))


def describe_claim(pod: PodName) -> str:
    return f"the registry database of pod {pod} lists it, so clients may rely on it without asking the object store"


def purge_reasons(
    policy: Policy, hidden_at: datetime, *, needed: bool, disturbed: bool, pinned: bool
) -> Iterator[Kept]:
    """Give every reason why a blob that was hidden at that time may not be purged."""
    if disturbed:
        yield Kept(
            Why.NEEDED if needed else Why.DISTURBED, "it was needed or undeleted since it was hidden: it is restored"
        )
        return
    yield from policy.reasons_to_keep(hidden_at, pinned=pinned)


def reporting_pods(facts: Facts) -> list[PodFacts]:
    """Return the pods whose watermarks count: all that send events (rule 2)."""
    return [pod for pod in facts.pods if pod.managed]


def time_until_requests_end(times: Times) -> timedelta:
    """Return how long after t_h the last request that saw the blob has ended (rule 3)."""
    return times.request_bound


def reported_until(pod: PodFacts, beyond: timedelta) -> datetime | None:
    """Return the time up to which the pod has reported what its requests did; None if not known."""
    return _requests_ended_until(pod, pod.watermark, beyond)


def reconciled_until(pod: PodFacts, beyond: timedelta) -> datetime | None:
    """Return the time up to which a reconcile has seen what the pod's requests did; None if not known."""
    return _requests_ended_until(pod, pod.reconciled_at, beyond)


def _reported_bound(pod: PodFacts, beyond: timedelta) -> Bound:
    at = reported_until(pod, beyond)
    more = f"{_format_hours(beyond)} after then" if beyond else "then"
    known = "the watermark is not known" if pod.watermark is None else f"watermark {format_time(pod.watermark)}"
    if at is None and pod.watermark is not None and pod.paused_until is not None:
        known += (
            f"; a process may have been paused until {format_time(pod.paused_until)}: {_format_hours(beyond)} from then"
        )
    return Bound(
        at,
        Kept(
            Why.NOT_REPORTED,
            f"not all processes of pod {pod.name} have reported up to {more} ({known}): see "
            f"`baleen pods show {pod.name}`",
        ),
    )


def _reconciled_bound(pod: PodFacts, beyond: timedelta) -> Bound:
    return Bound(
        reconciled_until(pod, beyond),
        Kept(
            Why.NOT_RECONCILED,
            f"pod {pod.name} has not been reconciled since then: run `baleen pods reconcile {pod.name}`, or wait for "
            "the scheduler",
        ),
    )


def _listed_bound(facts: Facts) -> Bound:
    listing, beyond = facts.listing, time_until_requests_end(facts.times)
    known = "no listing is known" if listing is None else f"the last listing began at {format_time(listing.began_at)}"
    return Bound(
        None if listing is None else listing.began_at - beyond,
        Kept(
            Why.NOT_LISTED,
            "the root has not been listed for repositories that no pod owns "
            f"{f'{_format_hours(beyond)} after then' if beyond else 'since then'} ({known}): the next run lists it",
        ),
    )


def _requests_ended_until(pod: PodFacts, known: datetime | None, beyond: timedelta) -> datetime | None:
    """Return the time up to which all requests have ended, given what is known up to `known`; None if not known."""
    if known is None or (beyond and pod.paused_until is not None and known < pod.paused_until + beyond):
        return None
    return known - beyond


def _sort_bounds(bounds: Sequence[Bound]) -> list[Bound]:
    return sorted(bounds, key=lambda bound: float("-inf") if bound.at is None else bound.at.timestamp())


def format_time(at: datetime) -> str:
    """Format a time for a sentence."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _format_hours(time: timedelta) -> str:
    hours, seconds = divmod(time.total_seconds(), 3600)
    return f"{hours:.0f} h" if not seconds else f"{time.total_seconds():g} s"
