"""`POST /v1/events/{pod}`: a real server, a real broker, and what is in Kafka afterwards."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.ingest.harness import DIGEST, TOKENS, V1, V2, Tape, envelope, event

FIXTURE = Path(__file__).parents[1] / "fixtures" / "distribution-2.8.3-notifications.jsonl"
PATH = "/v1/events/pod-a"


def expected_of(pod: str, posted: dict[str, Any]) -> str:
    """The outcome of a captured event that its plain JSON requires."""
    if posted["action"] == "pull":
        return "dropped"
    owned = posted["target"]["repository"].split("/")[0] == pod
    return "accepted" if owned else "dead_lettered"


def test_captured_notifications(client: httpx.Client, tape: Tape) -> None:
    """Each captured envelope has the outcome that its JSON requires, and Kafka has exactly its facts."""
    want_events, wanted_dead_letters = [], []
    for line in FIXTURE.read_text().splitlines():
        captured = json.loads(line)
        pod, posted = captured["pod"], captured["envelope"]["events"]
        answer = client.post(
            f"/v1/events/{pod}",
            content=json.dumps(captured["envelope"]),
            headers={"Content-Type": captured["content_type"], "Authorization": f"Bearer {TOKENS[pod]}"},
        )
        outcomes = [expected_of(pod, each) for each in posted]
        assert answer.status_code == 202
        assert answer.json() == {kind: outcomes.count(kind) for kind in ("accepted", "dropped", "dead_lettered")}
        want_events += [(pod, each) for each, what in zip(posted, outcomes, strict=True) if what == "accepted"]
        wanted_dead_letters += [
            (pod, each) for each, what in zip(posted, outcomes, strict=True) if what == "dead_lettered"
        ]
    # Some were captured twice, as a registry sends again what was answered too late.
    records = tape.events()
    stored = {record.value["id"]: record for record in records}
    assert sorted(record.value["id"] for record in records) == sorted(each["id"] for _, each in want_events)
    for pod, each in want_events:
        record, target = stored[each["id"]], each["target"]
        assert record.key.decode() == f"{pod}/{target['repository']}"
        assert record.schema == "registry.event/1"
        assert record.value["timestamp"][:23] == each["timestamp"][:23]
        assert (record.value["pod"], record.value["action"]) == (pod, each["action"])
        assert record.value["process"] == each["source"]["instanceID"]
        renamed = {"media_type": "mediaType", "from_repository": "fromRepository"}
        for name in ("repository", "digest", "size", "tag", *renamed):
            assert record.value.get(name) == target.get(renamed.get(name, name)), (name, each)
        listed = [
            {"digest": entry["digest"], "size": entry["size"], "media_type": entry["mediaType"]}
            for entry in target.get("references", [])
        ]
        assert record.value.get("references", []) == listed
    dead_letters = tape.dead_letters()
    assert [record.value["reason"] for record in dead_letters] == ["not-owned"] * len(wanted_dead_letters)
    assert sorted(record.key.decode() for record in dead_letters) == sorted(pod for pod, _ in wanted_dead_letters)
    assert all(
        json.loads(record.value["payload"]) in [each for _, each in wanted_dead_letters] for record in dead_letters
    )


def test_order_of_a_batch(client: httpx.Client, tape: Tape) -> None:
    """The events of one envelope about one repository are in one partition, in the envelope's order."""
    names = [f"pod-a/order/{n}" for n in range(5)]
    posted = [event(id=f"{n}", repository=names[n % 5]) for n in range(200)]
    assert client.post(PATH, content=envelope(*posted)).json()["accepted"] == 200
    stored = tape.events()
    for at, name in enumerate(names):
        of_name = [record for record in stored if record.value["repository"] == name]
        assert [int(record.value["id"]) for record in of_name] == list(range(at, 200, 5))
        assert len({record.partition for record in of_name}) == 1


@pytest.mark.parametrize(
    ("posted", "reason"),
    [
        (b"{", "malformed"),
        (b"", "malformed"),
        (b"[]", "malformed"),
        (b'{"events": 5}', "malformed"),
        (b'{"events": [\xff\xfe]}', "malformed"),
        (b'{"events": [{"id": "\xff\xfe"}]}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"events": [null]}', "malformed"),
        (b'{"events": [' + b"0," * 500_000 + b"0]}", "oversized"),
        (b'{"events": [' + b"0," * 20_000 + b"0]}", "oversized"),
        (envelope(event(meta=[0] * 500_000)), "oversized"),
        (envelope(event(action="renew")), "unknown-action"),
        (envelope(event(action="unheard-of")), "unknown-action"),
        (envelope(event(repository="pod-b/app")), "not-owned"),
        (envelope(event(repository="pod-away/app")), "not-owned"),
        (envelope(event(repository="Pod-A/App")), "invalid-name"),
        (envelope(event(digest="md5:00")), "invalid-name"),
        (envelope(event(timestamp="2026-11-24T05:31:11")), "malformed"),
    ],
)
def test_not_understood(client: httpx.Client, tape: Tape, posted: bytes, reason: str) -> None:
    """A malformed envelope is answered 202 and is one dead letter with what was sent."""
    answer = client.post(PATH, content=posted)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 0, "dropped": 0, "dead_lettered": 1})
    (record,) = tape.dead_letters()
    assert tape.count() == (0, 1)
    assert (record.key, record.schema, record.value["reason"]) == (b"pod-a", "registry.dead-letter/1", reason)
    assert record.value["payload_bytes"] <= max(len(posted), 1)
    assert record.value["payload"].encode()[:20] in posted or b"\xff" in posted
    assert "token-of-a" not in json.dumps(record.value)


def test_neighbours_of_a_bad_event(client: httpx.Client, tape: Tape) -> None:
    """The other events of a malformed event's envelope are accepted, and a pull among them is only counted."""
    posted = [event(id="1"), event(id="2", action="?"), event(id="3", action="pull"), event(id="4")]
    answer = client.post(PATH, content=envelope(*posted))
    assert answer.json() == {"accepted": 2, "dropped": 1, "dead_lettered": 1}
    assert [record.value["id"] for record in tape.events()] == ["1", "4"]


@pytest.mark.parametrize("kind", ["application/json", "", "text/plain; charset=utf-8", "multipart/form-data"])
def test_wrong_content_type(client: httpx.Client, tape: Tape, kind: str) -> None:
    """A body of another content type is dead-lettered with that type, whatever is in it."""
    answer = client.post(PATH, content=envelope(event()), headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["dead_lettered"]) == (202, 1)
    (record,) = tape.dead_letters()
    assert (record.value["reason"], record.value.get("content_type", "")) == ("content-type", kind)
    assert V1 in record.value["detail"]
    assert V2 in record.value["detail"]


@pytest.mark.parametrize("kind", [V1, V2, f"{V1}; charset=utf-8", V2.upper()])
def test_content_types(client: httpx.Client, kind: str) -> None:
    """Both of distribution's content types are accepted, with parameters and in any case."""
    answer = client.post(PATH, content=envelope(event()), headers={"Content-Type": kind})
    assert answer.json()["accepted"] == 1


def test_oversized(client: httpx.Client, tape: Tape) -> None:
    """A body beyond the limit is read to its end and dead-lettered with its beginning and its length."""
    posted = envelope(event()) + b" " * (9 * 1024 * 1024)
    answer = client.post(PATH, content=posted)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 0, "dropped": 0, "dead_lettered": 1})
    (record,) = tape.dead_letters()
    assert (record.value["reason"], record.value["payload_bytes"]) == ("oversized", len(posted))
    assert record.value["payload"] == posted[: 64 * 1024].decode()


def test_largest_body_is_accepted(client: httpx.Client, tape: Tape) -> None:
    """A manifest whose event is nearly as large as allowed passes through Kafka whole."""
    manifest = "application/vnd.oci.image.manifest.v1+json"
    listed = [
        {"mediaType": manifest, "size": 10**15 + n, "digest": f"sha256:{n:064x}", "annotation": "x" * 8}
        for n in range(41_500)
    ]
    posted = envelope(event(mediaType=manifest, references=listed))
    assert 7 * 1024 * 1024 < len(posted) <= 8 * 1024 * 1024
    assert client.post(PATH, content=posted).json()["accepted"] == 1
    (record,) = tape.events()
    assert [entry["digest"] for entry in record.value["references"]] == [entry["digest"] for entry in listed]


@pytest.mark.parametrize(
    ("pod", "authorization"),
    [
        ("pod-a", None),
        ("pod-a", "Bearer wrong"),
        ("pod-a", f"Bearer {TOKENS['pod-b']}"),
        ("pod-a", f"Basic {TOKENS['pod-a']}"),
        ("pod-a", "Bearer"),
        ("pod-a", "Bearer \xff\xfe"),
        ("nobody", f"Bearer {TOKENS['pod-a']}"),
        ("NOT_A_NAME", f"Bearer {TOKENS['pod-a']}"),
    ],
)
def test_unauthorized(url: str, tape: Tape, pod: str, authorization: str | None) -> None:
    """Every wrong pair of pod and token gets the same 401, and leaves nothing in Kafka."""
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    answer = httpx.post(f"{url}/v1/events/{pod}", content=envelope(event()), headers=headers)
    nobody = httpx.post(f"{url}/v1/events/another", content=b"")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (answer.content, answer.status_code) == (nobody.content, nobody.status_code)
    assert tape.count() == (0, 0)


def test_openapi(url: str) -> None:
    """The OpenAPI document shows the envelope as the body, and the answers that a registry must expect."""
    document = httpx.get(f"{url}/schema/openapi.json").json()
    operation = document["paths"]["/v1/events/{pod}"]["post"]
    assert set(operation["requestBody"]["content"]) == {V1, V2}
    schema = operation["requestBody"]["content"][V1]["schema"]
    assert schema["properties"]["events"]["items"]["properties"]["target"]["required"] == ["repository"]
    assert "#/$defs" not in json.dumps(schema)
    assert {"202", "401", "503"} <= set(operation["responses"])


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
#: Each field of a good event is left alone, nearly good, or anything; most events have few that are not good.
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["", "1", "x" * 300, "a\0b"]) | junk,
    "action": st.sampled_from(["push", "pull", "mount", "delete", "rename", "tag"]) | junk,
    "timestamp": st.sampled_from(
        [
            "2026-11-24T05:31:11Z",
            "9999-12-31T23:59:59-23:59",
            "0001-01-01T00:00:00Z",
            "2026-11-24T05:31:11.1+14:00",
        ]
    ),
    "repository": st.sampled_from(["pod-a/x", "pod-b/x", "pod-a", "", "pod-a/\0", "/", "x" * 300]) | junk,
    "digest": st.sampled_from([DIGEST, "", "sha256:", "md5:00", ...]) | junk,
    "tag": st.sampled_from(["v1", "", ...]) | junk,
    "size": st.sampled_from([0, -1, 2**63, 2**63 - 1, ...]) | junk,
    "mediaType": st.sampled_from(
        ["application/octet-stream", "application/vnd.oci.image.index.v1+json; a=b", "\0", ...]
    ),
    "references": st.sampled_from([[], [{"digest": DIGEST}], [{"digest": "x"}], [{}], ...]) | junk,
    "fromRepository": st.sampled_from(["pod-b/x", "UPPER", ...]) | junk,
    "rename": st.sampled_from([{"type": "name", "from": "pod-a/x", "to": "pod-a/y"}, {}, ...]) | junk,
}
fuzzed_event = junk | st.lists(st.sampled_from(list(CHANGES)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: CHANGES[name] for name in names})
).map(lambda changes: event(**changes))


def events_in(text: str, *, strict: bool) -> int:
    """How many outcomes an envelope must have: one for each event, or one for all of it."""
    try:
        document = json.loads(text, strict=strict)
        events = document["events"]
    except (ValueError, TypeError, KeyError):
        return 1
    return len(events) if isinstance(events, list) else 1


def is_json(body: bytes) -> bool:
    """Whether a body is JSON as RFC 8259 defines it, with valid text only (its section 8.2)."""
    try:
        document = json.loads(body.decode(), parse_constant=lambda name: json.loads(f"not {name}"))
        json.dumps(document, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


def test_fuzzed_envelopes(client: httpx.Client, tape: Tape) -> None:
    """Any body is answered 202, counted event by event, and in Kafka as counted."""
    totals = {"accepted": 0, "dropped": 0, "dead_lettered": 0}

    @hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], database=None)
    @example([{"\ud800": None}, {}], b"", 0)
    @given(st.lists(fuzzed_event, max_size=4), st.just(b"") | st.binary(max_size=3), st.integers(0, 400))
    def post(events: list[Any], noise: bytes, at: int) -> None:
        body = json.dumps({"events": events}).encode()
        body = body[:at] + noise + body[at:]
        answer = client.post(PATH, content=body)
        assert answer.status_code == 202, answer.text
        counted = answer.json()
        allowed = {events_in(body.decode("utf-8", "replace"), strict=False)}
        if not is_json(body):
            allowed.add(1)  # one dead letter of the whole envelope
        assert sum(counted.values()) in allowed
        for kind, count in counted.items():
            totals[kind] += count

    post()
    assert tape.count() == (totals["accepted"], totals["dead_lettered"])
    assert min(totals["accepted"], totals["dead_lettered"]) > 0
