"""The queue of jobs: one worker at a time, no writes by one that lost its job, and the reasons to reconcile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from coordinator.errors import ConflictError
from coordinator.jobs import table as jobs
from coordinator.jobs.table import Job, TakenOverError
from coordinator.jobs.work import Ending, Pulse, Work, request_due_jobs, run_waiting_jobs
from coordinator.reconcile.sizes import Sizes
from coordinator.settings import make_settings
from coordinator.storage.s3 import S3ObjectStore
from tests.cli.conftest import ROOT, program_environment
from tests.reconcile.harness import World
from tests.services.databases import Databases
from tests.services.s3 import s3_settings
from tests.support.tables import add_dead_letter, add_gap, add_job, add_process, ago
from tests.support.wait import eventually

KINDS = ["reconcile", "doctor"]
EVERY, BOUND = timedelta(hours=24), timedelta(hours=1)
FEW_PARTS = Sizes(parts=4, parts_at_once=1)


@pytest.fixture
def world(databases: Databases) -> Iterator[World]:
    """Each test has a database, and so a queue, of its own."""
    with World(databases.migrated()) as world:
        yield world


def take(world: World) -> Job | None:
    return jobs.take_job(world.connection, KINDS)


def taken(world: World) -> Job:
    job = take(world)
    assert job is not None
    return job


def silence(world: World, job: int, seconds: int) -> None:
    world.connection.execute(
        "UPDATE jobs SET alive_at = now() - make_interval(secs => %s) WHERE id = %s", (seconds, job)
    )


def needed(world: World, every: timedelta = EVERY) -> list[str]:
    """Request the reconciles that are needed; return the reasons for this world's pod."""
    asked = jobs.request_needed_reconciles(world.connection, every, BOUND)
    found = world.rows("SELECT why FROM jobs WHERE id = ANY(%s) AND pod_id = %s", (asked, world.pods[world.pod]))
    return [row[0] for row in found]


def end(world: World, state: str, ago: str = "0") -> None:
    error = "no" if state == "failed" else None
    world.connection.execute(
        "UPDATE jobs SET state = %s, finished_at = now() - %s::interval, began_at = now() - %s::interval, error = %s"
        " WHERE pod_id = %s AND state IN ('waiting', 'running')",
        (state, ago, ago, error, world.pods[world.pod]),
    )


def failed_ago(world: World, ago: str) -> None:
    world.connection.execute(
        "UPDATE jobs SET finished_at = now() - %s::interval WHERE pod_id = %s AND state = 'failed'",
        (ago, world.pods[world.pod]),
    )


def test_the_oldest_first(world: World) -> None:
    """Jobs are taken in the order of their requests, each once, with a time by the database's clock."""
    first = world.ask("because")
    world.add_pod("other")
    second = add_job(world.connection, 1, "doctor")
    before = world.rows("SELECT clock_timestamp()")[0][0]
    one, other = taken(world), taken(world)
    assert (one.id, one.kind, one.pod, one.why, one.taken) == (first, "reconcile", world.pod, "because", 1)
    assert other.id == second
    assert before < one.began_at < world.rows("SELECT clock_timestamp()")[0][0]
    assert take(world) is None


def test_only_kinds_that_a_runner_can_do(world: World) -> None:
    """A job waits for a worker that knows its kind."""
    world.ask()
    assert jobs.take_job(world.connection, ["doctor"]) is None
    assert jobs.take_job(world.connection, ["reconcile"]) is not None


def test_two_take_two(world: World) -> None:
    """Workers that take at the same time do not wait for each other, and get different jobs."""
    world.ask()
    world.add_pod("other")
    add_job(world.connection, 1, "doctor")
    with world.connect() as other, other.transaction():
        first = jobs.take_job(other, KINDS)
        second = take(world)
    assert first is not None
    assert second is not None
    assert first.id != second.id


def test_one_open_for_a_pod(world: World) -> None:
    """A pod has at most one open job of a kind."""
    assert len(needed(world)) == 1
    assert needed(world) == []
    taken(world)
    assert needed(world) == []


WRITES: dict[str, Callable[[World, Job], object]] = {
    "beat": lambda world, job: jobs.record_beat(world.connection, job, {}),
    "hold": lambda world, job: jobs.lock_job(world.connection, job),
    "plan": lambda world, job: jobs.write_parts(world.connection, job, ["other"]),
    "record_part_done": lambda world, job: jobs.record_part_done(world.connection, job, "part", {"keys": 7}),
    "finish": lambda world, job: jobs.finish_job(world.connection, job, {}),
    "fail": lambda world, job: jobs.fail_job(world.connection, job, {}, "no"),
}


@pytest.mark.parametrize("write", WRITES)
def test_who_lost_it_writes_nothing(world: World, write: str) -> None:
    """A job whose worker is silent for a minute is taken over, and all later writes of that worker are refused."""
    world.ask()
    first = taken(world)
    jobs.write_parts(world.connection, first, ["part"])
    silence(world, first.id, 50)
    assert take(world) is None
    silence(world, first.id, 61)
    second = taken(world)
    assert (second.id, second.taken, second.began_at) == (first.id, 2, first.began_at)
    before = world.rows("SELECT * FROM jobs"), world.rows("SELECT * FROM job_parts")
    with pytest.raises(TakenOverError, match="is lost"):
        WRITES[write](world, first)
    jobs.release_job(world.connection, first, {"keys": 1})
    assert (world.rows("SELECT * FROM jobs"), world.rows("SELECT * FROM job_parts")) == before
    WRITES[write](world, second)


def test_a_pulse_keeps_it(world: World) -> None:
    """A worker that sends its pulse keeps its job, and its progress can be read."""
    world.ask()
    job = taken(world)
    silence(world, job.id, 59)
    jobs.record_beat(world.connection, job, {"keys": 3})
    assert take(world) is None
    assert world.read_job(job.id).progress == {"keys": 3}


def test_left_at_once(world: World) -> None:
    """A worker that ends in order leaves its job to the next without a minute's wait."""
    world.ask()
    job = taken(world)
    jobs.release_job(world.connection, job, {"keys": 4})
    again = taken(world)
    assert (again.id, again.taken, again.progress) == (job.id, 2, {"keys": 4})


def test_finished_jobs_are_forgotten(world: World) -> None:
    """Of many finished jobs the newest are kept, and the last that was done, however many failed since."""
    world.ask()
    done = taken(world)
    jobs.finish_job(world.connection, done, {}, kept=3)
    for _ in range(6):
        world.ask()
        jobs.fail_job(world.connection, taken(world), {}, "no", kept=3)
    kept = [row[0] for row in world.rows("SELECT id FROM jobs ORDER BY id")]
    assert kept == [done.id, done.id + 4, done.id + 5, done.id + 6]
    world.ask()
    last = taken(world)
    jobs.finish_job(world.connection, last, {}, kept=3)
    assert [row[0] for row in world.rows("SELECT id FROM jobs ORDER BY id")] == [last.id - 2, last.id - 1, last.id]


# What asks for one


def test_a_pod_that_was_never_reconciled(world: World) -> None:
    """A new pod is reconciled, and again a day after the last reconcile began, or as settings say."""
    assert needed(world) == ["it was never reconciled"]
    end(world, "done", "23 hours")
    assert needed(world) == []
    assert needed(world, timedelta(hours=22)) == ["the last reconcile is long ago"]
    end(world, "done", "25 hours")
    # Another one is newer: what it began is what counts.
    assert needed(world) == ["the last reconcile is long ago"]


def test_by_settings(world: World) -> None:
    """The scheduler requests reconciles by the times of its settings."""

    def asked(every: str) -> int:
        ids = request_due_jobs(world.connection, make_settings({"reconcile_every": every}))
        return len(world.rows("SELECT FROM jobs WHERE id = ANY(%s) AND pod_id = %s", (ids, world.pods[world.pod])))

    world.ask()
    end(world, "done", "2h")
    assert asked("3h") == 0
    assert asked("1h") == 1


def test_a_gap(world: World) -> None:
    """An open gap requests a reconcile, a resolved one does not."""
    world.ask()
    end(world, "done", "2 minutes")
    add_gap(world.connection, world.pods[world.pod])
    assert needed(world) == ["events may have been lost"]
    end(world, "done", "2 minutes")
    world.connection.execute("UPDATE gaps SET resolved_at = now(), resolved_why = 'reconcile 1'")
    assert needed(world) == []


def test_a_process_that_died(world: World) -> None:
    """A dead process requests a reconcile once its last request must have ended, until it is retired."""
    world.ask()
    end(world, "done", "2 minutes")
    add_process(world.connection, world.pods[world.pod], dead_since=ago("59 minutes"), dead_why="refused")
    assert needed(world) == []
    world.connection.execute("UPDATE processes SET dead_since = now() - interval '61 minutes'")
    assert needed(world) == ["a registry process died"]
    end(world, "done", "2 minutes")
    world.connection.execute("UPDATE processes SET retired_at = now(), retired_why = 'reconcile 2'")
    assert needed(world) == []


def test_a_dead_letter_that_was_resolved(world: World) -> None:
    """A discarded dead letter requests a reconcile if the last one began before."""
    world.ask()
    end(world, "done", "10 minutes")
    add_dead_letter(world.connection, world.pod, stored_at=ago("11 minutes"))
    assert needed(world) == []
    resolve = "UPDATE dead_letters SET resolved_at = now() - %s::interval, resolution = %s, resolved_why = 'w'"
    world.connection.execute(resolve, ("11 minutes", "discarded"))
    assert needed(world) == []
    world.connection.execute(resolve, ("9 minutes", "reconciled"))
    assert needed(world) == []
    world.connection.execute(resolve, ("9 minutes", "discarded"))
    assert needed(world) == ["a dead letter was resolved"]


@pytest.mark.parametrize(
    ("sender", "below", "asks"),
    [("", "the pod", True), ("", "nowhere", False), ("", None, True), ("the pod", "nowhere", True)],
)
def test_a_dead_letter_that_is_open(world: World, sender: str, below: str | None, asks: bool) -> None:
    """An open dead letter newer than the last reconcile requests one of its sender and of the pods that it may
    concern.
    """
    world.ask()
    end(world, "done", "10 minutes")
    repositories = None if below is None else [f"{world.pod}/app" if below == "the pod" else "elsewhere/app"]
    add_dead_letter(
        world.connection, world.pod if sender else "", repositories=repositories, stored_at=ago("11 minutes")
    )
    assert needed(world) == []
    world.connection.execute("UPDATE dead_letters SET stored_at = now() - interval '9 minutes'")
    assert needed(world) == (["a dead letter may report something that it has"] if asks else [])


def test_all_reasons_at_once(world: World) -> None:
    """One job names all reasons for it."""
    add_gap(world.connection, world.pods[world.pod])
    assert needed(world) == ["it was never reconciled; events may have been lost"]


def test_a_pod_that_cannot_be_reconciled(databases: Databases) -> None:
    """No reconcile is requested of a pod whose links are elsewhere."""
    with World(databases.migrated(), kind="relay") as world:
        assert needed(world) == []


def test_failures_pause(world: World) -> None:
    """A failed job is requested again after a pause, which grows with each failure up to an hour."""
    assert len(needed(world)) == 1
    end(world, "failed", "50 seconds")
    assert needed(world) == []
    failed_ago(world, "61 seconds")
    assert len(needed(world)) == 1
    end(world, "failed", "110 seconds")
    assert needed(world) == []
    for _ in range(8):
        world.ask()
        end(world, "failed", "59 minutes")
    assert needed(world) == []
    failed_ago(world, "61 minutes")
    assert len(needed(world)) == 1
    end(world, "done", "61 seconds")
    add_gap(world.connection, world.pods[world.pod])
    assert len(needed(world)) == 1


# Running them


def run_with(world: World, runner: Callable[[Work], Ending], stop: threading.Event | None = None) -> int:
    with world.runner() as (connections, _):
        return run_waiting_jobs(connections, {"reconcile": runner}, stop or threading.Event(), world.pulse)


def nothing(_: Any) -> dict[str, Any]:
    return {"all": "done"}


@pytest.mark.parametrize(
    ("error", "message"),
    [(ConflictError("Do something else."), "Do something else."), (KeyError("x"), "see the scheduler's log")],
)
def test_a_job_that_fails(world: World, error: Exception, message: str) -> None:
    """An error of a runner ends the job with a sentence, and the next job is run."""
    job = world.ask()

    def run(_: Work) -> Ending:
        raise error

    assert run_with(world, run) == 1
    done = world.read_job(job)
    assert done.state == "failed"
    assert done.error is not None
    assert message in done.error
    job = world.ask()
    assert run_with(world, lambda work: nothing) == 1
    assert world.read_job(job)[1:] == ("done", {"all": "done"}, None)


def test_the_ending_is_one_transaction(world: World) -> None:
    """If the last of a job cannot be written, nothing of it is, and the job is not done."""
    job = world.ask()

    def ending(connection: Any) -> dict[str, Any]:
        connection.execute("UPDATE pods SET registries = '{changed}'")
        raise ConflictError("Not now.")

    run_with(world, lambda work: ending)
    assert world.read_job(job).state == "failed"
    assert world.rows("SELECT FROM pods WHERE registries <> '{}'") == []


def test_progress_is_written_while_it_runs(world: World) -> None:
    """While a job runs, its progress and its worker's pulse are written."""
    world.pulse = Pulse(every_s=0.05, progress_every_s=0.01)
    job = world.ask()

    def run(work: Work) -> Ending:
        work.follow_progress(lambda: {"keys": 5})
        eventually(lambda: world.read_job(job).progress == {"keys": 5})
        (seen,) = world.rows("SELECT alive_at FROM jobs")
        eventually(lambda: world.rows("SELECT alive_at FROM jobs")[0] > seen)
        return nothing

    run_with(world, run)
    assert world.read_job(job).state == "done"


def test_a_runner_learns_that_it_lost_the_job(world: World) -> None:
    """A worker whose job was taken over stops its runner, and changes nothing of the job."""
    world.pulse = Pulse(every_s=0.02, progress_every_s=0.01)
    job = world.ask()

    def run(work: Work) -> Ending:
        world.connection.execute("UPDATE jobs SET taken = taken + 1")
        while True:
            work.pause(0.01)

    run_with(world, run)
    assert world.read_job(job).state == "running"


def test_stopping_and_going_on(world: World) -> None:
    """After a scheduler ends, the next does only the remaining parts of its job, as of the same begin."""
    world.sizes = FEW_PARTS
    for n in range(8):
        world.pushed(f"r{n % 4}", world.image(f"m{n}"), n)
    stop = threading.Event()
    listed: list[str] = []

    def listen(call: str, key: str) -> None:
        if call == "walk":
            listed.append(key)
            if len(listed) == 3:
                stop.set()

    world.bucket.interrupt = listen
    job = world.ask()
    world.run(stop)
    began = world.began_at(job)
    left = world.read_job(job)
    assert (left.state, left.count("parts"), left.count("parts_done")) == ("running", 4, 1)
    done_before = {row[0] for row in world.rows("SELECT name FROM job_parts WHERE done_at IS NOT NULL")}
    listed.clear()
    world.run()
    done = world.read_job(job)
    assert (done.state, done.count("parts_done"), done.count("keys"), done.count("holdings_added")) == ("done", 4, 8, 8)
    assert world.began_at(job) == began
    assert not any(key.startswith(part) for key in listed for part in done_before)
    world.assert_sound()


def test_taken_over_in_the_middle(world: World) -> None:
    """A worker that lost its job marks no part as done; the other one ends the job."""
    world.sizes = FEW_PARTS
    for n in range(8):
        world.pushed(f"r{n % 4}", world.image(f"m{n}"), n)
    job = world.ask()
    over = threading.Event()

    def take_over(call: str, _: str) -> None:
        if call == "walk" and not over.is_set():
            over.set()
            with world.connect() as other:
                other.execute("UPDATE jobs SET alive_at = now() - interval '2 minutes'")
                second = jobs.take_job(other, KINDS)
                assert second is not None
                jobs.release_job(other, second, {})

    world.bucket.interrupt = take_over
    with world.runner() as (connections, runner):
        first = taken(world)
        with pytest.raises(TakenOverError):
            runner(Work(first, connections, threading.Event()))
    assert world.rows("SELECT FROM job_parts WHERE done_at IS NOT NULL") == []
    world.run()
    assert world.read_job(job).state == "done"
    world.assert_sound()


CHILD = """
import threading
from functools import partial
from coordinator.compose import database as compose_database
from coordinator.compose import scheduler as compose_scheduler
from coordinator import settings
from coordinator.db.connection import Connections
from coordinator.jobs import work as jobs
from coordinator.reconcile import reconcile
from coordinator.reconcile.sizes import Sizes
from coordinator.storage.s3 import S3ObjectStore

reconcile.Reconciler = partial(reconcile.Reconciler, sizes=Sizes(parts=4, parts_at_once=1))
walk, walked = S3ObjectStore.walk, []

def walk_one(self, prefix):
    walked.append(prefix)
    if len(walked) > 1:
        threading.Event().wait()
    return walk(self, prefix)

S3ObjectStore.walk = walk_one
loaded = settings.load()
with compose_scheduler.open_job_runners(loaded) as runners:
    jobs.run_waiting_jobs(compose_database.make_connections(loaded, name="child"), runners, threading.Event())
"""


@pytest.mark.lengthy
def test_a_scheduler_that_is_killed(databases: Databases, s3: S3ObjectStore, embedded_stack: Any) -> None:
    """After SIGKILL another scheduler does the remaining parts, with the time at which the first began."""
    with World(databases.migrated(), s3) as world:
        for n in range(8):
            world.arrive(world.pushed(f"r{n % 4}", world.image(f"m{n}"), n))
            world.pushed(f"r{n % 4}", world.image(f"lost{n}"), n)
        world.deleted("r0", world.image("m0").digest)
        world.deleted("r3", world.image("m3").digest)
        job = world.ask()
        place = {"database_url": world.url, "s3_root": s3.root.strip("/")}
        environ = program_environment(s3_settings(embedded_stack) | place)
        with subprocess.Popen([sys.executable, "-c", CHILD], env=environ, cwd=ROOT) as child:
            try:
                eventually(lambda: len(world.rows("SELECT FROM job_parts WHERE done_at IS NOT NULL")) == 1)
            finally:
                child.send_signal(signal.SIGKILL)
        began = world.began_at(job)
        assert world.run() == 0
        silence(world, job, 61)
        assert world.run() == 1
        done = world.read_job(job)
        assert (done.state, done.count("parts"), done.count("parts_done")) == ("done", 4, 4)
        assert world.began_at(job) == began
        world.assert_sound()
