"""`baleen pods reconcile` requests a reconcile, waits for it, and prints what it changed."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from coordinator.client import Api
from coordinator.commands import jobs
from coordinator.compose import database as compose_database
from coordinator.compose import scheduler as compose_scheduler
from coordinator.compose import store as compose_store
from coordinator.db.connection import Connections
from coordinator.domain.names import Digest, RepositoryName
from coordinator.errors import UnavailableError
from coordinator.jobs.work import run_waiting_jobs
from coordinator.storage.layout import layer_link_key, revision_link_key
from tests.api.harness import Facts, Json, Served
from tests.cli.conftest import Command
from tests.support.tables import add_gap, ago, id_of, insert


@contextmanager
def scheduler(api: Served) -> Iterator[None]:
    """Run jobs as `baleen scheduler` does, without its other work."""
    stop = threading.Event()
    connections = Connections(compose_database.database_url(api.settings), name="test-scheduler")

    def run() -> None:
        with compose_scheduler.open_job_runners(api.settings) as runners:
            while not stop.wait(0.05):
                run_waiting_jobs(connections, runners, stop)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        connections.close()


def test_a_reconcile(api: Served, baleen: Command, facts: Facts) -> None:
    """The command ends with the job and prints counts and examples; with --no-wait it only requests it."""
    pod = f"{facts.mark}-cli"
    baleen("pods", "add", pod, "--prefix", pod)
    digest = Digest(bytes.fromhex("ab" * 32))
    store = compose_store.make_object_store(api.settings)
    store.put(revision_link_key(RepositoryName(f"{pod}/app"), digest), b"x")
    asked = baleen("pods", "reconcile", pod, "--no-wait", "--why", "to see", "--json").json
    assert (asked["state"], asked["why"]) == ("waiting", "to see")
    number = str(asked["id"])
    waits = f"Job {number} is waiting: see `baleen jobs show {number}`."
    assert waits in baleen("pods", "reconcile", pod, "--no-wait").out
    assert baleen("jobs", "list", "--pod", pod, "--kind", "reconcile", "--json").json["items"] == [asked]
    assert baleen("jobs", "show", number, "--json").json == asked
    listed = baleen("jobs", "list", "--pod", pod).out
    assert f"{asked['asked_at'][:10]} {asked['asked_at'][11:19]}" in listed
    with scheduler(api):
        # A program of its own: the scheduler's log goes to this one's stdout.
        done = baleen.program("pods", "reconcile", pod, "--json").json
        # Its job is that of before, unless it was done before the command asked.
        assert (done["id"] >= asked["id"], done["state"], done["progress"]["unread"]) == (True, "done", 1)
        assert sum(job["progress"]["holdings_added"] for job in jobs_of(api, pod)) == 1
        # A link that stays shows that this is where the pod keeps its links.
        store.put(layer_link_key(RepositoryName(f"{pod}/app"), Digest(bytes(32))), b"x")
        store.delete(revision_link_key(RepositoryName(f"{pod}/app"), digest))
        assert "Not resolved" not in baleen("pods", "reconcile", pod, "--no-wait").err
        add_gap(api.db, id_of(pod), reason="retired", resolves_from="2126-11-25")
        document = baleen("pods", "reconcile", pod).ok()
    assert "holdings removed" in document.out
    # Between them stands the scheduler's log.
    wanted = ["job", "pod", "began at", "parts", "parts done", "keys", "links", "holdings added", "links added"]
    wanted += ["holdings removed", "links removed", "still linked", "doubtful removals resolved", "unread"]
    wanted += ["gaps resolved"]
    fields = [line.partition("  ")[0] for line in document.out.splitlines()]
    assert [field for field in fields if field in wanted] == wanted
    assert "Not resolved by this one: 1 gap in which events may be lost: a reconcile" in document.err
    assert "begins after 2126-11-25 00:00:00 UTC" in document.err
    # The command's own job, or the one before it that the scheduler had begun already.
    (removing,) = [job for job in jobs_of(api, pod) if job["progress"]["holdings_removed"]]
    shown = baleen("jobs", "show", str(removing["id"])).out
    assert re.search(r"^state +done$", shown, re.MULTILINE)
    assert re.search(r"^holdings removed +1$", shown, re.MULTILINE)
    assert f"sha256:{digest.hex()}" in shown


def test_one_that_fails(api: Served, baleen: Command, facts: Facts) -> None:
    """A job that fails, and an unknown pod, end the command with a sentence."""
    pod = f"{facts.mark}-fails"
    baleen("pods", "add", pod, "--prefix", pod)
    repository = insert(api.db, "repositories", "id", name=f"{pod}/app", pod_id=id_of(pod))
    digest = hashlib.sha256(pod.encode()).digest()
    blob = insert(api.db, "blobs", "id", size=1, reference_count=1, link_count=0, state=1, digest=digest)
    insert(api.db, "manifests", id=blob, kind=1, refs=[])
    insert(api.db, "repository_manifests", manifest_id=blob, repository_id=repository, pushed_at=ago("1 day"))
    with scheduler(api):
        failed = baleen.program("pods", "reconcile", pod)
    assert failed.code == 1
    assert "BALEEN_S3_ROOT" in failed.err
    assert "no pod" in baleen("pods", "reconcile", f"{facts.mark}-nobody").err
    assert {job["state"] for job in jobs_of(api, pod)} == {"failed"}


AT_ONCE = jobs.Polling(pause_s=0.0)


class Answers:
    """An API that gives these answers, in order."""

    def __init__(self, *states: str) -> None:
        self._states = list(states)
        self.asked: list[str] = []

    def post(self, path: str, body: Json) -> Json:
        return self._answer(f"POST {path} {body}")

    def get(self, path: str) -> Json:
        return self._answer(f"GET {path}")

    def _answer(self, call: str) -> Json:
        self.asked.append(call)
        number, state = self._states.pop(0).split()
        if state == "away":
            raise UnavailableError("The API does not answer.")
        return {"id": int(number), "kind": "reconcile", "pod": "p", "state": state, "progress": {}, "error": "No."}


def test_one_that_began_before() -> None:
    """A reconcile that is under way is waited for, and followed by another that sees everything from before the
    command.
    """
    api = Answers("1 running", "1 running", "1 done", "2 waiting", "2 away", "2 running", "2 done")
    assert jobs.reconcile_pod(cast("Api", api), "p", polling=AT_ONCE)["id"] == 2
    assert api.asked == [
        "POST /v1/pods/p/reconcile {}",
        "GET /v1/jobs/1",
        "GET /v1/jobs/1",
        "POST /v1/pods/p/reconcile {}",
        *["GET /v1/jobs/2"] * 3,
    ]


def test_one_that_is_only_asked_for() -> None:
    """`adopt` does not wait for its reconcile, but for an earlier one, which may have missed what was adopted."""
    api = Answers("1 running", "1 done", "2 waiting")
    job = jobs.reconcile_pod(cast("Api", api), "p", "adopted", wait=False, polling=AT_ONCE)
    assert (job["id"], job["state"]) == (2, "waiting")
    ask = "POST /v1/pods/p/reconcile {'why': 'adopted'}"
    assert api.asked == [ask, "GET /v1/jobs/1", ask]


def test_an_api_that_stays_away() -> None:
    """A job is followed through a restart of the API, but not without end."""
    with pytest.raises(UnavailableError):
        jobs.reconcile_pod(cast("Api", Answers("1 waiting", "1 away")), "p", polling=jobs.Polling(0.0, patience_s=-1.0))


def jobs_of(api: Served, pod: str) -> list[Json]:
    """The newest first."""
    return api.pages("/v1/jobs", pod=pod)
