"""The plan is what a run does, runs are requested and shown, and controls stop them at once."""

from datetime import timedelta
from typing import Any

import pytest

from coordinator.domain.gc import Amount, Limits
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import format_digest
from coordinator.storage.layout import blob_key
from tests.api.collecting import World, asked_back
from tests.api.harness import READ, Json


def test_the_plan_is_what_a_run_does(world: World) -> None:
    """What the plan would hide is hidden, what it would purge is purged, and its totals are those of both."""
    garbage = world.garbage
    world.unreferenced("l", "k")
    garbage.pushed("live", "n")
    to_delete = {world.text(name): "hide" for name in ("m-l", "l", "k")}
    assert world.steps() == to_delete
    planned = world.plan()
    assert planned["blocked_by"] == []
    assert planned["totals"]["hide"] == {"blobs": 3, "bytes": 70 + 7 + 7}
    assert garbage.collect().hidden == 3
    assert world.steps() == dict.fromkeys(to_delete, "purge")
    totals = world.plan()["totals"]
    run = garbage.collect()
    assert totals["purge"] == {"blobs": run.purged, "bytes": run.freed}
    assert world.steps() == {}
    assert world.plan()["totals"] == {
        "hide": {"blobs": 0, "bytes": 0},
        "purge": {"blobs": 0, "bytes": 0},
        "kept": {},
        "unfinished": 0,
    }


def test_what_the_plan_keeps(world: World) -> None:
    """Each blob that is kept has its reason and a sentence, as the dry run counts them."""
    garbage = world.garbage
    world.unreferenced("gone")
    garbage.collect()
    garbage.report("other", "gone")
    world.unreferenced("l")
    assert world.api.ask("PUT", f"/v1/pins/{world.text('l')}", json={"why": "an audit"}).status_code == 200
    day = timedelta(days=1)
    world.known(lambda facts: facts._replace(times=facts.times._replace(quarantine=day)))
    assert world.steps() == {
        world.text("gone"): "needed",
        world.text("m-gone"): "quarantine",
        world.text("l"): "pinned",
        world.text("m-l"): "hide",
    }
    planned = world.plan(limit=1000)
    details = {item["digest"]: item["detail"] for item in planned["items"]}
    assert "baleen unpin" in details[world.text("l")]
    assert "24 h" in details[world.text("m-gone")]
    dry = garbage.collect(dry=True)
    assert {why: kept["blobs"] for why, kept in planned["totals"]["kept"].items()} == dry.kept
    assert planned["totals"]["hide"]["blobs"] == dry.hidden == 1


def test_a_plan_that_is_held(world: World) -> None:
    """While anything blocks GC the plan keeps everything for that, and shows what would go if asked with
    `despite_holds`.
    """
    world.unreferenced("l")
    turned(world, on=False)
    held = world.plan()
    assert held["blocked_by"] == ["switched off: an incident"]
    assert {item["why"] for item in held["items"]} == {"held"}
    assert (held["hide_until"], held["totals"]["kept"]["held"]["blobs"]) == (None, 2)
    freed = world.plan(despite_holds=True)
    assert (freed["blocked_by"], freed["totals"]["hide"]["blobs"]) == (held["blocked_by"], 2)
    assert {item["step"] for item in freed["items"]} == {"hide"}


def test_what_a_status_waits_for(world: World) -> None:
    """A status says what its bounds wait for, and nothing while GC is blocked."""
    turned(world, on=False)
    status = world.api.get("/v1/gc/status").json()
    assert (status["hide_waits_for"], status["purge_waits_for"]) == (None, None)
    turned(world, on=True)
    assert world.api.get("/v1/gc/status").json()["hide_waits_for"].startswith("unreferenced for less than")


@pytest.mark.parametrize("step", [None, "hide", "keep"])
def test_a_plan_while_blobs_come(world: World, step: str | None) -> None:
    """Every blob of the plan's first page is listed once while others are added, also in short pages."""
    for number in range(4):
        world.unreferenced(f"hidden{number}")
    world.garbage.collect()
    for number in range(4):
        world.unreferenced(f"l{number}")
    hour = timedelta(hours=1)
    world.known(lambda facts: facts._replace(times=facts.times._replace(quarantine=hour)))
    before = set(world.steps(limit=1000))
    assert len(before) == 16
    new = iter(range(100, 103))

    def add() -> None:
        if (number := next(new, None)) is not None:
            world.unreferenced(f"l{number}")

    parameters = {"limit": 3} | ({} if step is None else {"step": step})
    with world.sizes(plan_walk=2):
        items = world.api.pages("/v1/gc/plan", between=add, **parameters)
    found = [item["digest"] for item in items]
    assert len(found) == len(set(found))
    of_step = [item for item in items if step in {None, item["step"]}]
    assert of_step == items
    kept = {world.text(f"{m}hidden{number}") for m in ("", "m-") for number in range(4)}
    assert {None: before, "hide": before - kept, "keep": kept}[step] <= set(found)


def test_totals_come_with_the_first_page(world: World) -> None:
    """Only the first page of a plan has totals."""
    world.unreferenced("l", "k")
    first = world.plan(limit=2)
    rest = world.plan(limit=2, cursor=first["next"])
    assert first["totals"]["hide"]["blobs"] == 3
    assert rest["totals"] is None
    assert len(first["items"]) + len(rest["items"]) == 3


def test_a_run(world: World) -> None:
    """A run is requested once, shown while it waits, and shown at its end with what it did and decided."""
    world.unreferenced("l")
    run = asked(world, {"why": "a full disk"})
    assert (run["state"], run["why"], run["dry_run"], run["planned"]) == ("waiting", "a full disk", False, None)
    assert asked(world) == run
    world.garbage.run_waiting()
    done = world.api.get(f"/v1/gc/runs/{run['id']}").json()
    assert (done["state"], done["hidden"]["blobs"], done["purged"]) == ("done", 2, {"blobs": 0, "bytes": 0})
    assert done["planned"]["hide"]["blobs"] == 2
    decided = world.api.pages(f"/v1/gc/runs/{run['id']}/decisions", limit=1)
    assert sorted((each["digest"], each["decision"]) for each in decided) == sorted(
        (world.text(name), decision) for name in ("l", "m-l") for decision in ("hide", "hidden")
    )
    assert {each["run"] for each in decided} == {run["id"]}
    assert [each["id"] for each in decided] == sorted(each["id"] for each in decided)
    second = asked(world)
    assert second["id"] > run["id"]
    assert [each["id"] for each in world.api.pages("/v1/gc/runs", limit=1)] == [second["id"], run["id"]]


def test_decisions_outlive_their_run(world: World) -> None:
    """A run's decisions are shown after the run is removed; an unknown run is 404."""
    world.unreferenced("l")
    run = world.garbage.collect()
    world.api.db.execute("DELETE FROM jobs")
    assert len(world.api.pages(f"/v1/gc/runs/{run.id}/decisions")) == 4
    assert world.api.get(f"/v1/gc/runs/{run.id}").status_code == 404
    assert world.api.get("/v1/gc/runs/999999/decisions").status_code == 404


def test_a_reconcile_is_no_run(world: World) -> None:
    """Jobs of another kind are no runs."""
    (row,) = world.garbage.rows(
        "INSERT INTO jobs (kind, pod_id, why) SELECT 'reconcile', id, 'x' FROM pods LIMIT 1 RETURNING id"
    )
    assert world.api.get(f"/v1/gc/runs/{row[0]}").status_code == 404
    assert world.api.get(f"/v1/gc/runs/{row[0]}/decisions").status_code == 404
    assert world.api.pages("/v1/gc/runs") == []


def test_a_run_is_refused_while_a_control_is_on(world: World) -> None:
    """With the switch off, or a hold, only a dry run is accepted, and the refusal says how to release it."""
    turned(world, on=False)
    refused = world.api.ask("POST", "/v1/gc/runs")
    assert refused.status_code == 409
    assert "an incident" in refused.json()["detail"]
    assert "baleen gc on" in refused.json()["detail"]
    turned(world, on=True)
    world.api.ask("PUT", "/v1/holds/team/app", json={"why": "a move"})
    refused = world.api.ask("POST", "/v1/gc/runs", json={})
    assert refused.status_code == 409
    assert "baleen release team/app" in refused.json()["detail"]
    assert asked(world, {"dry_run": True})["dry_run"]
    world.garbage.run_waiting()
    world.api.ask("DELETE", "/v1/holds/team/app")
    assert not asked(world)["dry_run"]


def test_without_a_switch_nothing_is_asked_for(world: World) -> None:
    """A switch that was never turned is off."""
    world.api.db.execute("DELETE FROM gc_switch")
    assert world.api.ask("POST", "/v1/gc/runs").status_code == 409
    assert world.api.get("/v1/gc/switch").json() == {
        "enabled": False,
        "why": "it was never switched on: `baleen gc on --why …`",
        "changed_at": None,
        "mark_pending": False,
    }
    assert not world.api.get("/v1/gc/status").json()["enabled"]


def test_what_cannot_be_read_is_no_answer(world: World) -> None:
    """While the controls cannot be read, runs, plan and status are refused with 503."""
    world.api.db.execute("ALTER TABLE holds RENAME TO elsewhere")
    try:
        for method, path in (
            ("POST", "/v1/gc/runs"),
            ("GET", "/v1/gc/plan"),
            ("GET", "/v1/gc/status"),
            ("GET", "/v1/status"),
        ):
            assert world.api.ask(method, path).status_code == 503, path
        assert "baleen_gc_enabled NaN" in world.api.get("/metrics", None).text
        assert world.garbage.rows("SELECT FROM jobs") == []
    finally:
        world.api.db.execute("ALTER TABLE elsewhere RENAME TO holds")


def test_beyond_limits(world: World) -> None:
    """A run that would take too much is refused unless its request has a reason for it."""
    world.garbage.limits = Limits(1, 1, Amount(0, 0))
    world.unreferenced("l")
    refused = asked(world)
    world.garbage.run_waiting()
    refused = world.api.get(f"/v1/gc/runs/{refused['id']}").json()
    assert (refused["state"], refused["hidden"]["blobs"]) == ("failed", 0)
    assert "--beyond-limits" in refused["error"]
    allowed = asked(world, {"beyond_limits": "a tenant left"})
    assert allowed["beyond_limits"] == "a tenant left"
    world.garbage.run_waiting()
    assert world.api.get(f"/v1/gc/runs/{allowed['id']}").json()["hidden"]["blobs"] == 2


def test_leftovers_at_once(world: World) -> None:
    """A run looks for leftovers at once only if its request says so."""
    plain = asked(world)
    assert not plain["leftovers"]
    world.garbage.run_waiting()
    shown = asked(world, {"leftovers": True})
    assert shown["leftovers"]
    assert [row[0] for row in world.garbage.rows("SELECT options FROM jobs ORDER BY id")] == [{}, {"leftovers": True}]


def test_the_switch(world: World) -> None:
    """The switch is turned with a reason, is shown at once everywhere, and stops a waiting run."""
    world.unreferenced("l")
    run = asked(world)
    off = turned(world, on=False)
    assert (off["enabled"], off["why"]) == (False, "an incident")
    assert off["changed_at"] is not None
    assert world.api.get("/v1/gc/switch").json() == off
    for path in ("/v1/status", "/v1/gc/status"):
        shown = world.api.get(path).json()
        shown = shown.get("gc", shown)
        assert not shown["enabled"]
        assert shown["blocked_by"][0] == "switched off: an incident"
    world.garbage.run_waiting()
    stopped = world.api.get(f"/v1/gc/runs/{run['id']}").json()
    assert stopped["hidden"]["blobs"] == 0
    assert stopped["blocked_by"] == ["switched off: an incident"]
    assert world.garbage.is_served("l")
    turned(world, on=True)
    assert world.api.get("/v1/status").json()["gc"]["enabled"]


def test_holds(world: World) -> None:
    """A hold is set, changed, listed, shown and released; its scope is a pod's or repositories' name."""
    for scope, why in (("team", "a move"), ("pod-a", "x"), ("team/app", "y"), ("team", "another")):
        answer = world.api.ask("PUT", f"/v1/holds/{scope}", json={"why": why})
        assert (answer.status_code, answer.json()["scope"], answer.json()["why"]) == (200, scope, why)
    assert [each["scope"] for each in world.api.pages("/v1/holds", limit=1)] == ["pod-a", "team", "team/app"]
    assert world.api.get("/v1/holds/team/app").json()["why"] == "y"
    shown = world.api.get("/v1/status").json()["gc"]["blocked_by"]
    assert [reason for reason in shown if "is held" in reason] == [
        "pod-a is held: x",
        "team is held: another",
        "team/app is held: y",
    ]
    for scope in ("pod-a", "team", "team/app"):
        assert world.api.ask("DELETE", f"/v1/holds/{scope}").status_code == 204
        assert world.api.ask("DELETE", f"/v1/holds/{scope}").status_code == 404
        assert world.api.get(f"/v1/holds/{scope}").status_code == 404
    assert world.api.ask("PUT", "/v1/holds/Team").status_code == 400
    assert world.api.ask("PUT", "/v1/holds/team").json()["why"] == "an operator asked"


def test_many_holds_are_reported_in_short(world: World) -> None:
    """A status names some holds and counts the others."""
    for number in range(25):
        world.api.db.execute("INSERT INTO holds VALUES (%s, 'x')", (f"team{number:02}",))
    shown = [
        each for each in world.api.get("/v1/status").json()["gc"]["blocked_by"] if "held" in each and "pod" not in each
    ]
    assert (shown[0], shown[-1]) == ("team00 is held: x", "5 more are held: `baleen gc holds`")
    assert len(shown) == 21


def test_pins(world: World) -> None:
    """A pinned blob is shown as pinned everywhere and not collected until it is unpinned."""
    world.unreferenced("l")
    digest = world.text("l")
    pinned = world.api.ask("PUT", f"/v1/pins/{digest}", json={"why": "an audit"}).json()
    assert (pinned["why"], pinned["state"]) == ("an audit", "unreferenced")
    assert world.api.get(f"/v1/pins/{digest}").json() == pinned
    assert world.api.ask("PUT", f"/v1/pins/{digest}").json()["why"] == "an operator asked"
    assert flags(world) == {digest: True, world.text("m-l"): False}
    assert world.garbage.collect().hidden == 1
    assert world.garbage.is_served("l")
    assert world.api.ask("DELETE", f"/v1/pins/{digest}").status_code == 204
    assert world.api.ask("DELETE", f"/v1/pins/{digest}").status_code == 404
    assert world.api.get(f"/v1/pins/{digest}").status_code == 404
    assert not any(flags(world).values())
    assert world.garbage.collect().hidden == 1
    assert world.garbage.ledger("l")[:3] == ["pinned", "pinned", "unpinned"]


def flags(world: World) -> dict[str, bool]:
    """Whether each blob is pinned, on which all calls must agree."""
    digests = [world.text(name) for name in ("l", "m-l")]
    shown = {digest: world.api.get(f"/v1/blobs/{digest}").json()["pinned"] for digest in digests}
    checked = world.api.ask("POST", "/v1/blobs/lookup", json={"digests": digests}).json()["items"]
    lists = [world.api.pages("/v1/blobs", sort=sort) for sort in ("first_seen", "unreferenced_since", "references")]
    for items in (checked, *lists):
        assert {item["digest"]: item["pinned"] for item in items} == shown
    return shown


def test_pins_are_listed(world: World) -> None:
    """Pins are listed by digest, page by page, also of blobs that no registry has reported."""
    digests = sorted(f"sha256:{character * 64}" for character in "0369cf")
    for digest in digests:
        assert world.api.ask("PUT", f"/v1/pins/{digest}", json={}).json()["state"] is None
    assert [each["digest"] for each in world.api.pages("/v1/pins", limit=2)] == digests


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/gc/switch", {"enabled": True}),
        ("PUT", "/v1/gc/switch", {"enabled": True, "why": " "}),
        ("PUT", "/v1/gc/switch", {"enabled": "yes", "why": "x"}),
        ("PUT", "/v1/holds/team", {"why": "x\0"}),
        ("PUT", f"/v1/pins/sha256:{'0' * 64}", {"why": "x" * 1001}),
        ("PUT", "/v1/pins/latest", {"why": "x"}),
        ("POST", "/v1/gc/runs", {"why": "x\0"}),
        ("POST", "/v1/gc/runs", {"beyond_limits": ""}),
        ("POST", "/v1/gc/runs", {"beyond_limits": "\0"}),
        ("POST", "/v1/gc/runs", {"dry": True}),
        ("POST", f"/v1/blobs/sha256:{'0' * 64}/undelete", {"why": "\0"}),
        ("GET", "/v1/gc/plan?step=delete", None),
        ("GET", "/v1/gc/plan?cursor=x", None),
    ],
)
def test_what_does_not_fit(world: World, method: str, path: str, body: Json) -> None:
    """A malformed request is refused with a sentence and changes nothing."""
    answer = world.api.ask(method, path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"]
    assert world.garbage.rows("SELECT FROM jobs UNION ALL SELECT FROM holds UNION ALL SELECT FROM pins") == []


def test_who_reads_changes_nothing(world: World) -> None:
    """A token of role read sees everything and changes nothing."""
    world.unreferenced("l")
    digest = world.text("l")
    run = asked(world)
    for path in (
        "/v1/gc/status",
        "/v1/gc/plan",
        "/v1/gc/runs",
        f"/v1/gc/runs/{run['id']}",
        f"/v1/gc/runs/{run['id']}/decisions",
        "/v1/gc/switch",
        "/v1/pins",
        "/v1/holds",
        f"/v1/blobs/{digest}/explain",
    ):
        assert world.api.get(path, READ).status_code == 200, path
        assert world.api.get(path, None).status_code == 401, path
    for method, path, body in (
        ("PUT", "/v1/gc/switch", {"enabled": False, "why": "x"}),
        ("POST", "/v1/gc/runs", {}),
        ("PUT", f"/v1/pins/{digest}", {}),
        ("DELETE", f"/v1/pins/{digest}", None),
        ("PUT", "/v1/holds/team", {}),
        ("DELETE", "/v1/holds/team", None),
        ("POST", f"/v1/blobs/{digest}/undelete", {}),
    ):
        assert world.api.ask(method, path, READ, json=body).status_code == 403, path


def test_the_status(world: World) -> None:
    """The status counts unreferenced and hidden blobs, and shows what waits and the runs before and after."""
    world.hidden("l")
    world.unreferenced("k")
    shown = world.api.get("/v1/gc/status").json()
    assert (shown["enabled"], shown["blocked_by"], shown["open_run"]) == (True, [], None)
    assert (shown["hidden"]["blobs"], shown["unreferenced"]["blobs"]) == (2, 2)
    assert shown["unreferenced_since"] is not None
    assert shown["last_run"]["hidden"]["blobs"] == 2
    assert shown["next_run_at"] > shown["last_run"]["began_at"]
    world.garbage.report("again", "l")
    asked_back(world, "m-l")
    run = asked(world)
    shown = world.api.get("/v1/gc/status").json()
    assert shown["open_run"]["id"] == run["id"]
    assert shown["restores_waiting"] == {"hidden": 2, "unfinished": 0, "purged": 0}
    assert world.garbage.restore() == 2
    assert world.api.get("/v1/gc/status").json()["restores_waiting"]["hidden"] == 0


def test_hides_without_an_end_are_counted(world: World) -> None:
    """Hides that a dead job left unfinished are in the plan and the status until the next run undoes them."""
    world.hidden("l")
    world.api.db.execute("UPDATE hides SET purging_at = now(), run_id = 0")
    world.api.db.execute("UPDATE blobs SET state = %s WHERE state = %s", (BlobState.PURGING, BlobState.HIDDEN))
    assert world.plan()["totals"]["unfinished"] == 2
    assert world.api.get("/v1/gc/status").json()["unfinished"] == 2
    world.garbage.collect()
    assert world.plan()["totals"]["unfinished"] == 0


def test_metrics(world: World) -> None:
    """Metrics show the switch, what is hidden and unreferenced, and what waits to be restored."""
    world.hidden("l")
    world.garbage.report("again", "l")
    world.unreferenced("k")
    assert world.api.metric("baleen_gc_enabled") == 1
    assert world.api.metric("baleen_gc_hidden_blobs") == 2
    assert world.api.metric("baleen_gc_unreferenced_blobs") == 2
    assert world.api.metric("baleen_gc_oldest_candidate_seconds") >= 0
    assert world.api.metric("baleen_gc_shown_by_others_total") == 0
    assert world.api.metric('baleen_gc_restores_waiting_blobs{state="hidden"}') == 1
    turned(world, on=False)
    assert world.api.metric("baleen_gc_enabled") == 0


def test_what_others_show_is_an_alarm(world: World) -> None:
    """Status and metrics count the purges that were called off, and name the last blob; its history says why."""
    world.hidden("l")
    hide = world.garbage.hide_of("l")
    assert hide is not None
    assert hide.marker is not None
    assert world.garbage.store.remove_marker(blob_key(hide.digest), hide.marker)
    world.garbage.collect()
    shown = world.api.get("/v1/gc/status").json()["shown_by_others"]
    assert (shown["count"], shown["last_digest"]) == (1, format_digest(hide.digest))
    assert "baleen_gc_shown_by_others_total 1.0" in world.api.get("/metrics", None).text
    explained = world.api.get(f"/v1/blobs/{format_digest(hide.digest)}/explain").json()
    assert any("which is an alarm" in each for each in explained["sentences"])


def test_what_is_pinned_is_no_oldest_candidate(world: World) -> None:
    """A pinned blob is not the oldest candidate, however long it stays."""
    world.unreferenced("l")
    world.api.db.execute("UPDATE blobs SET unreferenced_since = unreferenced_since - interval '1 day'")
    oldest = "baleen_gc_oldest_candidate_seconds"
    assert world.api.metric(oldest) > 86_000
    for name in ("l", "m-l"):
        world.api.ask("PUT", f"/v1/pins/{world.text(name)}")
    assert world.api.metric(oldest) == 0
    assert world.api.get("/v1/gc/status").json()["unreferenced_since"] is None


def asked(world: World, body: Json = None) -> Json:
    answer = world.api.ask("POST", "/v1/gc/runs", json=body) if body else world.api.ask("POST", "/v1/gc/runs")
    assert answer.status_code == 202, answer.text
    return answer.json()


def turned(world: World, *, on: bool) -> Any:
    answer = world.api.ask("PUT", "/v1/gc/switch", json={"enabled": on, "why": "an incident"})
    assert answer.status_code == 200, answer.text
    return answer.json()
