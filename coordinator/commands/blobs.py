"""`baleen blob`: list blobs, show what needs one, explain its history, and restore a hidden one.

The API checks the filters: its errors name the values that it takes.
"""

import sys
import time
from typing import Annotated, Any

import typer

from coordinator import settings
from coordinator.client import Api, connect_api
from coordinator.commands.output import Json, print_fields, print_json, print_page, print_table, stderr_console
from coordinator.domain.names import parse_digest
from coordinator.errors import BaleenError

app = typer.Typer(help="Blobs: what needs them, and what happened to them.", no_args_is_help=True)

DigestArgument = Annotated[str, typer.Argument(metavar="DIGEST", help="sha256: and 64 hex digits.")]
Limit = Annotated[int, typer.Option(min=1, help="Print at most this many items.")]
Cursor = Annotated[str | None, typer.Option(help="Continue after an earlier answer: its `next`.")]
PodFilter = Annotated[str | None, typer.Option(help="Only of this pod.")]

POLL_S = 0.5
#: Workers look for restores twice a second.
NO_WORKER_S = 10.0
#: States in which registries are not served the blob, and it may be restored.
CONCEALED_STATES = frozenset({"hiding", "hidden", "purging"})

COLUMNS = ("digest", "size", "state", "reference_count", "link_count", "first_seen", "unreferenced_since")


@app.command(name="list")
def list_blobs(
    *,
    state: Annotated[
        str | None, typer.Option(help="Only of this state: live, unreferenced, missing, hidden or purged.")
    ] = None,
    pod: PodFilter = None,
    min_references: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Only with at least this many references.")
    ] = 0,
    sort: Annotated[
        str,
        typer.Option(
            help="first_seen; unreferenced_since: only unreferenced ones, the longest first; or references: the most "
            "first. --pod works with first_seen only."
        ),
    ] = "first_seen",
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """List blobs."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/blobs", limit, cursor, state=state, pod=pod, min_references=min_references, sort=sort)
    print_page(page, COLUMNS, json=json)


@app.command()
def show(digest: DigestArgument, *, json: Json = False) -> None:
    """Show how many holdings need a blob, and in which pods."""
    parse_digest(digest)
    with connect_api(settings.load()) as api:
        blob = api.get(f"/v1/blobs/{digest}")
    print_json(blob) if json else print_fields(blob)


@app.command()
def refs(digest: DigestArgument, *, limit: Limit = 1000, cursor: Cursor = None, json: Json = False) -> None:
    """List the repositories and manifests that need a blob, and as what."""
    parse_digest(digest)
    with connect_api(settings.load()) as api:
        page = api.get_pages(f"/v1/blobs/{digest}/references", limit, cursor)
    columns = ("pod", "repository", "kind", "manifest", "since")
    print_page(page, columns, json=json)


@app.command()
def explain(digest: DigestArgument, *, json: Json = False) -> None:
    """Explain why a blob is kept or what happened to it, with the evidence."""
    parse_digest(digest)
    with connect_api(settings.load()) as api:
        explanation = api.get(f"/v1/blobs/{digest}/explain")
    print_json(explanation) if json else _print_explanation(explanation)


def _print_explanation(explanation: dict[str, Any]) -> None:
    sys.stdout.write(f"{explanation['summary']}\n\n")
    shown = ("digest", "state", "size", "reference_count", "link_count", "first_seen", "unreferenced_since")
    print_fields({name: explanation[name] for name in shown} | {"pinned": explanation["pin"] is not None})
    for title, columns, items in (
        ("kept by", ("why", "until", "detail"), explanation["reasons"]),
        ("needed by", ("pod", "repository", "kind", "manifest"), explanation["references"]),
        ("linked by", ("pod", "repository", "linked_at", "counts_until"), explanation["links"]),
        ("mounted by", ("repository", "source", "at"), explanation["mounts"]),
    ):
        if items:
            sys.stdout.write(f"\n{title}\n")
            names = [name.replace("_", " ") for name in columns]
            print_table(names, [[item[column] for column in columns] for item in items])
    sys.stdout.write("\nhistory\n")
    sys.stdout.writelines(f"  {sentence}\n" for sentence in explanation["sentences"])


@app.command()
def undelete(
    digest: DigestArgument,
    *,
    why: Annotated[str | None, typer.Option(help="The reason, kept with the record.")] = None,
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Pin it, or keep it for the grace period only.")] = True,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it is served again, or only request it.")
    ] = True,
    json: Json = False,
) -> None:
    """Restore a hidden blob, and pin it: it stays until `baleen unpin`."""
    parse_digest(digest)
    with connect_api(settings.load()) as api:
        body = {"pin": pin} if why is None else {"pin": pin, "why": why}
        asked = api.post(f"/v1/blobs/{digest}/undelete", body)
        # In the other states a delete may still land, and waiting for its end takes long.
        if wait and asked["state"] == "hidden":
            asked["state"] = _wait_until_served(api, digest)
    if json:
        print_json(asked)
    elif asked["state"] in CONCEALED_STATES:
        typer.echo(asked["detail"])
    else:
        typer.echo(f"{digest} is served again{', and pinned' if asked['pinned'] else ''}.")


def _wait_until_served(api: Api, digest: str) -> str:
    asked, is_noted = time.monotonic(), False
    while True:
        state = str(api.get(f"/v1/blobs/{digest}")["state"])
        if state == "purged":
            raise BaleenError(f"The bytes of {digest} were already being deleted: push it again.")
        if state not in CONCEALED_STATES:
            return state
        if not is_noted and time.monotonic() - asked > NO_WORKER_S:
            is_noted = True
            stderr_console().print("No worker restores it: start `baleen worker`.", soft_wrap=True)
        time.sleep(POLL_S)
