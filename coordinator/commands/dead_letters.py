"""`baleen dead-letters`: events that could not be applied."""

from typing import Annotated

import typer

from coordinator import settings
from coordinator.commands.blobs import Cursor, Limit
from coordinator.commands.client import connected
from coordinator.commands.output import Json, print_fields, print_json, print_page

app = typer.Typer(help="Events that could not be applied. They hold garbage collection.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="ID", min=1, help="As `list` shows it.")]


@app.command(name="list")
def list_dead_letters(
    *,
    pod: Annotated[str | None, typer.Option(help="Only of this pod.")] = None,
    settled: Annotated[bool, typer.Option("--settled", help="Also those that are settled.")] = False,
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """List dead letters, the oldest first."""
    with connected(settings.load()) as api:
        page = api.pages("/v1/dead-letters", limit, cursor, pod=pod, settled=str(settled).lower())
    columns = ("id", "pod", "reason", "received_at", "settlement", "detail")
    print_page(page, columns, json=json)


@app.command()
def show(number: Number, *, json: Json = False) -> None:
    """Show one dead letter, with what was sent."""
    with connected(settings.load()) as api:
        letter = api.get(f"/v1/dead-letters/{number}")
    print_json(letter) if json else print_fields(letter)


@app.command()
def retry(number: Number, *, json: Json = False) -> None:
    """Publish what can be understood now, for instance after a prefix was added."""
    with connected(settings.load()) as api:
        answer = api.post(f"/v1/dead-letters/{number}/retry")
    print_json(answer) if json else typer.echo(
        f"Dead letter {number} is settled: {answer['events']} events are published."
    )


@app.command()
def discard(
    number: Number, *, why: Annotated[str, typer.Option(help="Kept with the dead letter.")], json: Json = False
) -> None:
    """Give a dead letter up; what it spoke of stays unknown until a reconcile of the pod."""
    with connected(settings.load()) as api:
        letter = api.post(f"/v1/dead-letters/{number}/discard", {"why": why})
    print_json(letter) if json else typer.echo(f"Dead letter {number} is discarded.")
