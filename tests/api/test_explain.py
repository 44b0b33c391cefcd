"""Every blob's fate is told: why it is kept, or how it went; and what is hidden can be had back."""

from datetime import timedelta
from typing import Any

import pytest

from coordinator.domain.gc import PodFacts
from coordinator.domain.lifecycle import BlobState
from coordinator.lookup import explain
from tests.api.collecting import World, asked_back
from tests.gc.harness import POD

DAY = timedelta(days=1)


def whys(told: Any) -> list[str]:
    return [reason["why"] for reason in told["reasons"]]


def decisions(told: Any) -> list[str]:
    return [entry["decision"] for entry in told["history"]]


def test_what_is_needed(world: World) -> None:
    """Of a blob that is needed it is told by how many, where, and some of them by name, links with their end."""
    world.garbage.pushed("m", "l")
    world.garbage.apply(world.garbage.link("elsewhere", "l"))
    told = world.explained("l")
    assert (told["outcome"], told["state"], told["reference_count"], told["link_count"]) == ("needed", "live", 1, 1)
    assert "1 holding needs it and 1 repository links it directly, in 2 repositories of pod pod-a" in told["summary"]
    (reference,) = told["references"]
    assert (reference["repository"], reference["manifest"]) == (world.garbage.repository("r"), world.text("m"))
    (link,) = told["links"]
    assert link["repository"] == world.garbage.repository("elsewhere")
    assert link["counts_until"] > link["linked_at"]
    assert whys(told) == ["needed"]
    assert (told["pin"], told["hide"], told["history"]) == (None, None, [])
    assert told["story"][-1] == f"Now: {told['summary']}"


def test_everything_that_keeps_it(world: World) -> None:
    """Of a blob that is kept all reasons are told, each with its end where that is known: what is of it alone first."""
    world.unreferenced("l")
    world.known(
        lambda facts: facts._replace(
            times=facts.times._replace(grace=DAY),
            pods=[PodFacts("pod-x", None, facts.now - DAY)],
            switched_off="an incident",
            held_by=["team is held: a move"],
        )
    )
    world.api.ask("PUT", f"/v1/pins/{world.text('l')}", json={"why": "an audit"})
    told = world.explained("l")
    assert told["outcome"] == "kept"
    assert whys(told) == ["pinned", "grace", "held", "held", "not-reported", "not-reconciled"]
    details = [reason["detail"] for reason in told["reasons"]]
    assert "an audit" in details[0]
    assert (details[2], details[3]) == ("switched off: an incident", "team is held: a move")
    assert all("pod-x" in detail for detail in details[4:])
    grace = told["reasons"][1]["until"]
    assert grace[:10] > told["unreferenced_since"][:10]
    assert "an audit" in told["summary"]
    assert "5 more reasons" in told["summary"]
    assert told["pin"]["why"] == "an audit"


def test_what_nothing_keeps(world: World) -> None:
    """Of what the next run takes it is said that it does: first the hide, then the delete."""
    world.unreferenced("l")
    told = world.explained("l")
    assert (told["outcome"], told["reasons"]) == ("to-be-hidden", [])
    assert "the next run hides it" in told["summary"]
    run = world.garbage.collect()
    told = world.explained("l")
    assert (told["outcome"], told["state"], told["reasons"]) == ("to-be-purged", "hidden", [])
    assert told["hide"]["run"] == run.id
    assert told["hide"]["hidden_at"] is not None


def test_what_is_hidden(world: World) -> None:
    """Of a hidden blob it is told since when and until when, and how it can be had back."""
    world.unreferenced("l")
    world.garbage.collect()
    world.known(lambda facts: facts._replace(times=facts.times._replace(quarantine=DAY)))
    told = world.explained("l")
    assert (told["outcome"], whys(told)) == ("hidden", ["quarantine"])
    assert told["reasons"][0]["until"][:10] > told["hide"]["hidden_at"][:10]
    assert "baleen blob undelete" in told["summary"]
    assert decisions(told) == ["hide", "hidden"]
    assert told["history"][0]["evidence"]["pods"].keys() == {POD}


def test_how_it_went(world: World) -> None:
    """Of a blob that was deleted the whole way is told, in order, with runs, bytes, and what it was decided on."""
    world.unreferenced("l")
    first, second = world.garbage.collect(), world.garbage.collect()
    told = world.explained("l")
    assert (told["outcome"], told["reasons"], told["hide"]) == ("purged", [], None)
    assert decisions(told) == ["hide", "hidden", "purge", "purged"]
    assert [entry["run"] for entry in told["history"]] == [first.id, first.id, second.id, second.id]
    size = len(world.garbage.body("l"))
    assert told["history"][-1]["evidence"]["freed_bytes"] == size
    story = "\n".join(told["story"])
    assert story.index(f"run {first.id} hid it") < story.index(f"run {second.id} deleted its bytes")
    assert f"gave back {size} bytes" in story
    assert "unreferenced since" in story
    assert told["story"][-1].startswith("Now: Its bytes are deleted")


def test_what_comes_back(world: World) -> None:
    """A hidden blob that is needed again is told as being restored, and then as needed, with that in its story."""
    world.unreferenced("l")
    world.garbage.collect()
    world.garbage.tell("again", "l")
    told = world.explained("l")
    assert (told["outcome"], whys(told)) == ("being-restored", ["needed"])
    assert "within seconds" in told["summary"]
    world.garbage.restore()
    told = world.explained("l")
    assert (told["outcome"], decisions(told)) == ("needed", ["hide", "hidden", "restored"])
    assert any("it was served again: it is needed again" in sentence for sentence in told["story"])


@pytest.mark.parametrize(
    ("state", "needed", "outcome", "said"),
    [
        (BlobState.HIDING, False, "being-hidden", "is about to hide it"),
        (BlobState.HIDING, True, "being-restored", "no delete of it can be on its way"),
        (BlobState.PURGING, False, "being-purged", "has begun to delete"),
        (BlobState.PURGED, True, "being-restored", "look whether they were pushed again"),
        (BlobState.MISSING, True, "missing", "an alarm"),
    ],
)
def test_what_is_between(world: World, state: BlobState, needed: bool, outcome: str, said: str) -> None:
    """States that last for moments, and the alarm, have their words, too."""
    world.unreferenced("l")
    world.garbage.collect()
    if needed:
        world.garbage.tell("again", "l")
    digest = world.garbage.digest("l")
    world.api.db.execute("UPDATE blobs SET state = %s WHERE digest = %s", (state, digest))
    told = world.explained("l")
    assert told["outcome"] == outcome
    assert said in told["summary"]


def test_what_was_kept_by_a_look(world: World) -> None:
    """What a run kept against the plan, by a look at storage, says which repository links it."""
    world.unreferenced("l")
    world.api.db.execute(
        "INSERT INTO gc_ledger (digest, decision, why, run_id) VALUES (%s, 'kept', %s, 7)",
        (world.garbage.digest("l"), "repository team/app links it, against what was told"),
    )
    assert any("run 7 kept it: repository team/app links it" in each for each in world.explained("l")["story"])


def test_a_long_story_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long story the newest is told, and that there is more."""
    monkeypatch.setattr(explain, "TOLD", 3)
    world.unreferenced("l")
    world.garbage.collect()
    assert not world.explained("l")["earlier"]
    world.garbage.collect()
    told = world.explained("l")
    assert (told["earlier"], decisions(told)) == (True, ["hidden", "purge", "purged"])
    assert any("left out" in sentence for sentence in told["story"])


def test_what_nobody_has_spoken_of(world: World) -> None:
    """An unknown digest is 404, what is no digest 400, for both calls."""
    for path, status in ((f"sha256:{'0' * 64}", 404), ("latest", 400)):
        assert world.api.get(f"/v1/blobs/{path}/explain").status_code == status
        assert world.api.ask("POST", f"/v1/blobs/{path}/undelete").status_code == status


def test_undelete(world: World) -> None:
    """A hidden blob is served again by a worker's next round, and no run hides it again: it is pinned."""
    world.unreferenced("l")
    world.garbage.collect()
    answer = world.api.ask("POST", f"/v1/blobs/{world.text('l')}/undelete", json={"why": "a wrong cleanup"})
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["pinned"]) == ("hidden", True)
    assert "baleen unpin" in answer.json()["detail"]
    told = world.explained("l")
    assert told["outcome"] == "being-restored"
    assert "a wrong cleanup" in told["summary"]
    assert world.garbage.restore() == 1
    assert world.garbage.seen("l")
    assert not world.garbage.seen("m-l")
    assert world.garbage.collect().hidden == 0
    assert world.garbage.seen("l")
    told = world.explained("l")
    assert (told["outcome"], whys(told)) == ("kept", ["pinned"])
    assert told["pin"]["why"] == "undeleted: a wrong cleanup"
    assert decisions(told) == ["hide", "hidden", "asked-back", "pinned", "restored"]
    assert any("asked back: a wrong cleanup" in sentence for sentence in told["story"])
    world.api.ask("DELETE", f"/v1/pins/{world.text('l')}")
    assert world.garbage.collect().hidden == 1


def test_undelete_for_the_grace(world: World) -> None:
    """Without a pin a blob that was undeleted has its grace anew, and is hidden after it."""
    world.unreferenced("l")
    world.garbage.collect()
    before = world.explained("l")["unreferenced_since"]
    asked_back(world, "l", pin=False)
    world.garbage.restore()
    world.known(lambda facts: facts._replace(times=facts.times._replace(grace=DAY)))
    told = world.explained("l")
    assert told["unreferenced_since"] > before
    assert (told["outcome"], whys(told), told["pin"]) == ("kept", ["grace"], None)
    assert world.garbage.collect().hidden == 0
    world.known(lambda facts: facts)
    assert world.garbage.collect().hidden == 1


def test_undelete_is_asked_before_the_purge(world: World) -> None:
    """From the moment in which a blob is asked back no run deletes its bytes, whichever comes first, worker or run."""
    world.unreferenced("l")
    world.garbage.collect()
    asked_back(world, "l")
    run = world.garbage.collect()
    assert run.purged == 1
    assert run.kept["disturbed"] == 1
    # A run restores what it finds disturbed.
    assert world.garbage.seen("l")
    assert world.explained("l")["outcome"] == "kept"


def test_a_pin_keeps_its_own_reason(world: World) -> None:
    """A blob that was pinned before it is undeleted stays pinned for that."""
    world.unreferenced("l")
    world.garbage.collect()
    world.api.ask("PUT", f"/v1/pins/{world.text('l')}", json={"why": "an audit"})
    answer = world.api.ask("POST", f"/v1/blobs/{world.text('l')}/undelete", json={"pin": False})
    assert answer.json()["pinned"]
    asked_back(world, "l")
    assert world.explained("l")["pin"]["why"] == "an audit"


def test_undelete_of_what_is_needed(world: World) -> None:
    """A hidden blob that is needed again is on its way back already: asking for it only pins it."""
    world.unreferenced("l")
    world.garbage.collect()
    world.garbage.tell("again", "l")
    asked_back(world, "l")
    told = world.explained("l")
    assert (told["unreferenced_since"], told["outcome"]) == (None, "being-restored")
    assert world.garbage.restore() == 1
    assert world.explained("l")["outcome"] == "needed"


def test_what_is_not_hidden_is_not_undeleted(world: World) -> None:
    """What is served, and what is deleted, cannot be undeleted: 409, and nothing is pinned."""
    world.unreferenced("l")
    world.garbage.pushed("live", "n")
    for name, said in (("n", "it is live"), ("l", "it is unreferenced")):
        refused = world.api.ask("POST", f"/v1/blobs/{world.text(name)}/undelete")
        assert refused.status_code == 409
        assert said in refused.json()["detail"]
    world.garbage.collect()
    world.garbage.collect()
    refused = world.api.ask("POST", f"/v1/blobs/{world.text('l')}/undelete")
    assert refused.status_code == 409
    assert "push it again" in refused.json()["detail"]
    assert world.api.pages("/v1/pins") == []
    assert "asked-back" not in world.garbage.ledger("l")
