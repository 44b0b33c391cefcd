"""`explain`: every state of a blob has a history and an outlook."""

from datetime import UTC, datetime, timedelta
from itertools import product

from coordinator.domain.gc import Facts, PodFacts, Times, Why, hide_policy
from coordinator.domain.history import Entry, KnownBlob, Outlook, PendingHide, explain_blob
from coordinator.domain.lifecycle import CONCEALED, BlobState
from coordinator.domain.names import PodName
from coordinator.domain.perimeter import Listing
from coordinator.table.ledger import Decision

NOW = datetime(2030, 1, 10, tzinfo=UTC)
DAY = timedelta(days=1)
FACTS = Facts(NOW, Times(DAY, DAY, timedelta(hours=1)), [PodFacts("pod-a", NOW, NOW)], listing=Listing(NOW))
OLD = NOW - 5 * DAY


def known(state: BlobState, *, needed: bool = False, asked: str | None = None, pin: str | None = None) -> KnownBlob:
    hide = PendingHide(7, OLD, asked is not None, asked) if state in CONCEALED - {BlobState.PURGED} else None
    return KnownBlob(
        state, int(needed), 0, int(needed), ["pod-a"] * needed, OLD - DAY, None if needed else OLD, pin, hide
    )


def test_every_state_has_an_outcome_and_a_sentence() -> None:
    """The history of any blob ends with its present state, in a whole sentence."""
    for state, needed, asked, pin in product(BlobState, (False, True), (None, "a mistake"), (None, "an audit")):
        if needed == (state is BlobState.UNREFERENCED) or (not needed and state in {BlobState.LIVE, BlobState.MISSING}):
            continue  # there is no such blob
        explanation = explain_blob(known(state, needed=needed, asked=asked, pin=pin), FACTS, [], earlier=False)
        assert explanation.sentences[-1] == f"Now: {explanation.summary}"
        assert explanation.summary.endswith(".")
        assert "None" not in explanation.summary
        if state in CONCEALED and (needed or (asked and state is not BlobState.PURGED)):
            assert explanation.outcome is Outlook.BEING_RESTORED


def test_every_decision_has_a_sentence() -> None:
    """Each decision of the ledger has its own sentence, in the order of time."""
    entries = [Entry(OLD + n * DAY / 24, each.value, "because", 7, {}) for n, each in enumerate(Decision)]
    shown = explain_blob(known(BlobState.PURGED), FACTS, entries, earlier=False).sentences
    assert len(shown) == len(entries) + 2
    for each, sentence in zip(Decision, shown[1:-1], strict=True):
        assert f"UTC: {each.value}: because" not in sentence
    assert list(shown[:-1]) == sorted(shown[:-1])
    assert all("because" in sentence for sentence in shown[1:-1])


def test_all_reasons_are_reported() -> None:
    """All reasons that keep a blob are given, and `kept` is the first."""
    facts = FACTS._replace(blocked_by=["x", "y"], pods=[PodFacts("pod-a", None, None)])
    policy = hide_policy(facts)
    reasons = list(policy.reasons_to_keep(NOW, pinned=True))
    assert [each.why for each in reasons[:3]] == [Why.HELD, Why.HELD, Why.PINNED]
    assert {each.why for each in reasons[3:]} == {Why.GRACE, Why.NOT_REPORTED, Why.NOT_RECONCILED}
    assert policy.reason_to_keep(NOW, pinned=True) == reasons[0]
    assert list(hide_policy(FACTS).reasons_to_keep(OLD)) == []


def test_a_reason_with_an_end_says_when() -> None:
    """For a blob that waits for the grace alone the summary names the time at which that ends."""
    explanation = explain_blob(known(BlobState.UNREFERENCED)._replace(unreferenced_since=NOW), FACTS, [], earlier=False)
    assert explanation.outcome is Outlook.KEPT
    (reason,) = [each for each in explanation.reasons if each.kept.why is Why.GRACE]
    assert reason.until == NOW + DAY
    assert "until 2030-01-11 00:00:00 UTC" in explanation.summary


def test_what_a_registry_claims() -> None:
    """A claim that the last run found is a reason to keep an unreferenced blob."""
    claimed = known(BlobState.UNREFERENCED)._replace(claimed_by=PodName("gitlab"))
    explanation = explain_blob(claimed, FACTS, [], earlier=False)
    assert explanation.outcome is Outlook.KEPT
    assert [each.kept.why for each in explanation.reasons] == [Why.CLAIMED]
    assert "the registry database of pod gitlab lists it" in explanation.summary
