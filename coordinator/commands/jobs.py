"""`baleen jobs` and `baleen pods reconcile`: request jobs, follow them, and show them.

A scheduler does the job, so it continues when the command is interrupted.
"""

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from coordinator import settings
from coordinator.client import Api, connect_api
from coordinator.commands.blobs import Cursor, Limit, PodFilter
from coordinator.commands.output import (
    Json,
    make_progress_bar,
    print_fields,
    print_json,
    print_page,
    print_table,
    stderr_console,
)
from coordinator.domain.names import parse_pod
from coordinator.errors import BaleenError, UnavailableError


class Polling(NamedTuple):
    """How a job is followed."""

    pause_s: float = 0.5
    #: How long the API may be away: enough for its restart.
    patience_s: float = 30.0


POLLING = Polling()
#: Schedulers look for jobs every second.
NO_SCHEDULER_S = 10.0

#: The order in which a reconcile's progress is printed: the table keeps none.
PROGRESS_FIELDS = (
    *("parts", "parts_done", "keys", "links"),
    *("holdings_added", "links_added", "holdings_removed", "links_removed", "still_linked"),
    *("doubtful_removals_resolved", "unread", "gaps_resolved", "processes_retired"),
)

app = typer.Typer(help="Long-running work, such as reconciles.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="As `list` shows it.")]
Pod = Annotated[str, typer.Argument(metavar="NAME", help="The pod.")]


@app.command(name="list")
def list_jobs(
    *,
    pod: PodFilter = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind: reconcile, doctor or gc.")] = None,
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """List jobs, the newest first."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/jobs", limit, cursor, pod=pod, kind=kind)
    print_page(page, ("id", "kind", "pod", "state", "asked_at", "began_at", "finished_at", "why"), json=json)


@app.command()
def show(number: Number, *, json: Json = False) -> None:
    """Show one job: its progress, and at its end what it changed and why."""
    with connect_api(settings.load()) as api:
        job = api.get(f"/v1/jobs/{number}")
    print_json(job) if json else _print_job(job, [name for name in job if name != "progress"])


def reconcile(
    name: Pod,
    *,
    why: Annotated[str | None, typer.Option(help="The reason, kept with the record.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done, or only request it.")] = True,
    json: Json = False,
) -> None:
    """Compare a pod's links in storage with the table, and correct the table."""
    pod = parse_pod(name)
    with connect_api(settings.load()) as api:
        job = reconcile_pod(api, pod, why) if wait else request_reconcile(api, pod, why)
        later = _find_later_reasons(api, pod) if job["state"] == "done" else []
    if json:
        print_json(job)
    elif job["state"] != "done":
        typer.echo(f"Job {job['id']} is {job['state']}: see `baleen jobs show {job['id']}`.")
    else:
        _print_job({"job": job["id"], **job}, ("job", "pod", "began_at"))
    for sentence in later:
        stderr_console().print(f"Not resolved by this one: {sentence}.", soft_wrap=True)


def _find_later_reasons(api: Api, pod: str) -> list[str]:
    """Return the reasons that only a later reconcile resolves, as the API words them (pods/view.py)."""
    return [sentence for sentence in api.get(f"/v1/pods/{pod}")["blocked_by"] if "that begins after" in sentence]


def request_reconcile(api: Api, pod: str, why: str | None = None) -> dict[str, Any]:
    """Request a reconcile; return the job, which may have begun earlier."""
    job: dict[str, Any] = api.post(f"/v1/pods/{pod}/reconcile", {} if why is None else {"why": why})
    return job


def reconcile_pod(
    api: Api, pod: str, why: str | None = None, *, wait: bool = True, polling: Polling = POLLING
) -> dict[str, Any]:
    """Have the pod reconciled by a job that begins after this call; return the job.

    With `wait` it has ended; raises BaleenError if it failed.
    """
    job = request_reconcile(api, pod, why)
    if job["state"] == "running":
        stderr_console().print("A reconcile that began earlier is running; another one follows it.", soft_wrap=True)
        follow_job(api, job, polling)
        job = request_reconcile(api, pod, why)
    if not wait:
        return job
    job = follow_job(api, job, polling)
    if job["state"] == "failed":
        raise BaleenError(f"Job {job['id']} failed: {job['error']}")
    return job


def follow_job(api: Api, job: dict[str, Any], polling: Polling = POLLING) -> dict[str, Any]:
    """Show the progress of the job until it has ended, and return it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("parts, {task.fields[keys]:,} keys"),
        TimeElapsedColumn(),
    )
    with make_progress_bar(*columns) as progress:
        task = progress.add_task(f"{job['kind']} of {job['pod']}", total=None, keys=0)

        def show_progress(job: dict[str, Any]) -> None:
            done = job["progress"]
            progress.update(
                task, total=done.get("parts"), completed=done.get("parts_done", 0), keys=done.get("keys", 0)
            )

        return poll_until_ended(api, f"/v1/jobs/{job['id']}", job, show_progress, progress.console, polling)


def poll_until_ended(
    api: Api,
    path: str,
    job: dict[str, Any],
    show_progress: Callable[[dict[str, Any]], None],
    console: Console,
    polling: Polling = POLLING,
) -> dict[str, Any]:
    """Poll the job and pass it to `show_progress` until it has ended; return it."""
    asked = answered = time.monotonic()
    is_noted = False
    while job["state"] not in {"done", "failed"}:
        time.sleep(polling.pause_s)
        try:
            job = api.get(path)
            answered = time.monotonic()
        except UnavailableError:
            if time.monotonic() - answered > polling.patience_s:
                raise
        show_progress(job)
        if job["state"] == "waiting" and not is_noted and time.monotonic() - asked > NO_SCHEDULER_S:
            is_noted = True
            console.print("No scheduler takes the job: start `baleen scheduler`.", soft_wrap=True)
    return job


def _print_job(job: dict[str, Any], fields: Sequence[str]) -> None:
    """Print these fields of a job, then its progress, and examples of what it changed."""
    progress = dict(job["progress"])
    examples: list[dict[str, Any]] = progress.pop("examples", [])
    done = {name: progress.pop(name) for name in PROGRESS_FIELDS if name in progress}
    print_fields({name: job[name] for name in fields} | done | progress)
    if examples:
        columns = ("change", "repository", "digest", "why")
        typer.echo()
        print_table(columns, [[example[column] for column in columns] for example in examples])
