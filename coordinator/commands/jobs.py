"""Ask for jobs and follow them: `baleen pods reconcile`, and whatever else ends with one.

The job goes on when the command is interrupted: a scheduler does it.
"""

import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from coordinator import settings
from coordinator.commands.client import Api, connected
from coordinator.commands.output import Json, notes, print_fields, print_json, print_table
from coordinator.domain.names import parse_pod
from coordinator.errors import BaleenError, UnavailableError

POLL_S = 0.5
#: An API that is restarted is back by then.
PATIENCE_S = 30.0
#: A scheduler looks for jobs every second.
NOBODY_TAKES_IT_S = 10.0

Pod = Annotated[str, typer.Argument(metavar="NAME", help="The pod.")]


def reconcile(
    name: Pod,
    *,
    why: Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is done, or only ask for it.")] = True,
    json: Json = False,
) -> None:
    """Compare a pod's links in storage with the table, and make the table agree."""
    pod = parse_pod(name)
    with connected(settings.load()) as api:
        job = reconciled(api, pod, why) if wait else ask_for_reconcile(api, pod, why)
    if json:
        print_json(job)
    elif job["state"] != "done":
        typer.echo(f"Job {job['id']} is {job['state']}: see GET /v1/jobs/{job['id']}.")
    else:
        _print_changes(job)


def ask_for_reconcile(api: Api, pod: str, why: str | None = None) -> dict[str, Any]:
    """Return the job, which may be one that began before."""
    job: dict[str, Any] = api.post(f"/v1/pods/{pod}/reconcile", {} if why is None else {"why": why})
    return job


def reconciled(api: Api, pod: str, why: str | None = None) -> dict[str, Any]:
    """Have the pod reconciled by a job that began after this call, and return it; raises BaleenError if it failed."""
    job = ask_for_reconcile(api, pod, why)
    if job["state"] == "running":
        notes().print("A reconcile that began before is under way; another follows it.", soft_wrap=True)
        followed(api, job)
        job = ask_for_reconcile(api, pod, why)
    job = followed(api, job)
    if job["state"] == "failed":
        raise BaleenError(f"Job {job['id']} failed: {job['error']}")
    return job


def followed(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    """Show how far the job is until it has ended, and return it."""
    asked = answered = time.monotonic()
    told = False
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("parts, {task.fields[keys]:,} keys"),
        TimeElapsedColumn(),
    )
    console = notes()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{job['kind']} of {job['pod']}", total=None, keys=0)
        while job["state"] not in {"done", "failed"}:
            time.sleep(POLL_S)
            try:
                job = api.get(f"/v1/jobs/{job['id']}")
                answered = time.monotonic()
            except UnavailableError:
                if time.monotonic() - answered > PATIENCE_S:
                    raise
            done = job["progress"]
            progress.update(
                task,
                total=done.get("parts"),
                completed=done.get("parts_done", 0),
                keys=done.get("keys", 0),
            )
            if job["state"] == "waiting" and not told and time.monotonic() - asked > NOBODY_TAKES_IT_S:
                told = True
                console.print("No scheduler takes the job: start `baleen scheduler`.", soft_wrap=True)
    return job


def _print_changes(job: dict[str, Any]) -> None:
    progress = dict(job["progress"])
    examples = progress.pop("examples", [])
    print_fields({"job": job["id"], "pod": job["pod"], "began_at": job["began_at"], **progress})
    if examples:
        columns = ("change", "repository", "digest", "why")
        typer.echo()
        print_table(columns, [[example[column] for column in columns] for example in examples])
