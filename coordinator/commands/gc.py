"""`baleen gc`: show the plan of garbage collection, start runs, show what they did, and switch it on and off.

A scheduler does the run, so it continues when the command is interrupted.
Only `gc claim` works without the API: no other process of Baleen may run on that database yet.
"""

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator import settings
from coordinator.client import Api, connect_api
from coordinator.commands import controls
from coordinator.commands.blobs import Cursor, Limit
from coordinator.commands.jobs import poll_until_ended
from coordinator.commands.output import (
    Json,
    format_bytes,
    format_count,
    format_value,
    make_progress_bar,
    print_fields,
    print_json,
    print_page,
    print_table,
    stderr_console,
)
from coordinator.errors import BaleenError, UsageError

if TYPE_CHECKING:
    from coordinator.gc.mark import ClaimPreview
    from coordinator.gc.mark_table import ClaimResult

app = typer.Typer(help="Garbage collection: hide unreferenced blobs, wait, delete them.", no_args_is_help=True)
app.command()(controls.on)
app.command()(controls.off)
app.command()(controls.holds)
app.command()(controls.pins)

#: How often a run of another kind, requested by another client, is waited for.
ATTEMPTS = 5
PLAN_COLUMNS = ("digest", "size", "step", "since", "why", "detail")
RUN_COLUMNS = ("id", "state", "dry_run", "began_at", "finished_at", "hidden", "purged", "restored", "why")
#: Fields that `show` prints in sections of their own.
PRINTED_APART = frozenset({"progress", "blocked_by", "error"})


@app.command()
def plan(
    *,
    step: Annotated[str | None, typer.Option(help="Only blobs of this step: hide, purge or keep.")] = (None),
    despite_holds: Annotated[
        bool, typer.Option("--despite-holds", help="Show the plan as if nothing blocked GC.")
    ] = False,
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """Show what would be hidden, purged and kept now, and why. Changes nothing."""
    with connect_api(settings.load()) as api:
        first = api.get("/v1/gc/plan", limit=1, despite_holds=str(despite_holds).lower())
        page = api.get_pages("/v1/gc/plan", limit, cursor, step=step, despite_holds=str(despite_holds).lower())
    # The last of several pages has no totals.
    page["totals"] = first["totals"]
    if json:
        print_json(page)
        return
    _print_figures(page["totals"])
    if page["blocked_by"]:
        sys.stdout.write("\nNothing is collected now. GC is blocked by\n")
        sys.stdout.writelines(f"  {reason}\n" for reason in page["blocked_by"])
        if not despite_holds:
            stderr_console().print("Pass --despite-holds to show the plan as if nothing blocked GC.", soft_wrap=True)
    sys.stdout.write("\n")
    print_page(page, PLAN_COLUMNS, json=False)


@app.command()
def run(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    why: Annotated[str | None, typer.Option(help="The reason, kept with the record.")] = None,
    beyond_limits: Annotated[
        str | None,
        typer.Option(metavar="WHY", help="Exceed the run limits once; state why."),
    ] = None,
    leftovers: Annotated[
        bool,
        typer.Option("--leftovers", help="Also look for leftovers, even if a recent run has."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done, or only request it.")] = True,
    json: Json = False,
) -> None:
    """Collect garbage now. Prints the figures and asks for confirmation, unless --yes is given."""
    asks = not dry_run and not yes
    if asks and not sys.stdin.isatty():
        raise UsageError("Standard input is not a terminal: pass --yes or --dry-run.")
    body = {"dry_run": dry_run, "leftovers": leftovers} | {
        name: value for name, value in (("why", why), ("beyond_limits", beyond_limits)) if value is not None
    }
    with connect_api(settings.load()) as api:
        if asks:
            _confirm_run(api)
        answer = _complete_run(api, body) if wait else api.post("/v1/gc/runs", body)
    if json:
        print_json(answer)
    elif answer["state"] != "done":
        typer.echo(f"Run {answer['id']} is {answer['state']}: see `baleen gc show {answer['id']}`.")
    else:
        _print_run(answer)
    if answer["state"] == "done" and answer["blocked_by"] and not answer["dry_run"]:
        raise BaleenError(f"Run {answer['id']} could collect nothing: {_format_first(answer['blocked_by'])}")


@app.command()
def status(*, json: Json = False) -> None:
    """Show the state of garbage collection, and what blocks it."""
    with connect_api(settings.load()) as api:
        answer = api.get("/v1/gc/status")
    if json:
        print_json(answer)
        return
    runs = {name: _describe_run(answer[name]) for name in ("open_run", "last_run")}
    switch = {"switch": f"{'on' if answer['enabled'] else 'off'}: {answer['switch']['why']}"}
    fields = answer | runs | switch
    print_fields({name: value for name, value in fields.items() if name not in {"enabled", "blocked_by"}})
    sys.stdout.write("\nblocked by\n" if answer["blocked_by"] else "\nNothing blocks GC.\n")
    sys.stdout.writelines(f"  {reason}\n" for reason in answer["blocked_by"])


@app.command()
def history(*, limit: Limit = 100, cursor: Cursor = None, json: Json = False) -> None:
    """List runs, the newest first."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/gc/runs", limit, cursor)
    if not json:
        page["items"] = [
            run | {"hidden": _format_amount(run["hidden"]), "purged": _format_amount(run["purged"])}
            for run in page["items"]
        ]
    print_page(page, RUN_COLUMNS, json=json)


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="As `history` shows it.")],
    *,
    decisions: Annotated[bool, typer.Option("--decisions", help="Also its decision on each blob.")] = False,
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """Show one run: its progress, and what it hid, purged, kept and restored."""
    with connect_api(settings.load()) as api:
        answer = api.get(f"/v1/gc/runs/{number}")
        page = api.get_pages(f"/v1/gc/runs/{number}/decisions", limit, cursor) if decisions else None
    if json:
        print_json(answer if page is None else answer | {"decisions": page})
        return
    _print_run(answer)
    if page is not None:
        sys.stdout.write("\n")
        print_page(page, ("at", "decision", "digest", "why"), json=False)


@app.command()
def claim(
    *,
    why: controls.NeededWhy,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: Json = False,
) -> None:
    """Claim the bucket for this database, after a failover or restore.

    Also for a bucket that was rolled back, and for a database that replaces another one. Stop every other process of
    Baleen first. The command prints what the claim changes and what has to be verified, and asks for confirmation. It
    needs the database and the bucket, not the API. With `baleen up`, whose database stops with it, run
    `baleen up --claim WHY` instead.
    """
    loaded = settings.load()
    require_terminal(yes=yes)
    claimed = claim_bucket(loaded, why, yes=yes)
    if json:
        print_json(claimed._asdict())
    else:
        typer.echo(describe_claim(claimed))


def require_terminal(*, yes: bool) -> None:
    """Raise UsageError if a claim needs confirmation and standard input is not a terminal."""
    if not yes and not sys.stdin.isatty():
        raise UsageError("Standard input is not a terminal: pass --yes to confirm the claim.")


def claim_bucket(loaded: settings.Settings, why: str, *, yes: bool) -> "ClaimResult":
    """Explain a claim, ask for confirmation, and make it; raises BaleenError."""
    from coordinator.compose import database as compose_database  # noqa: PLC0415 - drivers are for commands that need them
    from coordinator.compose import store as compose_store  # noqa: PLC0415 - drivers are for commands that need them
    from coordinator.gc import mark  # noqa: PLC0415
    from coordinator.kafka.topics import EVENTS  # noqa: PLC0415

    bound = timedelta(seconds=loaded.safety_delete_bound)
    connections, store = (
        compose_database.make_connections(loaded, name="baleen-claim"),
        compose_store.make_object_store(loaded),
    )
    try:
        _explain_claim(mark.preview_claim(connections, store), bound)
        if not yes:
            _ask_for_yes("Is every other process of Baleen stopped, and will no other database use this bucket?")
        return mark.claim_bucket(connections, store, why, EVENTS, bound)
    finally:
        connections.close()


def describe_claim(claimed: "ClaimResult") -> str:
    """Say what the claim did, and what the operator does next."""
    return (
        f"The bucket belongs to this database, and GC is off. {format_count(claimed.hides, 'hide')} will be undone; "
        f"{format_count(claimed.pods, 'pod')} will be reconciled.\nWhen they are, and after "
        f"{format_value(claimed.verify_from)}, run `baleen audit --repair`, then `baleen gc on --why …`. See "
        "`Failover and restore` in docs/RECOVERY.md."
    )


def _explain_claim(preview: "ClaimPreview", bound: timedelta) -> None:
    """Print what the claim changes, and what has to be verified after it."""
    ours, found = preview.ours, preview.found
    bucket = "has no mark" if found is None else f"was marked by database {found.database[:100]}, epoch {found.epoch}"
    if found is not None and found.instance is not None:
        bucket += f", timeline {found.instance.timeline} of system {found.instance.system}"
    stderr_console().print(
        f"The bucket {bucket}.\nThis database is {ours.database}, epoch {ours.epoch}, timeline "
        f"{ours.current.timeline} of system {ours.current.system}.\n"
        f"{preview.refusal or 'They match: no claim is needed.'}\n\n"
        "The claim\n"
        "  1. switches GC off;\n"
        f"  2. restores what this table has hidden, {format_count(preview.hides, 'hide')}, instead of purging it, and "
        "restarts every grace period;\n"
        f"  3. records a gap for each of {format_count(preview.pods, 'pod')}: a reconcile compares its links with the "
        "table;\n"
        f"  4. blocks GC until `baleen audit --repair` has verified in storage everything that the table calls live, "
        f"{format_count(preview.needed, 'blob')}: it removes delete markers and copies quarantined bytes back. It must "
        f"begin {format_value(bound)} after the claim, since deletes of the lost history may land until then, "
        "and after the reconciles;\n"
        "  5. gives this database a new identity, so that no older state of it can be used by mistake.\n",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _confirm_run(api: Api) -> None:
    """Print what the run would collect, and ask; raises BaleenError if GC is blocked or the answer is not yes."""
    planned = api.get("/v1/gc/plan", limit=1)
    if planned["blocked_by"]:
        raise BaleenError(f"Nothing can be collected now: {_format_first(planned['blocked_by'])}")
    totals = planned["totals"]
    _ask_for_yes(f"Hide {_format_amount(totals['hide'])}, and delete {_format_amount(totals['purge'])} for good?")


def _ask_for_yes(question: str) -> None:
    """Ask the question; raises BaleenError unless the answer is yes."""
    stderr_console().print(f"{question} [y/N] ", end="", soft_wrap=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise BaleenError("Nothing was done.")


def _complete_run(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    """Have the requested run done, after any other that is open; raises BaleenError if it failed."""
    for _ in range(ATTEMPTS):
        answer: dict[str, Any] = api.post("/v1/gc/runs", body)
        ours = (
            answer["dry_run"] == body["dry_run"]
            and answer["leftovers"] >= body["leftovers"]
            and ("beyond_limits" not in body or answer["beyond_limits"] is not None)
        )
        if not ours:
            stderr_console().print("A run of another kind is in progress; this one follows it.", soft_wrap=True)
        answer = _follow_run(api, answer)
        if ours:
            if answer["state"] == "failed":
                raise BaleenError(f"Run {answer['id']} failed: {answer['error']}")
            return answer
    raise BaleenError("Other clients keep requesting runs: try again.")


def _follow_run(api: Api, answer: dict[str, Any]) -> dict[str, Any]:
    """Show the progress of the run until it has ended, and return it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with make_progress_bar(*columns) as progress:
        task = progress.add_task(_describe_progress(answer), total=None)
        return poll_until_ended(
            api,
            f"/v1/gc/runs/{answer['id']}",
            answer,
            lambda now: progress.update(task, description=_describe_progress(now)),
            progress.console,
        )


def _describe_progress(answer: dict[str, Any]) -> str:
    what = "dry run" if answer["dry_run"] else "run"
    step = answer["step"] or answer["state"]
    amounts = f"hidden {_format_amount(answer['hidden'])}, purged {_format_amount(answer['purged'])}"
    return f"{what} {answer['id']}: {step}, {amounts}"


def _print_figures(totals: dict[str, Any]) -> None:
    rows = [("hide", *_format_both(totals["hide"])), ("purge", *_format_both(totals["purge"]))]
    rows += [(f"keep: {why}", *_format_both(kept)) for why, kept in totals["kept"].items()]
    print_table(("step", "blobs", "bytes"), rows)
    if totals["unfinished"]:
        sys.stdout.write(
            f"\n{format_count(totals['unfinished'], 'unfinished hide')}: the next run undoes or completes them.\n"
        )


def _print_run(answer: dict[str, Any]) -> None:
    done = ("would hide", "would purge") if answer["dry_run"] else ("hidden", "purged")
    amounts = {label: _format_amount(answer[name]) for label, name in zip(done, ("hidden", "purged"), strict=True)}
    planned = answer["planned"] and {name: _format_amount(answer["planned"][name]) for name in ("hide", "purge")}
    fields = {name: value for name, value in answer.items() if name not in {"hidden", "purged"}}
    fields |= amounts | {"planned": planned}
    others = {name: value for name, value in answer["progress"].items() if name not in answer and name != "step"}
    print_fields({name: value for name, value in fields.items() if name not in PRINTED_APART} | others)
    if answer["blocked_by"]:
        sys.stdout.write("\nblocked by\n")
        sys.stdout.writelines(f"  {reason}\n" for reason in answer["blocked_by"])
    over = answer["progress"].get("beyond_limits")
    if answer["dry_run"] and over:
        sys.stdout.write("\nrefused without `--beyond-limits WHY`\n")
        sys.stdout.writelines(f"  {reason}\n" for reason in over)
    _print_leftovers(answer["progress"].get("leftovers") or {})
    if answer["error"]:
        sys.stdout.write(f"\n{answer['error']}\n")


def _print_leftovers(answer: dict[str, dict[str, Any]]) -> None:
    sought = {kind: tally for kind, tally in answer.items() if tally["state"] not in {"not due", "waits"}}
    if sought:
        sys.stdout.write("\nleftovers of registries and hides\n")
        columns = ("state", "count", "bytes", "left", "unknown")
        rows = [(kind, *(tally[name] for name in columns)) for kind, tally in sought.items()]
        print_table(("kind", *columns), rows)


def _describe_run(answer: dict[str, Any] | None) -> str | None:
    if answer is None:
        return None
    when = format_value(answer["finished_at"] or answer["began_at"] or answer["asked_at"])
    why = f": {answer['error']}" if answer["error"] else ""
    took = f"hidden {_format_amount(answer['hidden'])}, purged {_format_amount(answer['purged'])}"
    return f"{answer['id']}{' (dry run)' if answer['dry_run'] else ''}, {answer['state']} {when}: {took}{why}"


def _format_amount(answer: dict[str, int]) -> str:
    return f"{format_count(answer['blobs'], 'blob')} ({format_bytes(answer['bytes'])})"


def _format_both(answer: dict[str, int]) -> tuple[int, str]:
    return answer["blobs"], format_bytes(answer["bytes"])


def _format_first(reasons: list[str]) -> str:
    more = f" (and {len(reasons) - 1} more: `baleen gc status`)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}"
