"""`baleen adopt`: copy a pod's own bucket or directory into the shared layer.

The API gives the pod's prefixes; this process then reads both stores and writes the shared one. At the end it requests
a reconcile of the pod: until that is done, the table does not know what was copied (see survey/adopt.py).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator import settings
from coordinator.client import connect_api
from coordinator.commands.jobs import reconcile_pod
from coordinator.commands.output import (
    Json,
    format_bytes,
    format_count,
    make_progress_bar,
    print_fields,
    print_json,
    stderr_console,
)
from coordinator.domain.names import parse_pod
from coordinator.errors import BaleenError, UsageError
from coordinator.settings import Settings
from coordinator.survey.adopt import THREADS, AdoptionResult, Trust, execute_plan, read_stores
from coordinator.survey.adopt_plan import Figures, Plan, Remark, Why, make_plan
from coordinator.survey.tree import require_tree

#: Remarks of one kind that are printed; all are counted.
REMARKS_SHOWN = 20
REMARKS_IN_JSON = 1000

MEANINGS = {
    Why.REFUSED: "Not adopted: their bytes do not have their digest",
    Why.LEFT_OUT: "Left out: they need something that was not adopted",
    Why.ABSENT: "Links left out: the source does not store their blobs",
    Why.INCOMPLETE: "Manifests adopted although the source does not store everything that they list",
    Why.UNREAD: "Manifests adopted although Baleen cannot read what they list",
    Why.TAG_KEPT: "Tags left as they are in the shared layer (--tags-from-source takes the source's)",
}


def register(app: typer.Typer) -> None:
    app.command()(adopt)


def adopt(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The registered pod.")],
    *,
    source: Annotated[str, typer.Option("--from", help="The pod's own store: s3://bucket/root or file:///dir.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    only_owned: Annotated[
        bool, typer.Option("--only-owned", help="Leave out repositories that are not below the pod's prefixes.")
    ] = False,
    tags_from_source: Annotated[
        bool, typer.Option("--tags-from-source", help="Where a tag differs in both stores, take the source's.")
    ] = False,
    trust_source: Annotated[
        bool, typer.Option("--trust-source", help="Do not hash bytes of the source that need not be read.")
    ] = False,
    trust_shared: Annotated[
        bool, typer.Option("--trust-shared", help="Do not hash blobs that the shared layer already has.")
    ] = False,
    endpoint_url: Annotated[str | None, typer.Option(help="The S3 endpoint of the source.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the reconcile at the end is done.")] = False,
    json: Json = False,
) -> None:
    """Copy the blobs of a pod's own store that the shared layer lacks, and link all of them.

    The source is only read. The command can be repeated. Exit code 1 if blobs were refused; the rest is still adopted.
    """
    from coordinator.compose import store as compose_store  # noqa: PLC0415 - its drivers take a second
    from coordinator.storage.locations import parse_location  # noqa: PLC0415

    loaded, pod, location = settings.load(), parse_pod(name), parse_location(source)
    with connect_api(loaded) as api:
        prefixes: list[str] = api.get(f"/v1/pods/{pod}")["prefixes"]
    shared = compose_store.make_object_store(loaded)
    store = compose_store.open_location(location, loaded, endpoint_url=endpoint_url)
    if compose_store.is_same_place(store, shared):
        raise UsageError(f"{location.url} is the shared layer itself: name the pod's own store.")
    require_tree(store, location.url)
    shared.check()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with ThreadPoolExecutor(THREADS) as pool, make_progress_bar(*columns) as progress:
        task = progress.add_task("listing")

        def report(what: str) -> None:
            progress.update(task, description=what)

        found = read_stores(store, shared, prefixes, pool, only_owned=only_owned, report=report)
        planned = make_plan(found, tags_from_source=tags_from_source)
        outcome = AdoptionResult(planned.figures, planned.remarks)
        if not dry_run:
            trust = Trust(trust_source, trust_shared)
            try:
                outcome = execute_plan(
                    planned,
                    store,
                    shared,
                    pool,
                    trust=trust,
                    progress=lambda figures: report(_progress_line(figures, planned)),
                )
            except KeyboardInterrupt:
                stderr_console().print(
                    "What was adopted stays. Run the same command again to continue.", soft_wrap=True
                )
                raise
    job, failure = (
        (None, None) if dry_run else _request_reconcile(loaded, pod, f"adopted from {location.url}", wait=wait)
    )
    if json:
        print_json(_as_json(pod, location.url, outcome, dry_run=dry_run) | {"reconcile": job})
    else:
        _print_result(outcome, dry_run=dry_run)
        if job is not None:
            ends = (
                ""
                if job["state"] == "done"
                else f" Keep the source until `baleen jobs show {job['id']}` prints the state done."
            )
            typer.echo(f"Reconcile, job {job['id']}: {job['state']}.{ends}")
    if failure is not None:
        raise BaleenError(
            f"Everything was copied, but the table does not know it yet: {failure} Run "
            f"`baleen pods reconcile {pod}` today, and keep the source until it is done."
        ) from failure
    if refused := len(_group_remarks(outcome.remarks)[Why.REFUSED]):
        raise BaleenError(
            f"{format_count(refused, 'blob is', 'blobs are')} refused, and so is everything that needs one; the rest "
            f"{'would be' if dry_run else 'is'} adopted. Repair the blobs that are named, and run this again."
        )


def _request_reconcile(loaded: Settings, pod: str, why: str, *, wait: bool) -> tuple[Any, BaleenError | None]:
    """Request a reconcile that begins after the links were written: an earlier one may have missed them.

    The error is returned, not raised: what was adopted must be printed also if the request fails.
    """
    try:
        with connect_api(loaded) as api:
            return reconcile_pod(api, pod, why, wait=wait), None
    except BaleenError as error:
        return None, error


def _progress_line(done: Figures, planned: Plan) -> str:
    whole = planned.figures
    links = done.layer_links + done.revision_links + done.tag_links
    wanted = whole.layer_links + whole.revision_links + whole.tag_links
    return (
        f"repository {done.repositories:,} of {whole.repositories:,}, {format_bytes(done.copied_bytes)} of "
        f"{format_bytes(whole.copied_bytes)} copied, {links:,} of {wanted:,} links"
    )


def _as_json(pod: str, url: str, outcome: AdoptionResult, *, dry_run: bool) -> dict[str, Any]:
    kinds = _group_remarks(outcome.remarks)
    return (
        {"pod": pod, "source": url, "dry_run": dry_run}
        | outcome.figures._asdict()
        | {"copied_again": outcome.copied_again}
        | {"remark_counts": {str(why): len(found) for why, found in kinds.items()}}
        | {"remarks": [remark._asdict() for found in kinds.values() for remark in found[:REMARKS_IN_JSON]]}
    )


def _print_result(outcome: AdoptionResult, *, dry_run: bool) -> None:
    figures = outcome.figures
    done = "to be " if dry_run else ""
    print_fields(
        {
            "repositories": f"{figures.repositories:,}",
            "blobs": f"{figures.blobs:,} ({format_bytes(figures.bytes)})",
            f"{done}copied": f"{format_count(figures.copied_blobs, 'blob')}, {format_bytes(figures.copied_bytes)} "
            f"({format_count(figures.copied_bytes, 'byte')})",
            f"{done}linked": f"{format_count(figures.layer_links, 'layer')}, "
            f"{format_count(figures.revision_links, 'manifest')}, "
            f"{format_count(figures.tag_links, 'link of a tag', 'links of tags')}",
        }
    )
    console = stderr_console()
    for why, found in _group_remarks(outcome.remarks).items():
        if found:
            console.print(f"{MEANINGS[why]} ({len(found):,}):", soft_wrap=True)
        for remark in found[:REMARKS_SHOWN]:
            console.print(f"  {remark.repository} {remark.what}: {remark.detail}", soft_wrap=True)
        if len(found) > REMARKS_SHOWN:
            console.print(f"  and {len(found) - REMARKS_SHOWN:,} more: --json prints them")


def _group_remarks(remarks: Sequence[Remark]) -> dict[Why, list[Remark]]:
    return {why: [remark for remark in remarks if remark.why is why] for why in Why}
