"""`baleen blob`: who needs a blob."""

from typing import Annotated

import typer

from coordinator import settings
from coordinator.commands.client import connected
from coordinator.commands.output import Json, print_fields, print_json, print_page
from coordinator.domain.names import parse_digest

app = typer.Typer(help="Who needs a blob.", no_args_is_help=True)

DigestArgument = Annotated[str, typer.Argument(metavar="DIGEST", help="sha256: and 64 hex digits.")]
Limit = Annotated[int, typer.Option(min=1, help="Items to print, at most.")]
Cursor = Annotated[str | None, typer.Option(help="Go on after an earlier answer: its `next`.")]


@app.command()
def show(digest: DigestArgument, *, json: Json = False) -> None:
    """Say how many holdings need a blob, and in which pods."""
    parse_digest(digest)
    with connected(settings.load()) as api:
        blob = api.get(f"/v1/blobs/{digest}")
    print_json(blob) if json else print_fields(blob)


@app.command()
def refs(digest: DigestArgument, *, limit: Limit = 1000, cursor: Cursor = None, json: Json = False) -> None:
    """List the repositories and manifests that need a blob, and as what."""
    parse_digest(digest)
    with connected(settings.load()) as api:
        page = api.pages(f"/v1/blobs/{digest}/references", limit, cursor)
    columns = ("pod", "repository", "kind", "manifest", "since")
    print_page(page, columns, json=json)
