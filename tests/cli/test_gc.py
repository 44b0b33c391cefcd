"""`baleen gc`, `pin` and `hold`, and what `baleen blob` says of garbage collection."""

import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from coordinator.client import Api
from coordinator.commands import gc
from coordinator.compose import database as compose_database
from coordinator.db.engine import connect
from coordinator.domain.gc import Amount, Limits
from coordinator.domain.lifecycle import BlobState
from coordinator.errors import BaleenError
from coordinator.gc import controls
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.api.collecting import Known, World, collecting, known_api
from tests.api.harness import OPERATE, READ, Json, Served
from tests.cli.conftest import Command
from tests.cli.test_commands import errs
from tests.gc.harness import Garbage
from tests.services.databases import Databases
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def collected_api(embedded_stack: StackEndpoints) -> Iterator[tuple[Served, Known]]:
    with known_api(embedded_stack) as known:
        yield known


@pytest.fixture
def world(collected_api: tuple[Served, Known]) -> Iterator[World]:
    with collecting(*collected_api) as world:
        yield world


@pytest.fixture
def baleen(world: World, tmp_path: Path) -> Command:
    return Command(tmp_path, {"url": world.api.url, "token": OPERATE})


@contextmanager
def doing(deed: Any) -> Iterator[None]:
    """Do something repeatedly beside the block, as schedulers and workers do, without its log in the output."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(0.02):
            deed()

    thread = threading.Thread(target=repeat)
    with capture_logs():
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, types: str) -> None:
    """Let standard input be a terminal with this typed text."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(types))


def test_the_plan(world: World, baleen: Command) -> None:
    """`gc plan` prints the figures, then each blob with its step or why it is kept; --json what the API says."""
    world.unreferenced("l")
    baleen("pin", world.text("l"), "--why", "an audit")
    printed = baleen("gc", "plan").out
    assert "keep: pinned" in printed
    assert world.text("l") in printed
    document = baleen("gc", "plan", "--json").json
    assert document["items"] == world.plan(limit=1000)["items"]
    assert document["totals"]["hide"]["blobs"] == 1
    first = baleen("gc", "plan", "--limit", "1", "--json").json
    rest = baleen("gc", "plan", "--cursor", first["next"], "--json").json
    assert first["items"] + rest["items"] == document["items"]
    assert [item["step"] for item in baleen("gc", "plan", "--step", "keep", "--json").json["items"]] == ["keep"]


def test_a_plan_that_is_held(world: World, baleen: Command) -> None:
    """A plan while GC is blocked says by what, and how to see what would go otherwise."""
    world.unreferenced("l")
    baleen("hold", "team/app", "--why", "a move")
    held = baleen("gc", "plan")
    assert "team/app is held: a move" in held.out
    assert "--despite-holds" in held.err
    assert {item["step"] for item in baleen("gc", "plan", "--despite-holds", "--json").json["items"]} == {"hide"}


def test_a_run(world: World, baleen: Command) -> None:
    """`gc run --yes` ends with the run and prints what it did; `history` and `show` have it, with its decisions."""
    world.unreferenced("l")
    with doing(world.garbage.run_waiting):
        done = baleen("gc", "run", "--yes", "--why", "a full disk").ok()
    assert "2 blobs" in done.out
    (run,) = baleen("gc", "history", "--json").json["items"]
    assert (run["why"], run["hidden"]["blobs"]) == ("a full disk", 2)
    assert "2 blobs" in baleen("gc", "history").out
    number = str(run["id"])
    assert baleen("gc", "show", number, "--json").json == run
    assert len(baleen("gc", "show", number, "--decisions", "--json").json["decisions"]["items"]) == 4
    assert world.text("l") in baleen("gc", "show", number, "--decisions").out
    errs(baleen("gc", "show", "999999"), 1)


def test_a_run_that_nobody_waits_for(world: World, baleen: Command) -> None:
    """--no-wait only requests a run, and prints the command that shows it."""
    asked = baleen("gc", "run", "--yes", "--no-wait", "--json").json
    assert asked["state"] == "waiting"
    assert f"baleen gc show {asked['id']}" in baleen("gc", "run", "--yes", "--no-wait").out
    assert world.api.get("/v1/gc/status").json()["open_run"]["id"] == asked["id"]


def test_a_dry_run(world: World, baleen: Command) -> None:
    """A dry run needs no confirmation and no switch, and changes nothing."""
    world.unreferenced("l")
    with doing(world.garbage.run_waiting):
        document = baleen("gc", "run", "--dry-run", "--json").json
        assert (document["dry_run"], document["hidden"]["blobs"]) == (True, 2)
        assert "would hide" in baleen("gc", "run", "--dry-run").out
        baleen("gc", "off", "--why", "an incident")
        document = baleen("gc", "run", "--dry-run", "--json").json
    assert (document["hidden"]["blobs"], document["kept"]) == (0, {"held": 2})
    assert world.garbage.is_served("l")


def test_nobody_is_there_to_confirm(world: World, baleen: Command) -> None:
    """Without a terminal and without --yes a run is wrong usage, and none is requested."""
    assert "--yes" in errs(baleen("gc", "run"), 2)
    assert world.api.pages("/v1/gc/runs") == []


@pytest.mark.parametrize("types", ["y\n", "yes\n", "n\n", "\n", ""])
def test_the_operator_is_asked(world: World, baleen: Command, monkeypatch: pytest.MonkeyPatch, types: str) -> None:
    """At a terminal the command shows the figures and asks; only yes confirms."""
    world.unreferenced("l")
    at_a_terminal(monkeypatch, types)
    with doing(world.garbage.run_waiting):
        done = baleen("gc", "run")
    assert "Hide 2 blobs (" in done.err
    assert "delete 0 blobs (0 B) for good? [y/N]" in done.err
    agreed = types.startswith("y")
    assert done.code == (0 if agreed else 1)
    assert ("Nothing was done." in done.err) is not agreed
    assert len(world.api.pages("/v1/gc/runs")) == agreed
    assert world.garbage.is_served("l") is not agreed


def test_a_run_that_is_held(world: World, baleen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What blocks GC is printed before the operator is asked, and for a run that was blocked later."""
    world.known(lambda facts: facts._replace(blocked_by=["pod pod-x: never reconciled", "another"]))
    at_a_terminal(monkeypatch, "y\n")
    assert "pod-x: never reconciled (and 1 more: `baleen gc status`)" in errs(baleen("gc", "run"), 1)
    with doing(world.garbage.run_waiting):
        done = baleen("gc", "run", "--yes")
    assert done.code == 1
    assert "could collect nothing: pod pod-x: never reconciled" in done.err
    baleen("gc", "off", "--why", "an incident")
    assert "baleen gc on" in errs(baleen("gc", "run", "--yes"), 1)


def test_a_run_that_is_refused(world: World, baleen: Command) -> None:
    """A run beyond the limits exits 1 with a sentence; a dry run warns, --beyond-limits permits it."""
    world.garbage.limits = Limits(1, 1, Amount(0, 0))
    world.unreferenced("l")
    with doing(world.garbage.run_waiting):
        dry = baleen("gc", "run", "--dry-run")
        assert dry.code == 0
        assert "refused without `--beyond-limits WHY`\n  2 blobs of" in dry.out
        assert "--beyond-limits" in errs(baleen("gc", "run", "--yes"), 1)
        document = baleen("gc", "run", "--yes", "--beyond-limits", "a tenant left", "--json").json
    assert (document["beyond_limits"], document["hidden"]["blobs"]) == ("a tenant left", 2)


class Answers:
    """An API that gives these answers, in order, with defaults for a run."""

    def __init__(self, *answers: Json) -> None:
        self._answers = list(answers)

    def post(self, _: str, __: Json) -> Json:
        return self._next()

    def get(self, _: str) -> Json:
        return self._next()

    def _next(self) -> Json:
        nothing = {"blobs": 0, "bytes": 0}
        plain = {"dry_run": False, "beyond_limits": None, "leftovers": False, "step": None, "error": "No."}
        return plain | {"hidden": nothing, "purged": nothing} | self._answers.pop(0)


def test_a_run_of_another_kind_is_waited_for() -> None:
    """While a dry run is open a real one follows it; a run that fails is reported."""
    dry = {"id": 1, "dry_run": True}
    api = Answers(
        dry | {"state": "running"}, dry | {"state": "done"}, {"id": 2, "state": "waiting"}, {"id": 2, "state": "done"}
    )
    assert gc._complete_run(cast("Api", api), {"dry_run": False, "leftovers": False})["id"] == 2
    with pytest.raises(BaleenError, match=r"Run 3 failed: No\."):
        gc._complete_run(cast("Api", Answers({"id": 3, "state": "failed"})), {"dry_run": False, "leftovers": False})


def test_what_was_left_behind_is_reported(world: World, baleen: Command) -> None:
    """`gc show` prints each kind of leftovers that the run looked for, and no others."""
    world.garbage.collect()
    run = baleen("gc", "history", "--json").json["items"][0]["id"]
    before = baleen("gc", "show", str(run))
    assert before.code == 0
    assert "left behind" not in before.out
    tally = {"count": 3, "bytes": 71_000, "left": 1, "unknown": 0}
    document = {"links": tally | {"state": "done"}, "parts": tally | {"state": "not due"}}
    world.api.db.execute(
        "UPDATE jobs SET progress = progress || jsonb_build_object('leftovers', %s::jsonb) WHERE id = %s",
        (json.dumps(document), run),
    )
    shown = baleen("gc", "show", str(run)).out
    assert re.search(r"links +done +3 +71 kB +1 +0", shown)
    assert "parts" not in shown


def test_status(world: World, baleen: Command) -> None:
    """`gc status` prints the switch and what blocks GC; so does `status`."""
    world.hidden("l")
    document = baleen("gc", "status")
    assert "on: a test" in document.out
    assert "Nothing blocks GC." in document.out
    assert baleen("gc", "status", "--json").json["hidden"]["blobs"] == 2
    assert "The switch" not in document.err
    baleen("gc", "off", "--why", "an incident")
    assert "switched off: an incident" in baleen("gc", "status").out
    assert "switched off: an incident" in baleen("status").out


def test_the_switch(world: World, baleen: Command) -> None:
    """The switch is turned with a reason, and without one not at all."""
    errs(baleen("gc", "off"), 2)
    errs(baleen("gc", "on"), 2)
    assert "off" in baleen("gc", "off", "--why", "an incident").out
    assert not world.api.get("/v1/gc/switch").json()["enabled"]
    assert baleen("gc", "on", "--why", "it is over", "--json").json["enabled"]
    baleen("hold", "team")
    assert "team is held" in baleen("gc", "on", "--why", "it is over").err
    assert "role operate" in errs(baleen("gc", "off", "--why", "x", token=READ), 1)


def test_what_an_operator_wrote_is_reported_as_it_is(world: World, baleen: Command) -> None:
    """A reason with brackets and colons is printed unchanged."""
    why = "see [/docs/gc] and [red] :bug:"
    assert baleen("hold", "team", "--why", why).code == 0
    done = baleen("gc", "on", "--why", "the plan is right")
    assert (done.code, done.out) == (0, "Garbage collection is on.\n"), done.err
    assert why in done.err
    assert world.api.get("/v1/gc/switch").json()["enabled"]


def test_a_claim(databases: Databases, tmp_path: Path, embedded_stack: StackEndpoints) -> None:
    """A claim needs confirmation and no API, prints what it did and what is next, and leaves collection off."""
    stack: Any = embedded_stack
    names = ("endpoint_url", "bucket", "access_key", "secret_key")
    place = {name: getattr(stack, f"s3_{name}") for name in names} | {"root": "claimed"}
    with Garbage(databases.migrated(), S3ObjectStore(**place)) as garbage:
        settings = {"url": "http://127.0.0.1:9", "database_url": garbage.url}
        baleen = Command(tmp_path, settings | {f"s3_{name}": value for name, value in place.items()})
        garbage.pushed("m", "l")
        garbage.forget("m")
        garbage.collect()
        garbage.connection.execute("DELETE FROM gc_mark")
        assert "Another database" in str(garbage.try_collection().error)
        errs(baleen("gc", "claim", "--yes"), 2)
        assert "--yes" in errs(baleen("gc", "claim", "--why", "a backup"), 2)
        with connect(garbage.url, name="baleen-worker"):
            assert "baleen-worker. Stop all processes" in errs(baleen("gc", "claim", "--why", "a backup", "--yes"), 1)
        assert controls.read_switch(garbage.connection).enabled
        # A connection that was closed is seen until its server process has ended.
        connected = "SELECT FROM pg_stat_activity WHERE application_name = 'baleen-worker'"
        eventually(lambda: not garbage.rows(f"{connected} AND datname = current_database()"), "nobody is connected")
        document = baleen("gc", "claim", "--why", "a backup", "--yes")
        assert document.code == 0, document.err
        assert "2 hides will be undone; 3 pods will be reconciled" in document.out
        assert "docs/RECOVERY.md" in document.out
        assert controls.read_switch(garbage.connection).why == "a backup"
        assert garbage.collect().hidden == 0
        done = baleen("gc", "claim", "--why", "a backup", "--yes", "--json")
        assert {name: done.json[name] for name in ("hides", "pods")} == {"hides": 2, "pods": 3}
        assert "blocks GC until `baleen audit --repair`" in done.err


def test_the_kill_switch_without_the_api(world: World, baleen: Command) -> None:
    """Without an API the switch is turned off in the database, if that is known, and never on."""
    database = {"database_url": compose_database.database_url(world.api.settings)}
    away = {"url": "http://127.0.0.1:9"}
    assert "BALEEN_DATABASE_URL" in errs(baleen("gc", "off", "--why", "x", **away), 1)
    assert "baleen up" in errs(baleen("gc", "on", "--why", "x", **away, **database), 1)
    done = baleen("gc", "off", "--why", "an incident", "--json", **away, **database)
    assert done.json["why"] == "an incident"
    assert "in the database" in done.err
    assert not world.api.get("/v1/gc/switch").json()["enabled"]
    baleen("gc", "on", "--why", "it is over")
    unknown = Command(baleen.directory, {})
    assert "in the database" in unknown("gc", "off", "--why", "another", **database).err
    assert world.api.get("/v1/gc/switch").json()["why"] == "another"


def test_pins_and_holds(world: World, baleen: Command) -> None:
    """Pins and holds are set with an explanation, listed and released; mistakes are refused."""
    digest = world.text("l")
    assert "No registry has reported it" in baleen("pin", digest).err
    assert baleen("pin", digest, "--why", "an audit", "--json").json["why"] == "an audit"
    assert [each["digest"] for each in baleen("gc", "pins", "--json").json["items"]] == [digest]
    assert "an audit" in baleen("gc", "pins").out
    assert "no longer pinned" in baleen("unpin", digest).out
    assert "is not pinned" in errs(baleen("unpin", digest), 1)
    errs(baleen("pin", "latest"), 2)
    assert "pods share blobs" in baleen("hold", "team/app", "--why", "a move").out
    baleen("hold", "pod-a")
    assert "a move" in baleen("gc", "holds").out
    assert "pod-a still is" in baleen("release", "team/app").out
    assert baleen("release", "pod-a").out == "pod-a is no longer held.\n"
    assert "is not held" in errs(baleen("release", "pod-a"), 1)
    errs(baleen("hold", "Team"), 2)


def test_a_pin_on_what_is_hidden(world: World, baleen: Command) -> None:
    """A pin of a hidden blob keeps its bytes, and says how to restore it."""
    world.hidden("l")
    assert f"baleen blob undelete {world.text('l')}" in baleen("pin", world.text("l")).err
    world.garbage.collect()
    assert "push it again" in baleen("pin", world.text("m-l")).err


def test_explain(world: World, baleen: Command) -> None:
    """`blob explain` prints a summary, then what keeps the blob, who needs it, and its history."""
    world.hidden("l")
    day = timedelta(days=1)
    world.known(lambda facts: facts._replace(times=facts.times._replace(quarantine=day)))
    document = baleen("blob", "explain", world.text("l"), "--json").json
    assert document == world.explained("l")
    printed = baleen("blob", "explain", world.text("l")).out
    assert printed.startswith(document["summary"])
    assert "quarantine" in printed
    assert all(sentence in printed for sentence in document["sentences"])
    world.garbage.pushed("live", "n")
    assert world.garbage.repository("r") in baleen("blob", "explain", world.text("n")).out
    errs(baleen("blob", "explain", f"sha256:{'0' * 64}"), 1)


def test_undelete(world: World, baleen: Command) -> None:
    """`blob undelete` ends when the blob is served again, and says that it is pinned; --no-wait only requests it."""
    world.hidden("l", "k")
    asked = baleen("blob", "undelete", world.text("l"), "--no-wait", "--why", "a mistake")
    assert "Workers restore it" in asked.out
    with doing(world.garbage.restore):
        done = baleen("blob", "undelete", world.text("k"), "--no-pin", "--json")
    assert (done.json["state"], done.json["pinned"]) == ("unreferenced", False)
    assert world.garbage.is_served("k")
    assert world.api.get(f"/v1/blobs/{world.text('l')}").json()["pinned"]
    assert "it is unreferenced" in errs(baleen("blob", "undelete", world.text("k")), 1)


def test_an_undelete_that_comes_too_late(world: World, baleen: Command) -> None:
    """If the blob's bytes are already being deleted, `undelete` says so and exits 1."""
    world.hidden("l")

    def purged() -> None:
        world.api.db.execute(
            "UPDATE blobs SET state = %s WHERE digest = %s AND EXISTS (SELECT FROM hides WHERE asked_at IS NOT NULL)",
            (BlobState.PURGED, world.garbage.digest("l")),
        )

    with doing(purged):
        assert "push it again" in errs(baleen("blob", "undelete", world.text("l")), 1)
