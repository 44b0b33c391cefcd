"""What garbage collection may hide and purge now: facts in, a policy out; of each blob it says go, or why it is kept.

A blob is *hidden* first: registries see it no more, its bytes stay. It is *purged* once everybody who could have seen
it before has provably reported, and nobody needed it. Both are questions of time: a blob that became unreferenced at
t_u may be hidden, one that was hidden at t_h may be purged, if that time is no later than each of some *bounds*. So a
policy is a few bounds and a list of what holds everything, made once for a page of blobs and asked for each.

| rule                                                                        | bound                               |
|-----------------------------------------------------------------------------|-------------------------------------|
| unreferenced for at least the grace                                         | t_u <= now - grace                  |
| every process has reported up to then                                       | t_u <= W                            |
| every pod's links were looked at since: a delete event may be older than    | t_u <= begin of the pod's reconcile |
| the push behind it, and some events never come                              |                                     |
| hidden for at least the quarantine                                          | t_h <= now - quarantine             |
| every request that was under way at t_h has ended, and everybody has        | t_h + R <= W                        |
| reported since                                                              |                                     |
| every pod's links were looked at since: some links never make an event, and | t_h + R <= begin of the reconcile   |
| a registry that is not managed sends none                                   |                                     |
| every repository belongs to a pod: it was looked for one that does not      | t_h + R <= begin of the listing     |

A request of a process that was paused ends within R of its end only, so that for a purge W and the reconciles have to
be R beyond the end of a pause, too: until they are, nothing is purged.

All times are by the database's clock. What is not known is a bound that nothing passes: unknown means keep.
Not here: which blobs there are (gc/table.py), the look at the links of former referrers, the deed (gc).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from coordinator.domain import perimeter
from coordinator.domain.perimeter import Listing


class Times(NamedTuple):
    """The safety times (settings.py has their reasons and floors)."""

    grace: timedelta
    quarantine: timedelta
    #: R: how long one request of a registry may run.
    request_bound: timedelta


class PodFacts(NamedTuple):
    """What is known of a pod."""

    name: str
    #: W; None while it is not known.
    watermark: datetime | None
    #: When its last whole reconcile began.
    reconciled_at: datetime | None
    #: Its links are in shared storage, where a reconcile looks.
    has_links: bool = True
    #: What keeps garbage collection away, in sentences.
    held_by: Sequence[str] = ()
    #: When a process of it was heard again, the last time that one may have been paused.
    paused_until: datetime | None = None
    #: Its registry sends events. Of one that does not, only a reconcile shows what it holds.
    managed: bool = True


class Facts(NamedTuple):
    """What is known of everything but single blobs, read at `now`."""

    now: datetime
    times: Times
    pods: Sequence[PodFacts]
    #: Why the kill switch is off; None while it is on.
    switched_off: str | None = None
    #: What holds all pods.
    held_by: Sequence[str] = ()
    #: Checks of a doctor that hold nothing, whatever came of them: for tests and demonstrations.
    in_spite_of: Sequence[str] = ()
    #: The last listing of repositories that no pod owns; None while none is known, which holds all pods.
    listing: Listing | None = None


class Why(StrEnum):
    """Why a blob is kept. The names are fixed: plans and scripts have them."""

    HELD = "held"
    PINNED = "pinned"
    GRACE = "grace"
    QUARANTINE = "quarantine"
    NOT_REPORTED = "not-reported"
    NOT_RECONCILED = "not-reconciled"
    #: No listing since shows that every repository belongs to a pod.
    NOT_LISTED = "not-listed"
    #: A former referrer's link is there, against what was told.
    LINKED = "linked"
    #: It is needed again.
    NEEDED = "needed"
    #: It was needed since, for a while.
    DISTURBED = "disturbed"


class Kept(NamedTuple):
    why: Why
    detail: str


class Bound(NamedTuple):
    """Nothing later than `at` passes; None: nothing at all does."""

    at: datetime | None
    kept: Kept


class Policy(NamedTuple):
    """For one step, hide or purge: `holds` keep everything, `bounds` what is later than one of them."""

    holds: Sequence[str]
    #: The least first.
    bounds: Sequence[Bound]

    @property
    def until(self) -> datetime | None:
        """The latest time that passes; None if nothing does."""
        return None if self.holds or not self.bounds else self.bounds[0].at

    @property
    def waits_for(self) -> str | None:
        """What keeps `until` from being later; None where holds keep everything."""
        return None if self.holds or not self.bounds else self.bounds[0].kept.detail

    def kept(self, at: datetime, *, pinned: bool = False) -> Kept | None:
        """Why a blob of that time is kept; None if it goes."""
        return next(self.reasons(at, pinned=pinned), None)

    def reasons(self, at: datetime, *, pinned: bool = False) -> Iterator[Kept]:
        """Give everything that keeps a blob of that time: it goes once none of it is left."""
        for hold in self.holds:
            yield Kept(Why.HELD, hold)
        if pinned:
            yield Kept(Why.PINNED, "it is pinned: `baleen unpin` lets it go")
        for bound in self.bounds:
            if bound.at is None or at > bound.at:
                yield bound.kept


class Amount(NamedTuple):
    blobs: int
    #: Bytes.
    size: int


class Limits(NamedTuple):
    """How much one run may take away. What is below the floor is never too much: small registries come and go."""

    #: Of the blobs, and of the bytes, that are served: percent.
    share_percent: int
    #: Times the most that one of the last runs took.
    over_history: int
    floor: Amount


def too_much(planned: Amount, stored: Amount, history: Sequence[Amount], limits: Limits) -> list[str]:
    """Say why a run would take more than the limits let it, in sentences; none if it would not.

    `stored`: what registries are served before it. `history`: what each of the last runs took.
    """
    told: list[str] = []
    for what, now, all_of, before, floor in (
        ("blobs", planned.blobs, stored.blobs, [run.blobs for run in history], limits.floor.blobs),
        ("bytes", planned.size, stored.size, [run.size for run in history], limits.floor.size),
    ):
        if now <= floor:
            continue
        if now * 100 > all_of * limits.share_percent:
            told.append(f"{now} {what} of {all_of} are more than {limits.share_percent} %")
        # Quiet runs say nothing of what a busy one may take.
        most = max(before, default=0)
        if most and now > max(most, floor) * limits.over_history:
            told.append(f"{now} {what} are more than {limits.over_history} times the {most} of any run before")
    return told


NO_POD: Final = "no pod is registered: nothing says who needs what"


def switched_off(why: str) -> str:
    return f"switched off: {why}"


def holds(facts: Facts) -> list[str]:
    """Everything for which nothing may be deleted now.

    Pods share the bytes: any pod may link any blob that it sees. So what is not known of one holds all.
    """
    told = [] if facts.switched_off is None else [switched_off(facts.switched_off)]
    told += facts.held_by
    if not facts.pods:
        told.append(NO_POD)
    told += perimeter.holds(facts.listing)
    return told + [f"pod {pod.name}: {reason}" for pod in facts.pods for reason in pod.held_by]


def hiding(facts: Facts) -> Policy:
    """What may be hidden, by the time since which it is unreferenced."""
    times = facts.times
    bounds = [
        Bound(facts.now - times.grace, Kept(Why.GRACE, f"unreferenced for less than {_hours(times.grace)}")),
        *(_reported(pod, timedelta(0)) for pod in facts.pods if pod.managed),
        *(_reconciled(pod, timedelta(0)) for pod in facts.pods if pod.has_links or not pod.managed),
    ]
    return Policy(holds(facts), _least_first(bounds))


def purging(facts: Facts) -> Policy:
    """What may be purged, by the time at which it was hidden."""
    times = facts.times
    bounds = [
        Bound(facts.now - times.quarantine, Kept(Why.QUARANTINE, f"hidden for less than {_hours(times.quarantine)}")),
        *(_reported(pod, times.request_bound) for pod in facts.pods if pod.managed),
        *(_reconciled(pod, times.request_bound) for pod in facts.pods if pod.has_links or not pod.managed),
        _listed(facts),
    ]
    return Policy(holds(facts), _least_first(bounds))


def finishing(facts: Facts) -> Policy:
    """What of a purge that an earlier job began, and did not finish, may be done now, by the time of its hide.

    That job has found all bounds kept. A repository that no pod owns may have come since, or it did not look for one.
    """
    return Policy(holds(facts), [_listed(facts)])


def purge_reasons(
    policy: Policy, hidden_at: datetime, *, needed: bool, disturbed: bool, pinned: bool
) -> Iterator[Kept]:
    """Give everything that keeps what was hidden then from being purged."""
    if disturbed:
        yield Kept(Why.NEEDED if needed else Why.DISTURBED, "it was needed, or asked back, since: it is restored")
        return
    yield from policy.reasons(hidden_at, pinned=pinned)


def _reported(pod: PodFacts, beyond: timedelta) -> Bound:
    at = _beyond(pod, pod.watermark, beyond)
    more = f", and {_hours(beyond)} beyond," if beyond else ""
    known = "how far is not known" if pod.watermark is None else f"it has up to {moment(pod.watermark)}"
    if at is None and pod.watermark is not None and pod.paused_until is not None:
        known += f"; a process was heard again at {moment(pod.paused_until)}: {_hours(beyond)} from then"
    return Bound(
        at,
        Kept(
            Why.NOT_REPORTED,
            f"pod {pod.name} has not reported up to then{more} in all of its processes ({known}): see "
            f"`baleen pods show {pod.name}`",
        ),
    )


def _reconciled(pod: PodFacts, beyond: timedelta) -> Bound:
    at = _beyond(pod, pod.reconciled_at, beyond)
    return Bound(
        at,
        Kept(
            Why.NOT_RECONCILED,
            f"the links of pod {pod.name} were not compared since: `baleen pods reconcile {pod.name}`, or wait for it",
        ),
    )


def _listed(facts: Facts) -> Bound:
    listing, beyond = facts.listing, facts.times.request_bound
    known = "it was not listed" if listing is None else f"the last listing began at {moment(listing.began_at)}"
    return Bound(
        None if listing is None else listing.began_at - beyond,
        Kept(
            Why.NOT_LISTED,
            f"the root was not listed {f'{_hours(beyond)} after that' if beyond else 'since'} for repositories that no "
            f"pod owns ({known}): the next run does it",
        ),
    )


def _beyond(pod: PodFacts, known: datetime | None, beyond: timedelta) -> datetime | None:
    """Up to when requests have ended, by what is known up to then; None if it is not known of any."""
    if known is None or (beyond and pod.paused_until is not None and known < pod.paused_until + beyond):
        return None
    return known - beyond


def _least_first(bounds: Sequence[Bound]) -> list[Bound]:
    return sorted(bounds, key=lambda bound: float("-inf") if bound.at is None else bound.at.timestamp())


def moment(at: datetime) -> str:
    """Write a time as sentences have it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _hours(time: timedelta) -> str:
    hours, seconds = divmod(time.total_seconds(), 3600)
    return f"{hours:.0f} h" if not seconds else f"{time.total_seconds():g} s"
