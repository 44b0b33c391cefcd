"""The results that follow from what was seen, without a pod, and the holds that follow from them."""

import datetime as dt
import re
from typing import Any, cast

import pytest

from coordinator.doctor import clocks, events, kafka, kinds, queues
from coordinator.doctor.checks import CHECKS
from coordinator.doctor.kinds import KindsReport, PushedKinds
from coordinator.doctor.results import (
    PARTS_SHOWN,
    Part,
    add_unreached,
    make_finding,
    not_tried,
    proved,
    refuted,
    unproved,
)
from coordinator.doctor.scratch import Announcement
from coordinator.doctor.texts import TEXTS, PodFacts
from coordinator.doctor.visit import Place, Push, PushReport
from coordinator.domain.findings import (
    KEY_CHECKS,
    Check,
    Finding,
    Result,
    describe_block,
    implied_checks,
    sort_findings,
)
from coordinator.domain.names import parse_repository
from coordinator.domain.refusals import Refusals
from coordinator.kafka.tail import TailedRecord
from coordinator.kafka.topics import TopicProblem, TopicReport
from coordinator.registry.images import DOCKER, OCI, make_image, make_index, make_layer
from schemas.records import ReferenceRecord, RegistryEvent, RegistryWatermark

PROVED, REFUTED, UNPROVED = Result.PROVED, Result.REFUTED, Result.UNPROVED
NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
IMAGE = make_image("judged")
LAST = make_layer("judged/last")
NONCE = "0123456789abcdef" * 2
PARTITIONS = 2
PATIENT = PodFacts(
    "team-a", "team", ["http://a:5000", "http://b:5000"], "http://baleen:8080", "layers", "/shared", "http://store:9000"
)


class Recording:
    """Builds what was reported of a push, record by record."""

    def __init__(self) -> None:
        place = Place("http://registry:5000", "10.0.0.1", cast("Any", None))
        self._push = Push(place, IMAGE, NONCE, LAST, NOW, NOW)
        self._offset = 0
        self.entries: dict[str, TailedRecord] = {}
        self.echoes: list[TailedRecord] = []

    def event(
        self, digest: str, *, process: str = "one", partition: int = 0, at: float | None = None, **more: Any
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
            process=process,
            **more,
        )
        self.entries[digest] = TailedRecord(partition, self._offset, record)

    def echo(self, partition: int, process: str = "one") -> None:
        self._offset += 1
        record = RegistryWatermark(action="watermark", pod="p", process=process, nonce=NONCE, partitions=PARTITIONS)
        self.echoes.append(TailedRecord(partition, self._offset, record))

    def blobs(self, *, but: int = 0) -> None:
        for blob in IMAGE.blobs[but:]:
            self.event(blob.digest)

    def manifest(self, **more: Any) -> None:
        listed = [ReferenceRecord(blob.digest) for blob in IMAGE.blobs]
        self.event(IMAGE.digest, **({"references": listed} | more))

    def report(self) -> PushReport:
        blobs = {blob.digest: self.entries[blob.digest] for blob in IMAGE.blobs if blob.digest in self.entries}
        return PushReport(self._push, blobs, self.entries.get(IMAGE.digest), self.echoes, self.entries.get(LAST.digest))


def whole() -> Recording:
    recording = Recording()
    recording.blobs()
    recording.manifest()
    for partition in range(PARTITIONS):
        recording.echo(partition)
    recording.event(LAST.digest)
    return recording


def results(report: PushReport) -> dict[str, Result]:
    return {
        "arrival": events.arrival_part(report, 1).result,
        "references": events.reference_part(report).result,
        "order": events.order_part(report).result,
        "echo": events.echo_part(report, 1).result,
    }


def test_a_push_that_was_reported_well() -> None:
    """If everything is reported in order, all results of a push are proved, and the wait is over."""
    report = whole().report()
    assert set(results(report).values()) == {PROVED}
    assert report.is_over


def test_nothing_is_concluded_from_silence() -> None:
    """If nothing is reported, nothing is refuted, and the wait goes on."""
    report = Recording().report()
    assert set(results(report).values()) == {UNPROVED}
    assert not report.is_over


def test_a_later_event_proves_a_loss() -> None:
    """A missing event is refuted only once the same process has reported something later."""
    recording = Recording()
    recording.blobs(but=1)
    recording.manifest()
    assert events.arrival_part(recording.report(), 1).result is UNPROVED
    recording.echo(0)
    assert not recording.report().is_over, "the copy of the echo that comes after the events may be another partition's"
    recording.echo(1)
    assert recording.report().is_over
    assert events.arrival_part(recording.report(), 1).result is REFUTED


def test_another_process_proves_nothing() -> None:
    """If two processes share an address, the events of one prove nothing about the other."""
    recording = Recording()
    recording.blobs()
    recording.manifest()
    recording.event(LAST.digest, process="two")
    report = recording.report()
    assert not report.is_over
    assert events.echo_part(report, 1).result is UNPROVED


def test_a_probe_that_does_not_come_back() -> None:
    """An ignored pull is proved by the push after it, without a wait."""
    recording = Recording()
    recording.blobs()
    recording.manifest()
    recording.event(LAST.digest)
    assert recording.report().is_over
    assert results(recording.report()) == {"arrival": PROVED, "references": PROVED, "order": PROVED, "echo": REFUTED}


@pytest.mark.parametrize(
    ("references", "result"),
    [(None, REFUTED), ([ReferenceRecord(IMAGE.config.digest)], REFUTED)],
)
def test_references_that_are_not_all(references: Any, result: Result) -> None:
    """An event that names none or not all of what the manifest lists is refuted."""
    recording = Recording()
    recording.manifest(references=references)
    assert events.reference_part(recording.report()).result is result


PLACE = Place("http://registry:5000", "10.0.0.1", cast("Any", None))
DOCKER_IMAGE = make_image("judged", kind=DOCKER)
MANIFESTS = {"docker manifest": DOCKER_IMAGE, "docker manifest list": make_index([DOCKER_IMAGE], DOCKER)}


def of_kinds(*unreported: str, but: str = "", lasts: bool = True) -> KindsReport:
    """The report of two manifests and a mount; `but`: one of them that another process reported."""
    repository, other = parse_repository("p/r"), parse_repository("p/r-other")
    done = {kind: Announcement("push", repository, each.digest) for kind, each in MANIFESTS.items()}
    done["mount"] = Announcement("mount", other, LAST.digest)
    ends = {name: Announcement("push", name, make_layer(name).digest) for name in (repository, other)}
    recording = Recording()
    for kind, each in done.items():
        if kind not in unreported:
            recording.event(each.digest, process="two" if kind == but else "one")
    for each in ends.values() if lasts else ():
        recording.event(each.digest)
    return kinds.make_kinds_report(
        PushedKinds(PLACE, dict(MANIFESTS), done, ends), lambda each: recording.entries.get(each.digest)
    )


@pytest.mark.parametrize(
    ("report", "result", "over"),
    [
        (of_kinds(), PROVED, True),
        (of_kinds("mount"), REFUTED, True),
        (of_kinds("docker manifest", "mount"), REFUTED, True),
        (of_kinds("mount", but="docker manifest"), UNPROVED, False),
        (of_kinds("mount", lasts=False), UNPROVED, False),
        (of_kinds("docker manifest", "docker manifest list", "mount", lasts=False), UNPROVED, False),
    ],
)
def test_kinds_that_were_reported(report: KindsReport, result: Result, over: bool) -> None:
    """A missing kind is refuted once the one process has reported a later push to the same repository."""
    assert events.arrival_part_of_kinds(report, 1).result is result
    assert report.is_over is over


def test_kinds_that_could_not_be_tried() -> None:
    """A registry that refuses one of the kinds proves nothing of them."""
    report = of_kinds()
    report = report._replace(kinds=report.kinds._replace(error="refused"))
    assert events.arrival_part_of_kinds(report, 1).result is UNPROVED
    assert [part.result for part in events.reference_parts_of_kinds(report)] == [UNPROVED]


def of_a_hold(
    *, is_reported: bool = True, echo_at: int = 9, copies: int = PARTITIONS, process: str = "one", **times: float | None
) -> queues.TrialResult:
    """The result for a delayed blob at offset 5, and a pull whose echo has the offset `echo_at`."""
    recording = Recording()
    recording.event(LAST.digest)
    blob = recording.entries[LAST.digest]._replace(offset=5)
    for partition in range(copies):
        recording.echo(partition, process)
    echoes = [echo._replace(offset=echo_at if echo.partition == blob.partition else 0) for echo in recording.echoes]
    given: dict[str, Any] = {"awaited": 1.9, "unhindered": 0.1} | times
    return queues.TrialResult("blob", blob if is_reported else None, echoes, **given)


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (of_a_hold(), PROVED),
        (of_a_hold(echo_at=4), REFUTED),
        (of_a_hold(echo_at=4, awaited=0.0, unhindered=None), REFUTED),
        # That the echo did not overtake says nothing where it had no time to, or needs it by itself.
        (of_a_hold(awaited=0.0), UNPROVED),
        (of_a_hold(unhindered=1.0), UNPROVED),
        (of_a_hold(unhindered=None), UNPROVED),
        (of_a_hold(is_reported=False), UNPROVED),
        (of_a_hold(copies=PARTITIONS - 1), UNPROVED),
        (of_a_hold(copies=0), UNPROVED),
        (of_a_hold(process="two", echo_at=4), UNPROVED),
        (of_a_hold()._replace(error="refused"), UNPROVED),
    ],
)
def test_an_echo_that_waits_or_does_not(outcome: queues.TrialResult, result: Result) -> None:
    """An echo before the delayed event refutes; one behind it proves only if it had to wait."""
    assert queues.trial_part(outcome).result is result


def test_all_kinds_have_to_wait() -> None:
    """A place is proved only with every kind, and shows the shortest wait."""
    held = of_a_hold()
    assert queues.queue_part("here", []).result is UNPROVED
    assert queues.queue_part("here", [held, of_a_hold(echo_at=4)]) == queues.trial_part(of_a_hold(echo_at=4))._replace(
        where="here"
    )
    found = queues.queue_part("here", [held, of_a_hold(awaited=1.5), of_a_hold(unhindered=0.2)])
    assert found.result is PROVED
    assert "1.5 s or longer" in found.sentence
    assert "0.2 s at most" in found.sentence


def test_an_order_that_is_not_kept() -> None:
    """A manifest before its blobs, an echo before the manifest, two partitions and falling times are refuted."""
    early = Recording()
    early.manifest()
    early.blobs()
    early.event(LAST.digest)
    claimed = Recording()
    claimed.echo(0)
    claimed.blobs()
    claimed.manifest()
    claimed.event(LAST.digest)
    split = Recording()
    split.blobs()
    split.manifest(partition=1)
    split.event(LAST.digest)
    falling = Recording()
    falling.blobs()
    falling.manifest(at=0)
    falling.event(LAST.digest)
    assert {events.order_part(recording.report()).result for recording in (early, claimed, split, falling)} == {REFUTED}


@pytest.mark.parametrize(
    ("shown", "step", "off"),
    [(0.5, 0, 0), (5, 0, 4), (-3, 0, -3), (-0.5, 1, 0), (-3, 1, -2)],
)
def test_how_far_a_clock_is_off(shown: float, step: float, off: float) -> None:
    """A time between two of ours proves no error of a clock, nor does one in whole seconds."""
    found = clocks.clock_error(
        NOW + dt.timedelta(seconds=shown), NOW, NOW + dt.timedelta(seconds=1), dt.timedelta(seconds=step)
    )
    assert found == dt.timedelta(seconds=off)


def test_a_clock_may_be_off_by_half_of_the_skew() -> None:
    """Each clock may be off by half of the margin, either way."""
    bound = dt.timedelta(seconds=150)
    assert clocks.clock_part("x", bound, bound).result is PROVED
    assert clocks.clock_part("x", -bound, bound).result is PROVED
    assert clocks.clock_part("x", -bound - dt.timedelta(milliseconds=1), bound).result is REFUTED


def test_the_worst_part_is_the_result() -> None:
    """One part that is not proved makes the finding so, comes first, and gives the fix."""
    parts = [proved("a", "well"), unproved("b", "unknown"), refuted("c", "wrong")]
    found = make_finding(Check.SAME_ROOT, parts, PATIENT)
    assert (found.result, found.proof) == (REFUTED, "c: wrong; b: unknown; a: well")
    assert found.fix == TEXTS[Check.SAME_ROOT].fix(PATIENT)
    assert make_finding(Check.SAME_ROOT, parts[:2], PATIENT).result is UNPROVED
    assert make_finding(Check.SAME_ROOT, parts[:1], PATIENT).fix == ""
    assert make_finding(Check.SAME_ROOT, [], PATIENT).result is UNPROVED
    many = make_finding(Check.SAME_ROOT, [proved(f"{n}", "well") for n in range(PARTS_SHOWN + 3)], PATIENT)
    assert many.proof.endswith("and 3 more")


def test_what_the_visit_did_not_reach() -> None:
    """A finding is not proved for processes that the visit did not reach, which it names; a refuted one stays so."""
    for result, after in ((PROVED, UNPROVED), (UNPROVED, UNPROVED), (REFUTED, REFUTED)):
        found = make_finding(Check.CLOCKS, [Part("a", result, "seen")], PATIENT)
        assert add_unreached(found, [], PATIENT) == found
        left = add_unreached(found, ["p1", "p2"], PATIENT)
        assert (left.check, left.result, left.meaning) == (
            Check.CLOCKS,
            after,
            TEXTS[Check.CLOCKS].describe_result(after),
        )
        assert "not tried with process p1, p2: see `processes-reached`" in left.proof
        assert left.fix == found.fix
    reached = add_unreached(
        make_finding(Check.PROCESSES_REACHED, [proved("a", "seen")], PATIENT), ["p1", "p2"], PATIENT
    )
    assert reached.result is UNPROVED
    for entry in ("process p1: ", "process p2: ", "a: seen"):
        assert entry in reached.proof
    for entry in (
        "baleen pods set-registries team-a --registry http://a:5000 --registry http://b:5000 --registry URL",
        "baleen pods retire-process team-a p1 --why",
        "baleen pods retire-process team-a p2 --why",
    ):
        assert entry in reached.fix


def test_what_follows_from_another_finding() -> None:
    """A finding that follows from another is one sentence that refers to it, for all places, with nothing to fix."""
    stuck = [not_tried(where, "it is away", Check.REGISTRY_ANSWERS) for where in ("a", "b")]
    found = make_finding(Check.CLOCKS, stuck, PATIENT)
    assert (found.result, found.fix) == (UNPROVED, "")
    assert found.proof == "a, b: not tried, since it is away: see `registry-answers`"
    assert add_unreached(found, ["p1"], PATIENT) == found
    nowhere = make_finding(Check.CLOCKS, [], PATIENT)
    assert (nowhere.result, nowhere.fix) == (UNPROVED, "")
    assert "see `registry-answers`" in nowhere.proof
    worse = make_finding(Check.CLOCKS, [*stuck, refuted("c", "it is off", "set it")], PATIENT)
    assert (worse.result, worse.fix) == (REFUTED, "set it")
    assert worse.proof == f"c: it is off; {found.proof}"


def test_what_is_known_is_filled_in() -> None:
    """The fixes have no placeholder for what Baleen knows: the pod, its URLs, Baleen's, the bucket."""
    fixes = {check: texts.fix(PATIENT) for check, texts in TEXTS.items()}
    for fix in fixes.values():
        assert not re.search(r"\b(?:POD|INSTANCE|BALEEN_URL|BUCKET|ROOT)\b", fix), fix
    assert "url: http://baleen:8080/v1/events/team-a" in fixes[Check.EVENTS_ARRIVE]
    assert "baleen pods rotate-token team-a" in fixes[Check.EVENTS_ARRIVE]
    assert "s3: {bucket: layers, rootdirectory: /shared}" in fixes[Check.SAME_ROOT]
    assert "--endpoint-url http://store:9000 --bucket layers" in fixes[Check.VERSIONED]
    assert "pods config team-a --with-secrets" in fixes[Check.UPLOAD_SECRET]
    unknown = TEXTS[Check.EVENTS_ARRIVE].fix(PATIENT._replace(url=None))
    assert "BALEEN_URL is not set here" in unknown
    off = clocks.clock_part("http://a:5000", dt.timedelta(seconds=-70.5), dt.timedelta(seconds=30))
    assert "BALEEN_SAFETY_CLOCK_SKEW=142s" in (off.fix or "")
    assert "http://a:5000" in (off.fix or "")


@pytest.mark.parametrize(
    ("unreported", "actions", "media_types"),
    [
        (["mount"], "actions: [mount]", []),
        (["docker manifest"], None, [DOCKER.manifest]),
        (["docker manifest", "docker manifest list", "mount"], "actions: [mount]", [DOCKER.index, DOCKER.manifest]),
    ],
)
def test_what_is_to_be_taken_out_of_ignore(unreported: list[str], actions: str | None, media_types: list[str]) -> None:
    """The fix names the lines of `ignore` that hide the missing kinds, and no others."""
    fix = events.arrival_part_of_kinds(of_kinds(*unreported), 1).fix
    assert fix is not None
    assert ("actions:" in fix) == (actions is not None)
    assert actions is None or actions in fix
    assert [line.strip(" -") for line in fix.splitlines() if line.strip().startswith("- ")] == media_types


def test_pushes_that_are_ignored() -> None:
    """If no push of an image is reported, the fix names the action; if some are, their media type."""
    recording = Recording()
    for partition in range(PARTITIONS):
        recording.echo(partition)
    assert "actions: [push]" in (events.arrival_part(recording.report(), 1).fix or "")
    blobless = Recording()
    blobless.manifest()
    for partition in range(PARTITIONS):
        blobless.echo(partition)
    fix = events.arrival_part(blobless.report(), 1).fix or ""
    assert "- application/octet-stream" in fix
    assert "actions" not in fix
    assert OCI.manifest not in fix


def test_a_wrong_token_is_named() -> None:
    """If no event came and a token was refused, the proof and the fix name the token."""
    refused = Refusals(NOW, NOW + dt.timedelta(minutes=5))
    part = events.add_wrong_token(events.arrival_part(Recording().report(), 1), refused, PATIENT)
    assert part.result is UNPROVED
    assert "none of 4 events came" in part.sentence
    assert (
        "wrong token, or with none, have been refused since 2026-11-24 12:00:00 UTC, the last at 2026-11-24 12:05:00"
        in part.sentence
    )
    assert "baleen pods rotate-token team-a" in (part.fix or "")
    assert "Authorization: [Bearer THE-PODS-TOKEN]" in (part.fix or "")


def test_what_an_index_lists() -> None:
    """An event that names other digests than are listed, or none, is refuted; a missing one proves nothing."""
    recording = Recording()
    recording.event(IMAGE.digest, references=[ReferenceRecord(IMAGE.config.digest)])
    named = recording.entries[IMAGE.digest]
    recording.event(IMAGE.digest)
    silent = recording.entries[IMAGE.digest]
    for entry, listed, result in (
        (named, IMAGE.config.digest, PROVED),
        (named, LAST.digest, REFUTED),
        (silent, LAST.digest, REFUTED),
        (None, LAST.digest, UNPROVED),
    ):
        assert events.compare_references("here", "index", entry, {listed}).result is result


def test_what_holds_garbage_collection() -> None:
    """GC is blocked by any check that is refuted, unproved or missing, and by the lack of a visit."""
    all_well = dict.fromkeys(map(str, Check), PROVED)
    assert describe_block(all_well, "p") is None
    assert describe_block(all_well | {"a-check-of-another-release": REFUTED}, "p") is None
    assert "never examined" in (describe_block({}, "p") or "")
    entry = describe_block(all_well | {"clocks": REFUTED, "versioned": UNPROVED}, "p") or ""
    assert "clocks is refuted" in entry
    assert "versioned is unproved" in entry
    assert "2 processes of its registry began or came back after the visit" in (describe_block(all_well, "p", 2) or "")
    assert describe_block(all_well | {"repositories-owned": REFUTED}, "p") is None, "each run looks for itself"
    del all_well["cannot-delete"]
    assert "cannot-delete is not examined" in (describe_block(all_well, "p") or "")


def test_what_is_allowed_on_purpose() -> None:
    """A check that is allowed as unsafe blocks nothing once it was visited; the others do."""
    found = dict.fromkeys(map(str, Check), PROVED) | {"kafka-durable": REFUTED, "cannot-delete": UNPROVED}
    named = {"kafka-durable", "cannot-delete"}
    assert describe_block(found, "p", 0, named) is None
    assert "kafka-durable is refuted" in (describe_block(found, "p", 0, {"cannot-delete"}) or "")
    assert "clocks is refuted" in (describe_block(found | {"clocks": REFUTED}, "p", 0, named) or "")
    assert "after the visit" in (describe_block(found, "p", 1, named) or "")
    assert "never examined" in (describe_block({}, "p", 0, named) or "")
    del found["cannot-delete"]
    assert "cannot-delete is not examined" in (describe_block(found, "p", 0, named) or "")


def test_a_key_that_may_delete_stands_for_all_of_the_key() -> None:
    """Whoever lets collection go on although the key may delete blobs means that key, and all that is tried with it."""
    assert implied_checks({"cannot-delete"}) == KEY_CHECKS
    assert implied_checks({"kafka-durable"}) == {"kafka-durable"}


def test_every_check_is_made_and_explained() -> None:
    """No check is without its experiment, nor without what it means; findings are shown in their order."""
    assert CHECKS.keys() == TEXTS.keys() == set(Check)
    assert list(CHECKS)[-1] is Check.DELETES_ARRIVE, "it deletes what the others look at"
    shown = sort_findings(Finding(check, PROVED, "", "") for check in ["of-another-release", *sorted(Check)])
    assert [found.check for found in shown] == [*Check, "of-another-release"]


def test_topics_that_are_not_safe() -> None:
    """What `topics create` would report is refuted with the command that mends it; what is not told is unproved."""
    wrong = TopicReport("registry.events", False, 8, 3, (TopicProblem("It is not safe.", "kafka-configs.sh …"),))
    unreported = TopicReport("registry.events", False, 8, 3, (), ("min.insync.replicas",))
    safe = TopicReport("registry.events", False, 8, 3, ())
    assert [kafka.topic_part(report).result for report in (wrong, unreported, safe)] == [REFUTED, UNPROVED, PROVED]
    assert kafka.join_fixes([safe, wrong]) == "kafka-configs.sh …"
    assert kafka.join_fixes([safe]) is None
