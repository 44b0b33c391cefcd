"""What follows from what was seen, without a pod: verdicts, their joining, and what they hold."""

import datetime as dt
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coordinator.domain.findings import Check, Finding, Verdict, hold, in_order
from coordinator.ingest.tail import Told
from coordinator.ingest.topics import Finding as TopicFinding
from coordinator.ingest.topics import TopicReport
from coordinator.pods.doctor import clocks, events, kafka, storage
from coordinator.pods.doctor.checks import CHECKS
from coordinator.pods.doctor.texts import TEXTS
from coordinator.pods.doctor.verdicts import SHOWN, finding, proved, refuted, unproved
from coordinator.pods.doctor.visit import Place, Push, Report
from coordinator.pods.images import make_image, make_layer
from schemas.records import ReferenceRecord, RegistryEvent, RegistryWatermark

PROVED, REFUTED, UNPROVED = Verdict.PROVED, Verdict.REFUTED, Verdict.UNPROVED
NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
IMAGE = make_image("judged")
LAST = make_layer("judged/last")
NONCE = "0123456789abcdef" * 2
PARTITIONS = 2


class Story:
    """Builds what was told of a push, record by record."""

    def __init__(self) -> None:
        place = Place("http://registry:5000", "10.0.0.1", cast("Any", None))
        self._push = Push(place, IMAGE, NONCE, LAST, NOW, NOW)
        self._offset = 0
        self.told: dict[str, Told] = {}
        self.echoes: list[Told] = []

    def event(
        self, digest: str, *, source: str = "one", partition: int = 0, at: float | None = None, **more: Any
    ) -> None:
        self._offset += 1
        moment = NOW + dt.timedelta(seconds=self._offset if at is None else at)
        record = RegistryEvent(
            id=f"{self._offset}",
            action="push",
            pod="p",
            repository="p/r",
            timestamp=moment,
            digest=digest,
            source=source,
            **more,
        )
        self.told[digest] = Told(partition, self._offset, record)

    def echo(self, partition: int, source: str = "one") -> None:
        self._offset += 1
        record = RegistryWatermark(action="watermark", pod="p", source=source, nonce=NONCE, partitions=PARTITIONS)
        self.echoes.append(Told(partition, self._offset, record))

    def blobs(self, *, but: int = 0) -> None:
        for blob in IMAGE.blobs[but:]:
            self.event(blob.digest)

    def manifest(self, **more: Any) -> None:
        listed = [ReferenceRecord(blob.digest) for blob in IMAGE.blobs]
        self.event(IMAGE.digest, **({"references": listed} | more))

    def report(self) -> Report:
        blobs = {blob.digest: self.told[blob.digest] for blob in IMAGE.blobs if blob.digest in self.told}
        return Report(self._push, blobs, self.told.get(IMAGE.digest), self.echoes, self.told.get(LAST.digest))


def whole() -> Story:
    story = Story()
    story.blobs()
    story.manifest()
    for partition in range(PARTITIONS):
        story.echo(partition)
    story.event(LAST.digest)
    return story


def verdicts(report: Report) -> dict[str, Verdict]:
    return {
        "arrival": events.arrival(report, 1).verdict,
        "references": events.references(report).verdict,
        "order": events.order(report).verdict,
        "echo": events.echo(report, 1).verdict,
    }


def test_a_push_that_was_told_well() -> None:
    """With everything told in order, all that is judged of it is proved, and nothing more is waited for."""
    report = whole().report()
    assert set(verdicts(report).values()) == {PROVED}
    assert report.is_over


def test_nothing_is_concluded_from_silence() -> None:
    """Where nothing was told, nothing is refuted, and more may come."""
    report = Story().report()
    assert set(verdicts(report).values()) == {UNPROVED}
    assert not report.is_over


def test_a_later_event_proves_a_loss() -> None:
    """What did not come is refuted only once the same process has told of something later."""
    story = Story()
    story.blobs(but=1)
    story.manifest()
    assert events.arrival(story.report(), 1).verdict is UNPROVED
    story.echo(0)
    assert not story.report().is_over, "the copy of the echo that comes after the events may be another partition's"
    story.echo(1)
    assert story.report().is_over
    assert events.arrival(story.report(), 1).verdict is REFUTED


def test_another_process_proves_nothing() -> None:
    """Where two processes answer at an address, what one tells says nothing of what the other has still to tell."""
    story = Story()
    story.blobs()
    story.manifest()
    story.event(LAST.digest, source="two")
    report = story.report()
    assert not report.is_over
    assert events.echo(report, 1).verdict is UNPROVED


def test_a_probe_that_does_not_come_back() -> None:
    """An ignored pull is noticed by the push after it, without waiting."""
    story = Story()
    story.blobs()
    story.manifest()
    story.event(LAST.digest)
    assert story.report().is_over
    assert verdicts(story.report()) == {"arrival": PROVED, "references": PROVED, "order": PROVED, "echo": REFUTED}


@pytest.mark.parametrize(
    ("references", "verdict"),
    [(None, REFUTED), ([ReferenceRecord(IMAGE.config.digest)], REFUTED)],
)
def test_references_that_are_not_all(references: Any, verdict: Verdict) -> None:
    """An event that names none or not all of what the manifest lists is refuted."""
    story = Story()
    story.manifest(references=references)
    assert events.references(story.report()).verdict is verdict


def test_an_order_that_is_not_kept() -> None:
    """A manifest before its blobs, an echo before the manifest, two partitions and falling times are refuted."""
    early = Story()
    early.manifest()
    early.blobs()
    early.event(LAST.digest)
    claimed = Story()
    claimed.echo(0)
    claimed.blobs()
    claimed.manifest()
    claimed.event(LAST.digest)
    split = Story()
    split.blobs()
    split.manifest(partition=1)
    split.event(LAST.digest)
    falling = Story()
    falling.blobs()
    falling.manifest(at=0)
    falling.event(LAST.digest)
    assert {events.order(story.report()).verdict for story in (early, claimed, split, falling)} == {REFUTED}


@pytest.mark.parametrize(
    ("told", "step", "off"),
    [(0.5, 0, 0), (5, 0, 4), (-3, 0, -3), (-0.5, 1, 0), (-3, 1, -2)],
)
def test_how_far_a_clock_is_off(told: float, step: float, off: float) -> None:
    """A time between two of ours says nothing against a clock, nor does one that is cut to whole seconds."""
    found = clocks.off(NOW + dt.timedelta(seconds=told), NOW, NOW + dt.timedelta(seconds=1), dt.timedelta(seconds=step))
    assert found == dt.timedelta(seconds=off)


def test_a_clock_may_be_off_by_half_of_the_skew() -> None:
    """The margin is for two clocks: one of them has half of it, either way."""
    bound = dt.timedelta(seconds=150)
    assert clocks.judged("x", bound, bound).verdict is PROVED
    assert clocks.judged("x", -bound, bound).verdict is PROVED
    assert clocks.judged("x", -bound - dt.timedelta(milliseconds=1), bound).verdict is REFUTED


def test_the_worst_part_is_the_verdict() -> None:
    """One address that is not proved makes the finding so, stands first, and brings what mends it."""
    parts = [proved("a", "well"), unproved("b", "unknown"), refuted("c", "wrong")]
    found = finding(Check.SAME_ROOT, parts)
    assert (found.verdict, found.proof) == (REFUTED, "c: wrong; b: unknown; a: well")
    assert found.mend == TEXTS[Check.SAME_ROOT].mend
    assert finding(Check.SAME_ROOT, parts[:2]).verdict is UNPROVED
    assert finding(Check.SAME_ROOT, parts[:1]).mend == ""
    assert finding(Check.SAME_ROOT, []).verdict is UNPROVED
    many = finding(Check.SAME_ROOT, [proved(f"{n}", "well") for n in range(SHOWN + 3)])
    assert many.proof.endswith("and 3 more")


def test_what_holds_garbage_collection() -> None:
    """All checks proved hold nothing; one that is refuted, unproved or was never made does, and no visit at all."""
    all_well = dict.fromkeys(map(str, Check), PROVED)
    assert hold(all_well, "p") is None
    assert hold(all_well | {"a-check-of-another-release": REFUTED}, "p") is None
    assert "never examined" in (hold({}, "p") or "")
    told = hold(all_well | {"clocks": REFUTED, "versioned": UNPROVED}, "p") or ""
    assert "clocks is refuted" in told
    assert "versioned is unproved" in told
    assert "2 processes of its registry began after the visit" in (hold(all_well, "p", 2) or "")
    del all_well["cannot-delete"]
    assert "cannot-delete is not examined" in (hold(all_well, "p") or "")


def test_every_check_is_made_and_explained() -> None:
    """No check is without its experiment, nor without what it means; findings are shown in their order."""
    assert CHECKS.keys() == TEXTS.keys() == set(Check)
    assert list(CHECKS)[-1] is Check.DELETES_ARRIVE, "it deletes what the others look at"
    shown = in_order(Finding(check, PROVED, "", "") for check in ["of-another-release", *sorted(Check)])
    assert [found.check for found in shown] == [*Check, "of-another-release"]


def test_topics_that_are_not_safe() -> None:
    """What `topics create` would report is refuted with the command that mends it; what is not told is unproved."""
    wrong = TopicReport("registry.events", False, 8, 3, (TopicFinding("It is not safe.", "kafka-configs.sh …"),))
    untold = TopicReport("registry.events", False, 8, 3, (), ("min.insync.replicas",))
    safe = TopicReport("registry.events", False, 8, 3, ())
    assert [kafka.kept(report).verdict for report in (wrong, untold, safe)] == [REFUTED, UNPROVED, PROVED]
    assert kafka.mend([safe, wrong]) == "kafka-configs.sh …"
    assert kafka.mend([safe]) is None


def test_the_policy_names_blobs_alone() -> None:
    """The policy that is proposed forbids deletes below blobs/ of the shared root, and nothing in repositories."""
    store = SimpleNamespace(bucket="b", root="shared/")
    document = json.loads(storage.policy(cast("Any", store)).partition("\n")[2])
    deletes, bucket = document["Statement"]
    assert deletes["Resource"] == ["arn:aws:s3:::b/shared/docker/registry/v2/blobs/*"]
    assert {statement["Effect"] for statement in document["Statement"]} == {"Deny"}
    assert bucket["Resource"] == ["arn:aws:s3:::b"]
