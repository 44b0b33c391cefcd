"""Explain why a blob is kept, or how it was deleted, in sentences.

Route: lookup/explain.py reads what is known of one blob -> `explain_blob` -> its outcome in a word and in a sentence,
every reason that keeps it, and its history.
Not here: what keeps a blob (gc.py), the ledger (table/ledger.py).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from coordinator.domain.gc import Facts, Kept, Why, format_time, hide_policy, hide_reasons, purge_policy, purge_reasons
from coordinator.domain.lifecycle import CONCEALED, BlobState
from coordinator.domain.names import PodName


class Outlook(StrEnum):
    """What will happen to the blob. The values are fixed: scripts use them."""

    NEEDED = "needed"
    #: Nothing references it, and it is served.
    KEPT = "kept"
    TO_BE_HIDDEN = "to-be-hidden"
    BEING_HIDDEN = "being-hidden"
    #: It is not served, and its bytes are kept.
    HIDDEN = "hidden"
    TO_BE_PURGED = "to-be-purged"
    BEING_PURGED = "being-purged"
    BEING_RESTORED = "being-restored"
    PURGED = "purged"
    MISSING = "missing"


class PendingHide(NamedTuple):
    """A pending hide: not undone, and not purged."""

    run: int
    hidden_at: datetime | None
    #: The blob was needed since the hide was decided, or an operator asked to undelete it.
    disturbed: bool
    asked_why: str | None


class KnownBlob(NamedTuple):
    """What is known of the blob now."""

    state: BlobState
    holdings: int
    links: int
    repositories: int
    pods: Sequence[str]
    first_seen: datetime
    unreferenced_since: datetime | None
    #: Why it is pinned.
    pin: str | None
    hide: PendingHide | None
    #: The pod whose registry confirms it without asking the object store, as the last run found.
    claimed_by: PodName | None = None

    @property
    def needed(self) -> bool:
        return self.unreferenced_since is None


class Entry(NamedTuple):
    """An entry of the ledger."""

    at: datetime
    decision: str
    why: str
    run: int | None
    evidence: Mapping[str, Any]


class Reason(NamedTuple):
    kept: Kept
    #: When this reason ends, if that is known.
    until: datetime | None


class Explanation(NamedTuple):
    outcome: Outlook
    summary: str
    reasons: Sequence[Reason]
    sentences: Sequence[str]


Summary = tuple[Outlook, str, Sequence[Reason]]


def explain_blob(known: KnownBlob, facts: Facts, history: Sequence[Entry], *, earlier: bool) -> Explanation:
    """Explain the blob. `earlier`: the ledger has entries before `history`."""
    if known.state in CONCEALED and (known.needed or _describe_undelete(known)):
        outcome, summary, reasons = _summarise_restoring(known)
    else:
        outcome, summary, reasons = _SUMMARISE_BY_STATE[known.state](known, facts)
    dated = [(known.first_seen, "a registry reported it for the first time")]
    dated += [(entry.at, _describe_entry(entry)) for entry in history]
    if known.state is BlobState.UNREFERENCED and known.unreferenced_since is not None:
        dated.append((known.unreferenced_since, "nothing references it since then"))
    sentences = [f"{format_time(at)}: {each}." for at, each in sorted(dated, key=lambda each: each[0])]
    if earlier:
        sentences.insert(1, "Earlier entries of the ledger are left out here.")
    return Explanation(outcome, summary, reasons, [*sentences, f"Now: {summary}"])


def _summarise_live(known: KnownBlob, _: Facts) -> Summary:
    needs = _describe_needs(known)
    return Outlook.NEEDED, f"It is needed: {needs}. It stays as long as one of them does.", [_needed_reason(needs)]


def _summarise_missing(known: KnownBlob, _: Facts) -> Summary:
    needs = _describe_needs(known)
    sentence = f"It is needed and its bytes are not in storage, which is an alarm: {needs}. Push it again."
    return Outlook.MISSING, sentence, [_needed_reason(needs)]


def _summarise_hiding(known: KnownBlob, _: Facts) -> Summary:
    return (
        Outlook.BEING_HIDDEN,
        f"Run {_describe_run(known)} is hiding it. If the run does not finish, the hide is undone.",
        [],
    )


def _summarise_purging(known: KnownBlob, _: Facts) -> Summary:
    if known.hide is not None and known.hide.disturbed:
        sentence = "Its purge was cancelled: it is served again once no delete of it can still be under way."
        return Outlook.BEING_RESTORED, sentence, []
    return Outlook.BEING_PURGED, f"Run {_describe_run(known)} has begun to delete its bytes: some may be gone.", []


def _summarise_purged(_: KnownBlob, __: Facts) -> Summary:
    return Outlook.PURGED, "Its bytes are deleted, and nothing needs it. It can be pushed again.", []


def _summarise_unreferenced(known: KnownBlob, facts: Facts) -> Summary:
    since = known.unreferenced_since
    assert since is not None
    found = hide_reasons(hide_policy(facts), since, pinned=known.pin is not None, claimed_by=known.claimed_by)
    reasons = _put_pin_first(known, list(found))
    if not reasons:
        sentence = f"Nothing references it since {format_time(since)}, and nothing keeps it: the next run hides it."
        return Outlook.TO_BE_HIDDEN, sentence, []
    grace = since + facts.times.grace
    timed = [Reason(each, grace if each.why is Why.GRACE else None) for each in reasons]
    sentence = f"Nothing references it since {format_time(since)}, and it is kept: {_describe_first_reason(timed)}"
    return Outlook.KEPT, sentence, timed


def _summarise_hidden(known: KnownBlob, facts: Facts) -> Summary:
    at = None if known.hide is None else known.hide.hidden_at
    assert known.hide is not None
    assert at is not None
    pinned, disturbed = known.pin is not None, known.hide.disturbed
    reasons = list(purge_reasons(purge_policy(facts), at, needed=False, disturbed=disturbed, pinned=pinned))
    sentence = f"It is hidden from registries since {format_time(at)}, and its bytes are kept"
    if not reasons:
        return Outlook.TO_BE_PURGED, f"{sentence}; there is no reason left to keep them: the next run deletes them.", []
    if disturbed:
        return (
            Outlook.HIDDEN,
            f"{sentence}: it was needed for a while since then, so a run undoes the hide.",
            [Reason(each, None) for each in reasons],
        )
    quarantine = at + facts.times.quarantine
    timed = [
        Reason(each, quarantine if each.why is Why.QUARANTINE else None) for each in _put_pin_first(known, reasons)
    ]
    return (
        Outlook.HIDDEN,
        f"{sentence}: {_describe_first_reason(timed)} To restore it, run `baleen blob undelete`.",
        timed,
    )


def _put_pin_first(known: KnownBlob, reasons: Sequence[Kept]) -> list[Kept]:
    """Put the reasons of this blob before those of all blobs, and name why it is pinned."""
    pinned = f"it is pinned ({known.pin}): remove the pin with `baleen unpin`"
    named = [Kept(each.why, pinned) if each.why is Why.PINNED else each for each in reasons]
    order = {Why.PINNED: 0, Why.GRACE: 1, Why.QUARANTINE: 1}
    return sorted(named, key=lambda each: order.get(each.why, 2))


def _describe_first_reason(reasons: Sequence[Reason]) -> str:
    first, *others = reasons
    until = "" if first.until is None else f", until {format_time(first.until)}"
    more = f" ({len(others)} more {'reason' if len(others) == 1 else 'reasons'} below)" if others else ""
    return f"{first.kept.detail}{until}{more}."


def _summarise_restoring(known: KnownBlob) -> Summary:
    reasons = [_needed_reason(_describe_needs(known))] if known.needed else []
    why = f"is needed ({_describe_needs(known)})" if known.needed else f"was undeleted ({_describe_undelete(known)})"
    if known.state is BlobState.PURGED:
        sentence = f"Its bytes were deleted, and it {why}: workers check whether they were pushed again."
    elif known.state is BlobState.HIDDEN:
        sentence = f"It is hidden and {why}: workers restore it within seconds."
    else:
        sentence = f"It {why}: workers restore it, for good once no delete of it can still be under way."
    return Outlook.BEING_RESTORED, sentence, reasons


def _describe_undelete(known: KnownBlob) -> str | None:
    return None if known.hide is None else known.hide.asked_why


def _describe_run(known: KnownBlob) -> str:
    return "?" if known.hide is None else str(known.hide.run)


def _needed_reason(needs: str) -> Reason:
    return Reason(Kept(Why.NEEDED, needs), None)


def _describe_needs(known: KnownBlob) -> str:
    """Say what needs it: counts of holdings and links, and the pods."""
    parts = []
    if known.holdings:
        parts.append(_format_count(known.holdings, "holding needs it", "holdings need it"))
    if known.links:
        parts.append(_format_count(known.links, "repository links it directly", "repositories link it directly"))
    pods = (
        f", in {_format_count(known.repositories, 'repository', 'repositories')} of pod{'s' * (len(known.pods) != 1)} "
    )
    return " and ".join(parts) + (f"{pods}{', '.join(known.pods)}" if known.pods else "")


_SUMMARISE_BY_STATE: Final[Mapping[BlobState, Callable[[KnownBlob, Facts], Summary]]] = {
    BlobState.LIVE: _summarise_live,
    BlobState.UNREFERENCED: _summarise_unreferenced,
    BlobState.HIDING: _summarise_hiding,
    BlobState.HIDDEN: _summarise_hidden,
    BlobState.PURGING: _summarise_purging,
    BlobState.PURGED: _summarise_purged,
    BlobState.MISSING: _summarise_missing,
}

#: By the decisions of the ledger.
_SENTENCES: Final = {
    "hide": "{who} decided to hide it: {why}",
    "hidden": "{who} hid it: {why}, and {bytes} are kept",
    "purge": "{who} decided to delete its bytes: {why}",
    "purged": "{who} deleted its bytes: {why}; {freed} of storage were freed",
    "restored": "it was served again: {why}",
    "undone": "a hide of it was undone: {why}",
    "kept": "{who} kept it: {why}",
    "shown-by-others": "{who} did not delete its bytes, which is an alarm: {why}",
    "pinned": "an operator pinned it: {why}",
    "unpinned": "an operator removed the pin: {why}",
    "asked-back": "an operator asked to undelete it: {why}",
    "accepted": "{by} accepted that its link in {repository} is gone: {why}",
}


def _describe_entry(entry: Entry) -> str:
    evidence = entry.evidence
    sentence = _SENTENCES.get(entry.decision, "{decision}: {why}").format(
        decision=entry.decision,
        who="a worker" if entry.run is None else f"run {entry.run}",
        why=entry.why,
        bytes=_format_bytes(evidence.get("bytes")),
        freed=_format_bytes(evidence.get("freed_bytes")),
        by=evidence.get("by", "an operator"),
        repository=evidence.get("repository", "a repository"),
    )
    since = evidence.get("unreferenced_since")
    if isinstance(since, str):
        sentence += f" (unreferenced since {format_time(datetime.fromisoformat(since))})"
    return sentence


def _format_bytes(count: object) -> str:
    return f"{count} bytes" if isinstance(count, int) else "its bytes"


def _format_count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
