"""Which repositories and pods a dead letter concerns, and what proves that nothing is lost by it."""

import datetime as dt
import json
from typing import Any

import pytest

from coordinator.domain.dead_letters import REPOSITORIES_LIMIT, DeadLetterPod, find_concern, is_covered
from coordinator.domain.names import RepositoryName
from coordinator.ingest.dead_letters import repositories_in

A, B, RELAY = DeadLetterPod(1, "a", True), DeadLetterPod(2, "b", True), DeadLetterPod(3, "r", False)
PODS = (A, B, RELAY)
OWNERS = {"a": A, "b/team": B, "r": RELAY}
NOON = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def names(*texts: str) -> list[RepositoryName]:
    return [RepositoryName(text) for text in texts]


def event(repository: Any = "a/app", action: str = "push", **target: Any) -> dict[str, Any]:
    return {"id": "e", "action": action, "target": {"repository": repository, "size": -1} | target}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (event(), ["a/app"]),
        ({"events": [event(), event("b/team/x", "delete"), event()]}, ["a/app", "b/team/x"]),
        ({"events": []}, []),
        (event(action="rename", rename={"type": "name", "from": "a/app", "to": "a/new"}), ["a/app", "a/new"]),
        ({"action": "push", "pod": "x", "repository": "a/app"}, ["a/app"]),
        ({"action": "rename", "repository": "a/x", "rename": {"source": "a/x", "destination": "a/y"}}, ["a/x", "a/y"]),
        # What it is about is not known, in all that follow.
        (event(action="copy"), None),
        (event(action="rename"), None),
        (event("Not A Name"), None),
        (event("x" * 256), None),
        ({"events": [event(), {"action": "push"}]}, None),
        ({"events": [event(), event(7)]}, None),
        ({}, None),
        ([], None),
        ("text", None),
        ({"events": [event(f"a/{n}") for n in range(REPOSITORIES_LIMIT + 1)]}, None),
    ],
)
def test_what_a_payload_is_about(payload: Any, expected: list[str] | None) -> None:
    """A payload is about the repositories of all its events, and about any repository if one event names none."""
    assert repositories_in(json.dumps(payload).encode()) == expected


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b'{"events": [', b"[" * 100_000, b"," * 400_001])
def test_what_is_no_json_may_be_about_any(payload: bytes) -> None:
    """Bytes that cannot be read, or would cost too much to read, are about any repository."""
    assert repositories_in(payload) is None


def test_whom_a_dead_letter_concerns() -> None:
    """A dead letter concerns the owners of its repositories; those that no reconcile can list are named."""
    found = find_concern(names("a", "a/x", "b/team/y", "b/other", "r/z"), "a", PODS, OWNERS)
    assert found.pods == {A: ["a", "a/x"], B: ["b/team/y"], RELAY: ["r/z"]}
    assert found.unlisted == ["b/other", "r/z"]
    assert find_concern(names("r/z"), "r", PODS, OWNERS) == ({RELAY: ["r/z"]}, [])
    assert find_concern([], "a", PODS, OWNERS) == ({}, [])


@pytest.mark.parametrize(("sender", "pods"), [("a", {A, B}), ("r", set(PODS)), ("", set(PODS)), ("gone", {A, B})])
def test_what_may_be_about_any_concerns_each_pod(sender: str, pods: set[DeadLetterPod]) -> None:
    """A dead letter about any repository concerns the sender and each pod whose links can be listed."""
    assert set(find_concern(None, sender, PODS, OWNERS).pods) == pods


def test_what_covers_a_dead_letter() -> None:
    """A dead letter is covered by reconciles of all its pods that began after it, if nothing is stored of what no
    reconcile lists.
    """
    both = find_concern(names("a/x", "b/team/y"), "a", PODS, OWNERS)
    assert is_covered(both, NOON, {1: NOON, 2: NOON}, ())
    assert not is_covered(both, NOON, {1: NOON, 2: NOON - SECOND}, ())
    assert not is_covered(both, NOON, {1: NOON}, ())
    unowned = find_concern(names("a/x", "b/other"), "a", PODS, OWNERS)
    assert not is_covered(unowned, NOON, {1: NOON}, ())
    assert is_covered(unowned, NOON, {1: NOON}, names("b/other"))
    # Nothing shows what a pod has whose links are elsewhere.
    relayed = find_concern(names("r/x"), "r", PODS, OWNERS)
    assert not is_covered(relayed, NOON, {3: NOON}, names("r/x"))
