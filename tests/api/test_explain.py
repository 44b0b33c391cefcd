"""`explain` says of every blob why it is kept or how it was deleted; a hidden blob can be undeleted."""

from datetime import timedelta
from typing import Any

import pytest

from coordinator.domain.gc import PodFacts
from coordinator.domain.lifecycle import BlobState
from tests.api.collecting import World, asked_back
from tests.gc.harness import POD

DAY = timedelta(days=1)


def whys(shown: Any) -> list[str]:
    return [reason["why"] for reason in shown["reasons"]]


def decisions(shown: Any) -> list[str]:
    return [entry["decision"] for entry in shown["history"]]


def test_what_is_needed(world: World) -> None:
    """A needed blob is explained by its counts, some of its references, and its links with their end."""
    world.garbage.pushed("m", "l")
    world.garbage.apply(world.garbage.link("elsewhere", "l"))
    shown = world.explained("l")
    assert (shown["outcome"], shown["state"], shown["reference_count"], shown["link_count"]) == ("needed", "live", 1, 1)
    assert "1 holding needs it and 1 repository links it directly, in 2 repositories of pod pod-a" in shown["summary"]
    (reference,) = shown["references"]
    assert (reference["repository"], reference["manifest"]) == (world.garbage.repository("r"), world.text("m"))
    (link,) = shown["links"]
    assert link["repository"] == world.garbage.repository("elsewhere")
    assert link["counts_until"] > link["linked_at"]
    assert whys(shown) == ["needed"]
    assert (shown["pin"], shown["hide"], shown["history"]) == (None, None, [])
    assert shown["sentences"][-1] == f"Now: {shown['summary']}"


def test_everything_that_keeps_it(world: World) -> None:
    """A kept blob is explained by all reasons, its own first, each with its end if that is known."""
    world.unreferenced("l")
    world.known(
        lambda facts: facts._replace(
            times=facts.times._replace(grace=DAY),
            pods=[PodFacts("pod-x", None, facts.now - DAY)],
            switched_off="an incident",
            blocked_by=["team is held: a move"],
        )
    )
    world.api.ask("PUT", f"/v1/pins/{world.text('l')}", json={"why": "an audit"})
    shown = world.explained("l")
    assert shown["outcome"] == "kept"
    assert whys(shown) == ["pinned", "grace", "held", "held", "not-reported", "not-reconciled"]
    details = [reason["detail"] for reason in shown["reasons"]]
    assert "an audit" in details[0]
    assert (details[2], details[3]) == ("switched off: an incident", "team is held: a move")
    assert all("pod-x" in detail for detail in details[4:])
    grace = shown["reasons"][1]["until"]
    assert grace[:10] > shown["unreferenced_since"][:10]
    assert "an audit" in shown["summary"]
    assert "5 more reasons" in shown["summary"]
    assert shown["pin"]["why"] == "an audit"


def test_what_nothing_keeps(world: World) -> None:
    """A blob that the next run takes is explained as to be hidden, and then as to be purged."""
    world.unreferenced("l")
    shown = world.explained("l")
    assert (shown["outcome"], shown["reasons"]) == ("to-be-hidden", [])
    assert "the next run hides it" in shown["summary"]
    run = world.garbage.collect()
    shown = world.explained("l")
    assert (shown["outcome"], shown["state"], shown["reasons"]) == ("to-be-purged", "hidden", [])
    assert shown["hide"]["run"] == run.id
    assert shown["hide"]["hidden_at"] is not None


def test_what_is_hidden(world: World) -> None:
    """A hidden blob is explained with since when and until when, and how to undelete it."""
    world.hidden("l")
    world.known(lambda facts: facts._replace(times=facts.times._replace(quarantine=DAY)))
    shown = world.explained("l")
    assert (shown["outcome"], whys(shown)) == ("hidden", ["quarantine"])
    assert shown["reasons"][0]["until"][:10] > shown["hide"]["hidden_at"][:10]
    assert "baleen blob undelete" in shown["summary"]
    assert decisions(shown) == ["hide", "hidden"]
    assert shown["history"][0]["evidence"]["pods"].keys() == {POD}


def test_how_it_went(world: World) -> None:
    """A deleted blob is explained by its whole history, in order, with runs, bytes and evidence."""
    world.unreferenced("l")
    first, second = world.garbage.collect(), world.garbage.collect()
    shown = world.explained("l")
    assert (shown["outcome"], shown["reasons"], shown["hide"]) == ("purged", [], None)
    assert decisions(shown) == ["hide", "hidden", "purge", "purged"]
    assert [entry["run"] for entry in shown["history"]] == [first.id, first.id, second.id, second.id]
    size = len(world.garbage.body("l"))
    assert shown["history"][-1]["evidence"]["freed_bytes"] == size
    sentences = "\n".join(shown["sentences"])
    assert sentences.index(f"run {first.id} hid it") < sentences.index(f"run {second.id} deleted its bytes")
    assert f"{size} bytes of storage were freed" in sentences
    assert "unreferenced since" in sentences
    assert shown["sentences"][-1].startswith("Now: Its bytes are deleted")


def test_what_comes_back(world: World) -> None:
    """A hidden blob that is needed again is shown as being restored, and then as needed."""
    world.hidden("l")
    world.garbage.report("again", "l")
    shown = world.explained("l")
    assert (shown["outcome"], whys(shown)) == ("being-restored", ["needed"])
    assert "within seconds" in shown["summary"]
    world.garbage.restore()
    shown = world.explained("l")
    assert (shown["outcome"], decisions(shown)) == ("needed", ["hide", "hidden", "restored"])
    assert any("it was served again: it is needed again" in sentence for sentence in shown["sentences"])


@pytest.mark.parametrize(
    ("state", "needed", "outcome", "text"),
    [
        (BlobState.HIDING, False, "being-hidden", "is hiding it"),
        (BlobState.HIDING, True, "being-restored", "no delete of it can still be under way"),
        (BlobState.PURGING, False, "being-purged", "has begun to delete"),
        (BlobState.PURGED, True, "being-restored", "check whether they were pushed again"),
        (BlobState.MISSING, True, "missing", "an alarm"),
    ],
)
def test_what_is_between(world: World, state: BlobState, needed: bool, outcome: str, text: str) -> None:
    """States that last for moments, and the alarm, have sentences, too."""
    world.hidden("l")
    if needed:
        world.garbage.report("again", "l")
    digest = world.garbage.digest("l")
    world.api.db.execute("UPDATE blobs SET state = %s WHERE digest = %s", (state, digest))
    shown = world.explained("l")
    assert shown["outcome"] == outcome
    assert text in shown["summary"]


def test_what_was_kept_by_a_check(world: World) -> None:
    """A blob that a run kept after it verified storage names the repository that links it."""
    world.unreferenced("l")
    world.api.db.execute(
        "INSERT INTO gc_ledger (digest, decision, why, run_id) VALUES (%s, 'kept', %s, 7)",
        (world.garbage.digest("l"), "repository team/app links it, though its events say otherwise"),
    )
    assert any("run 7 kept it: repository team/app links it" in each for each in world.explained("l")["sentences"])


def test_a_long_history_is_cut(world: World) -> None:
    """Of a long history the newest sentences are shown, and that earlier ones are left out."""
    world.unreferenced("l")
    world.garbage.collect()
    with world.sizes(entries=3):
        assert not world.explained("l")["earlier"]
        world.garbage.collect()
        shown = world.explained("l")
    assert (shown["earlier"], decisions(shown)) == (True, ["hidden", "purge", "purged"])
    assert any("left out" in sentence for sentence in shown["sentences"])


def test_what_no_registry_has_reported(world: World) -> None:
    """An unknown digest is 404 and a malformed one 400, for both calls."""
    for path, status in ((f"sha256:{'0' * 64}", 404), ("latest", 400)):
        assert world.api.get(f"/v1/blobs/{path}/explain").status_code == status
        assert world.api.ask("POST", f"/v1/blobs/{path}/undelete").status_code == status


def test_undelete(world: World) -> None:
    """An undeleted blob is served again after a worker's next round, and pinned, so that no run hides it."""
    world.hidden("l")
    answer = world.api.ask("POST", f"/v1/blobs/{world.text('l')}/undelete", json={"why": "a wrong cleanup"})
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["pinned"]) == ("hidden", True)
    assert "baleen unpin" in answer.json()["detail"]
    shown = world.explained("l")
    assert shown["outcome"] == "being-restored"
    assert "a wrong cleanup" in shown["summary"]
    assert world.garbage.restore() == 1
    assert world.garbage.is_served("l")
    assert not world.garbage.is_served("m-l")
    assert world.garbage.collect().hidden == 0
    assert world.garbage.is_served("l")
    shown = world.explained("l")
    assert (shown["outcome"], whys(shown)) == ("kept", ["pinned"])
    assert shown["pin"]["why"] == "undeleted: a wrong cleanup"
    assert decisions(shown) == ["hide", "hidden", "asked-back", "pinned", "restored"]
    assert any("asked back: a wrong cleanup" in sentence for sentence in shown["sentences"])
    world.api.ask("DELETE", f"/v1/pins/{world.text('l')}")
    assert world.garbage.collect().hidden == 1


def test_undelete_for_the_grace(world: World) -> None:
    """A blob that is undeleted without a pin gets a new grace period, and is hidden after it."""
    world.hidden("l")
    before = world.explained("l")["unreferenced_since"]
    asked_back(world, "l", pin=False)
    world.garbage.restore()
    world.known(lambda facts: facts._replace(times=facts.times._replace(grace=DAY)))
    shown = world.explained("l")
    assert shown["unreferenced_since"] > before
    assert (shown["outcome"], whys(shown), shown["pin"]) == ("kept", ["grace"], None)
    assert world.garbage.collect().hidden == 0
    world.known(lambda facts: facts)
    assert world.garbage.collect().hidden == 1


def test_undelete_is_asked_before_the_purge(world: World) -> None:
    """Once an undelete is accepted no run deletes the blob's bytes, even if it comes before a worker."""
    world.hidden("l")
    asked_back(world, "l")
    run = world.garbage.collect()
    assert run.purged == 1
    assert run.kept["disturbed"] == 1
    # A run restores what it finds disturbed.
    assert world.garbage.is_served("l")
    assert world.explained("l")["outcome"] == "kept"


def test_a_pin_keeps_its_own_reason(world: World) -> None:
    """A blob that was pinned before it is undeleted keeps the reason of that pin."""
    world.hidden("l")
    world.api.ask("PUT", f"/v1/pins/{world.text('l')}", json={"why": "an audit"})
    answer = world.api.ask("POST", f"/v1/blobs/{world.text('l')}/undelete", json={"pin": False})
    assert answer.json()["pinned"]
    asked_back(world, "l")
    assert world.explained("l")["pin"]["why"] == "an audit"


def test_undelete_of_what_is_needed(world: World) -> None:
    """An undelete of a hidden blob that is needed again only pins it."""
    world.hidden("l")
    world.garbage.report("again", "l")
    asked_back(world, "l")
    shown = world.explained("l")
    assert (shown["unreferenced_since"], shown["outcome"]) == (None, "being-restored")
    assert world.garbage.restore() == 1
    assert world.explained("l")["outcome"] == "needed"


def test_what_is_not_hidden_is_not_undeleted(world: World) -> None:
    """An undelete of a blob that is served or deleted is refused with 409 and pins nothing."""
    world.unreferenced("l")
    world.garbage.pushed("live", "n")
    for name, text in (("n", "it is live"), ("l", "it is unreferenced")):
        refused = world.api.ask("POST", f"/v1/blobs/{world.text(name)}/undelete")
        assert refused.status_code == 409
        assert text in refused.json()["detail"]
    world.garbage.collect()
    world.garbage.collect()
    refused = world.api.ask("POST", f"/v1/blobs/{world.text('l')}/undelete")
    assert refused.status_code == 409
    assert "push it again" in refused.json()["detail"]
    assert world.api.pages("/v1/pins") == []
    assert "asked-back" not in world.garbage.ledger("l")
