"""`baleen repositories`: what a repository holds, and which bytes no other repository needs."""

from typing import Annotated

import typer

from coordinator import settings
from coordinator.client import connect_api
from coordinator.commands.blobs import Cursor, Limit, PodFilter
from coordinator.commands.output import Json, print_fields, print_json, print_page
from coordinator.domain.names import parse_repository

app = typer.Typer(help="What a repository holds.", no_args_is_help=True)


@app.command(name="list")
def list_repositories(
    *,
    pod: PodFilter = None,
    prefix: Annotated[str | None, typer.Option(help="Only this repository and those below it.")] = None,
    limit: Limit = 1000,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """List repositories by name. Counts that take long are omitted: `show` has them."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/repositories", limit, cursor, pod=pod, prefix=prefix)
    print_page(page, ("name", "pod", "manifests", "blobs", "logical_bytes", "unique_bytes"), json=json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="With its slashes: team/app.")], *, json: Json = False
) -> None:
    """Show one repository: its blobs, their bytes, and the bytes that no other repository needs."""
    with connect_api(settings.load()) as api:
        repository = api.get(f"/v1/repositories/{parse_repository(name)}")
    print_json(repository) if json else print_fields(repository)
