"""The outcomes of one posted body, without any I/O."""

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.references import MANIFEST_KINDS
from coordinator.ingest.normalise import (
    PAYLOAD_LIMIT,
    REPORTS_LIMIT,
    Accepted,
    DeadLettered,
    Dropped,
    Origin,
    Outcome,
    Reported,
    normalise_body,
    retry_dead_letter,
)
from schemas.records import DeadLetter, RegistryEvent, RegistryWatermark
from tests.ingest.harness import DIGEST, V1, envelope, event

OCI = "application/vnd.oci.image.manifest.v1+json"
NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
ORIGIN = Origin("pod-a", {"pod-a", "shared/a"}, NOW, V1)
OTHER = "sha256:" + "cd" * 32
NONCE = "0123456789abcdef" * 2


def outcome_of(**changes: Any) -> Outcome:
    (outcome,) = normalise_body(envelope(event(**changes)), ORIGIN)
    return outcome


def accepted(**changes: Any) -> RegistryEvent:
    outcome = outcome_of(**changes)
    assert isinstance(outcome, Accepted), outcome
    return outcome.event


def dead_letter_of(body: bytes, origin: Origin = ORIGIN) -> DeadLetter:
    """The dead letter that comes of a body, and nothing else."""
    (outcome,) = normalise_body(body, origin)
    assert isinstance(outcome, DeadLettered), outcome
    return outcome.dead_letter


def reason_of(**changes: Any) -> str:
    return dead_letter_of(envelope(event(**changes))).reason


def kinds(outcomes: Sequence[Outcome]) -> list[type[Outcome]]:
    return [type(each) for each in outcomes]


@pytest.mark.parametrize("media_type", [*MANIFEST_KINDS, f"{OCI}; charset=utf-8", OCI.upper()])
def test_manifest_push(media_type: str) -> None:
    """A push of any known manifest type keeps its references in order, the type without its parameters."""
    listed = [{"mediaType": "a/b", "size": 1, "digest": OTHER}, {"digest": DIGEST}, {"digest": OTHER}]
    record = accepted(mediaType=media_type, references=listed)
    assert record.media_type == media_type.partition(";")[0].lower()
    assert record.references is not None
    assert [entry.digest for entry in record.references] == [OTHER, DIGEST, OTHER]
    assert [entry.size for entry in record.references] == [1, None, None]


@pytest.mark.parametrize("listed", [..., None, []])
def test_manifest_without_references(listed: Any) -> None:
    """Where a registry lists no references, the record says that they are not known."""
    assert accepted(mediaType=OCI, references=listed).references is None


def test_blob_push() -> None:
    """A blob's push has no references, whatever is sent, and takes its size from `length` if need be."""
    record = accepted(references=[{"digest": OTHER}], size=..., length=7)
    assert (record.action, record.digest, record.size, record.references) == ("push", DIGEST, 7, None)


@pytest.mark.parametrize(("source", "kept"), [("team/x", "team/x"), ("UPPER", None), ("", None), (None, None)])
def test_mount(source: str | None, kept: str | None) -> None:
    """A mount counts whatever its source is called; a source that is no valid name is left out."""
    record = accepted(action="mount", mediaType=..., fromRepository=source)
    assert (record.action, record.digest, record.from_repository) == ("mount", DIGEST, kept)


@pytest.mark.parametrize(("digest", "tag"), [(DIGEST, ...), (..., "v1"), (..., ...), (DIGEST, "v1")])
def test_delete(digest: Any, tag: Any) -> None:
    """A delete names a digest, a tag, or by the absence of both the repository."""
    record = accepted(action="delete", mediaType=..., size=..., digest=digest, tag=tag)
    assert (record.digest or ..., record.tag or ...) == (digest, tag)


@pytest.mark.parametrize(("digest", "tag"), [("", ...), (..., ""), ("", "")])
def test_delete_of_an_empty_name(digest: Any, tag: Any) -> None:
    """An empty digest or tag never makes a delete one of the whole repository."""
    assert reason_of(action="delete", digest=digest, tag=tag) == "malformed"


def test_rename() -> None:
    """GitLab's rename is recorded if source and destination are both the pod's own."""
    rename = {"type": "namespace", "from": "pod-a/x", "to": "shared/a/y"}
    record = accepted(action="rename", digest=..., mediaType=..., rename=rename)
    assert record.rename is not None
    assert (record.rename.source, record.rename.destination) == ("pod-a/x", "shared/a/y")
    assert reason_of(action="rename", rename=rename | {"to": "shared/b"}) == "not-owned"
    assert reason_of(action="rename", rename=rename | {"from": "pod-b"}) == "not-owned"
    assert reason_of(action="rename", rename=rename | {"type": "?"}) == "malformed"
    assert reason_of(action="rename") == "malformed"


def test_pull_is_dropped() -> None:
    """A pull is dropped, of whichever repository."""
    assert outcome_of(action="pull", repository="pod-b/x") == Dropped("pull")


def probed(agent: str = f"baleen-probe/{NONCE}", instance: Any = "i-1", **changes: Any) -> Outcome:
    source = {} if instance is ... else {"instanceID": instance}
    return outcome_of(action="pull", request={"method": "HEAD", "useragent": agent}, source=source, **changes)


@pytest.mark.parametrize(
    "agent",
    [f"baleen-probe/{NONCE}", f"python-httpx/1 baleen-probe/{NONCE} (x)", f"a,baleen-probe/{NONCE};b"],
)
def test_probe(agent: str) -> None:
    """A probe's pull reports its nonce and its process, whichever pod owns the repository."""
    record = RegistryWatermark(action="watermark", pod="pod-a", process="i-1", nonce=NONCE)
    assert probed(agent) == Reported(record)
    assert probed(agent, repository="pod-b/x", mediaType=..., digest=...) == Reported(record)


@pytest.mark.parametrize(
    ("agent", "instance"),
    [
        ("", "i-1"),
        ("baleen-probe/", "i-1"),
        (f"baleen-probe/{NONCE[:-1]}", "i-1"),
        (f"baleen-probe/{NONCE}0", "i-1"),
        (f"baleen-probe/{NONCE.upper()}", "i-1"),
        (f"xbaleen-probe/{NONCE}", "i-1"),
        (f"baleen-probe/{NONCE}", ""),
        (f"baleen-probe/{NONCE}", ...),
        (f"baleen-probe/{NONCE}", "x" * 256),
        (f"baleen-probe/{NONCE}", "a\0b"),
    ],
)
def test_no_probe(agent: str, instance: Any) -> None:
    """A pull without a valid nonce or process name is dropped."""
    assert probed(agent, instance) == Dropped("pull")


@pytest.mark.parametrize("action", ["mount", "delete"])
def test_only_pulls_and_pushes_report(action: str) -> None:
    """Actions other than pull and push report no probe."""
    accepted(action=action, request={"useragent": f"baleen-probe/{NONCE}"}, source={"instanceID": "i-1"})


def test_a_push_that_is_a_probe() -> None:
    """A push with a nonce counts as any push, and then reports the probe; one that is dead-lettered reports nothing."""
    agent = {"useragent": f"baleen-probe/{NONCE}", "method": "PUT"}
    posted = event(request=agent, source={"instanceID": "i-1"})
    pushed, reported = normalise_body(envelope(posted), ORIGIN)
    assert isinstance(pushed, Accepted)
    assert reported == Reported(RegistryWatermark(action="watermark", pod="pod-a", process="i-1", nonce=NONCE))
    refused = event(request=agent, source={"instanceID": "i-1"}, repository="other/app")
    assert kinds(normalise_body(envelope(refused), ORIGIN)) == [DeadLettered]
    assert kinds(normalise_body(envelope(event(request=agent)), ORIGIN)) == [Accepted]


@pytest.mark.parametrize(
    "changes",
    [
        {"timestamp": 5},
        {"id": ...},
        {"repository": ...},
        {"size": "5"},
        {"source": 7},
        {"references": 1},
        {"target": 1},
    ],
)
def test_a_malformed_pull_is_dropped(changes: dict[str, Any]) -> None:
    """A malformed pull is dropped and is no dead letter, since it changes nothing."""
    posted = {name: value for name, value in (event(action="pull") | changes).items() if value is not ...}
    assert normalise_body(envelope(posted), ORIGIN) == [Dropped("pull")]


def test_many_probes_in_one_envelope() -> None:
    """Of very many probes in one envelope only the last ones report."""
    agents = [f"baleen-probe/{number:032x}" for number in range(100)]
    source = {"instanceID": "i-1"}
    posted = [event(action="pull", request={"useragent": agent}, source=source) for agent in agents]
    outcomes = normalise_body(envelope(event(), *posted, event()), ORIGIN)
    reported = [outcome.record.nonce for outcome in outcomes if isinstance(outcome, Reported)]
    assert reported == [f"{number:032x}" for number in range(100 - REPORTS_LIMIT, 100)]
    assert len(outcomes) == 102
    posted = [event(request={"useragent": agent}, source=source) for agent in agents]
    outcomes = normalise_body(envelope(*posted), ORIGIN)
    assert kinds(outcomes).count(Accepted) == 100
    assert [each.record.nonce for each in outcomes if isinstance(each, Reported)] == reported


def test_a_probe_in_a_dead_letter() -> None:
    """A probe in a dead letter reports nothing when that is retried."""
    probe = event(action="pull", request={"useragent": f"baleen-probe/{NONCE}"}, source={"instanceID": "i"})
    dead_letter = dead_letter_of(envelope(event(), probe), ORIGIN._replace(content_type="text/plain"))
    assert kinds(retry_dead_letter(msgspec.structs.replace(dead_letter, content_type=V1), {"pod-a"})) == [Accepted]


def test_a_push_that_is_a_probe_in_a_dead_letter() -> None:
    """A push with a nonce in a dead letter is accepted on retry, and reports nothing."""
    agent = {"useragent": f"baleen-probe/{NONCE}", "method": "PUT"}
    posted = event(request=agent, source={"instanceID": "i-1"}, repository="other/app")
    for changes in ({}, {"content_type": "text/plain"}):
        dead_letter = dead_letter_of(envelope(posted), ORIGIN._replace(**changes))
        assert kinds(retry_dead_letter(msgspec.structs.replace(dead_letter, content_type=V1), {"other"})) == [Accepted]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"repository": "shared/ab"}, "not-owned"),
        ({"repository": "shared"}, "not-owned"),
        ({"repository": "pod-b/x", "action": "delete", "digest": ..., "tag": "v1"}, "not-owned"),
        ({"repository": ""}, "malformed"),
        ({"repository": ...}, "malformed"),
        ({"repository": "a//b"}, "invalid-name"),
        ({"digest": ...}, "malformed"),
        ({"digest": ..., "action": "mount"}, "malformed"),
        ({"digest": DIGEST.upper()}, "invalid-name"),
        ({"digest": "md5:00", "action": "delete"}, "invalid-name"),
        ({"action": "PUSH"}, "unknown-action"),
        ({"action": ""}, "unknown-action"),
        ({"timestamp": "2026-11-24T05:31:11"}, "malformed"),
        ({"timestamp": "1969-12-31T23:59:59Z"}, "malformed"),
        ({"timestamp": "2200-01-01T00:00:00Z"}, "malformed"),
        ({"timestamp": "9999-12-31T23:59:59-23:59"}, "malformed"),
        ({"timestamp": 5}, "malformed"),
        ({"id": ""}, "malformed"),
        ({"id": "a\0b"}, "malformed"),
        ({"id": "x" * 256}, "malformed"),
        ({"source": {"instanceID": "\0"}}, "malformed"),
    ],
)
def test_dead_letters(changes: dict[str, Any], reason: str) -> None:
    """A malformed event is dead-lettered for the first reason that applies."""
    assert reason_of(**changes) == reason


def test_times_become_utc() -> None:
    """A timestamp keeps its instant, in UTC."""
    record = accepted(timestamp="2026-11-24T05:31:11.842050262+02:00")
    assert record.timestamp.isoformat() == "2026-11-24T03:31:11.842050+00:00"


def test_nul_never_reaches_the_table() -> None:
    """NUL, which PostgreSQL cannot store, is replaced in texts and in a dead letter's payload."""
    assert accepted(actor={"name": "a\0b"}).actor == "a\ufffdb"
    dead_letter = dead_letter_of(b"\0" * 100_000)
    assert (dead_letter.payload, dead_letter.payload_bytes) == ("\ufffd" * (PAYLOAD_LIMIT // 3), 100_000)


@given(st.binary(max_size=300), st.integers(0, 400))
@settings(max_examples=200)
def test_payload_is_text_and_bounded(noise: bytes, copies: int) -> None:
    """A dead letter's payload is valid text without NUL and of at most 64 KiB, whatever bytes were sent."""
    for outcome in normalise_body(noise * copies, ORIGIN):
        assert isinstance(outcome, DeadLettered)
        assert len(outcome.dead_letter.payload.encode()) <= PAYLOAD_LIMIT
        assert "\0" not in outcome.dead_letter.payload
        assert (
            msgspec.json.decode(msgspec.json.encode(outcome.dead_letter), type=type(outcome.dead_letter))
            == outcome.dead_letter
        )


def test_retry() -> None:
    """A retry reads a dead letter's payload, an event or an envelope, with the prefixes of now."""
    dead_letter = dead_letter_of(envelope(event(repository="late/x")))
    assert retry_dead_letter(dead_letter, {"pod-a"}) == [DeadLettered(dead_letter)]
    (again,) = retry_dead_letter(dead_letter, {"pod-a", "late"})
    assert isinstance(again, Accepted)
    assert again.event.repository == "late/x"
    dead_letter = dead_letter_of(envelope(event(), event(action="pull")), ORIGIN._replace(content_type="text/plain"))
    assert kinds(retry_dead_letter(msgspec.structs.replace(dead_letter, content_type=V1), {"pod-a"})) == [
        Accepted,
        Dropped,
    ]
    assert retry_dead_letter(dead_letter, {"pod-a"}) == [DeadLettered(dead_letter)]


def test_a_large_event_can_be_retried() -> None:
    """An event that is too long to keep whole is kept without its references, and can be retried."""
    listed = [{"digest": f"sha256:{number:064x}", "size": 7, "mediaType": "x" * 80} for number in range(450)]
    (again,) = retry_dead_letter(dead_letter_of(envelope(event(repository="late/x", references=listed))), {"late"})
    assert isinstance(again, Accepted)
    assert again.event.repository == "late/x"
    assert again.event.digest is not None
    assert again.event.references is None


def test_retry_of_what_was_cut() -> None:
    """A payload that was cut is not read again."""
    body = json.dumps({"events": [event()], "rest": "x" * PAYLOAD_LIMIT}).encode()
    dead_letter = dead_letter_of(body, ORIGIN._replace(content_type=""))
    assert retry_dead_letter(dead_letter, {"pod-a"}) == [DeadLettered(dead_letter)]


@pytest.mark.parametrize("size", [-1, 2**63, 10**30, 1.5, "5", None, True, [], {"a": 1}])
@pytest.mark.parametrize("name", ["size", "length"])
def test_a_size_that_is_none_is_one_that_no_registry_reported(name: str, size: Any) -> None:
    """Attempt 14: an event with a malformed size is accepted, with an unknown size."""
    accepted(size=..., length=...)
    assert accepted(**({"size": ..., "length": ...} | {name: size})).size is None


@pytest.mark.parametrize(
    "references",
    [
        [{"digest": "md5:00"}],
        [{"digest": DIGEST}, {"digest": "sha512:" + "ab" * 64}],
        [{"digest": DIGEST}] * 50_001,
        [{"size": 5}],
        [5],
        {"digest": DIGEST},
        "x",
    ],
)
def test_references_that_cannot_be_taken_over_are_left_to_the_bytes(references: Any) -> None:
    """Attempt 14: a manifest with malformed references is accepted without any, to be read from its bytes."""
    assert accepted(mediaType=OCI, references=references).references is None


def test_a_reference_of_an_absurd_size() -> None:
    """Attempt 14: a layer of size -1 is a layer of unknown size."""
    listed = accepted(mediaType=OCI, references=[{"digest": DIGEST, "size": -1}]).references
    assert listed is not None
    assert [(each.digest, each.size) for each in listed] == [(DIGEST, None)]


@pytest.mark.parametrize("media_type", [..., "", "application/json"])
def test_a_push_of_an_unknown_kind_is_a_manifest_to_read(media_type: Any) -> None:
    """A push that is neither a blob nor a known manifest is accepted as a manifest to read."""
    assert accepted(mediaType=media_type, references=[{"digest": DIGEST}]).references is None


@pytest.mark.parametrize("action", ["push", "mount", "delete"])
def test_a_link_by_another_algorithm_says_nothing(action: str) -> None:
    """A blob that is linked or unlinked by another digest than its sha256 is dropped, and no dead letter."""
    changes = {"mediaType": ...} if action == "delete" else {}
    assert outcome_of(action=action, digest="sha512:" + "ab" * 64, **changes) == Dropped("other-algorithm")


def test_commas_in_a_string_are_no_values() -> None:
    """A million commas in a User-Agent make no dead letter, of a push or of a pull."""
    accepted(request={"useragent": "," * 1_000_000})


def test_values_in_references_make_no_dead_letter() -> None:
    """Attempt 14: a layer with half a million URLs is listed as any other; as many values elsewhere are refused."""
    many = [{"digest": OTHER, "urls": [""] * 500_000}]
    listed = accepted(mediaType=OCI, references=many).references
    assert listed is not None
    assert [entry.digest for entry in listed] == [OTHER]
    dead_letter = dead_letter_of(envelope(event(mediaType=OCI, references=many, repository="pod-b/x")))
    assert (dead_letter.reason, dead_letter.repositories) == ("not-owned", None)
    assert reason_of(meta=many) == "oversized"
