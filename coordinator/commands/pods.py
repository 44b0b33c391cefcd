"""`baleen pods`: the registries that Baleen serves."""

import sys
from typing import Annotated

import typer

from coordinator import settings
from coordinator.commands.blobs import Limit
from coordinator.commands.client import connected
from coordinator.commands.output import Json, print_fields, print_json, print_page
from coordinator.domain.names import parse_pod, parse_repository
from coordinator.domain.pods import Linker, PodMode

app = typer.Typer(help="The registries that Baleen serves.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The pod: lower-case letters, digits and hyphens.")]


@app.command()
def add(
    name: Name,
    *,
    prefix: Annotated[list[str], typer.Option(help="Owns this repository and those below it. May be given again.")],
    registry: Annotated[list[str] | None, typer.Option(help="A registry's URL. May be given again.")] = None,
    linker: Annotated[Linker, typer.Option(help="How the pod learns of a mounted blob.")] = Linker.LINK,
    mode: Annotated[PodMode, typer.Option(help="What keeps a blob alive in the pod.")] = PodMode.MANIFEST,
    json: Json = False,
) -> None:
    """Register a pod, and print its token and its registry's configuration: now, and never again."""
    body = {
        "name": parse_pod(name),
        "prefixes": [parse_repository(each) for each in prefix],
        "registries": registry or [],
        "linker": linker,
        "mode": mode,
    }
    with connected(settings.load()) as api:
        answer = api.post("/v1/pods", body)
    _print_token(answer, json=json)


@app.command(name="list")
def list_pods(*, limit: Limit = 1000, json: Json = False) -> None:
    """List pods, and how much is open for each."""
    with connected(settings.load()) as api:
        page = api.pages("/v1/pods", limit)
    columns = ("name", "prefixes", "mode", "linker", "repositories", "dead_letters", "held_by")
    print_page(page, columns, json=json)


@app.command()
def show(name: Name, *, json: Json = False) -> None:
    """Show one pod, and what holds garbage collection for it."""
    with connected(settings.load()) as api:
        pod = api.get(f"/v1/pods/{parse_pod(name)}")
    print_json(pod) if json else print_fields(pod)


@app.command()
def remove(name: Name, *, json: Json = False) -> None:
    """Forget a pod that holds nothing and has nothing open."""
    with connected(settings.load()) as api:
        api.delete(f"/v1/pods/{parse_pod(name)}")
    print_json({"pod": name, "removed": True}) if json else typer.echo(f"Pod {name} is removed.")


@app.command(name="rotate-token")
def rotate_token(name: Name, *, json: Json = False) -> None:
    """Give a pod another event token; the old one is refused within seconds."""
    with connected(settings.load()) as api:
        answer = api.post(f"/v1/pods/{parse_pod(name)}/token")
    _print_token(answer, json=json)


def _print_token(answer: dict[str, str], *, json: bool) -> None:
    if json:
        print_json(answer)
        return
    sys.stdout.write(
        f"Pod {answer['pod']}'s notifications must carry this token. It is shown now and never again:\n\n"
        f"  {answer['event_token']}\n\n"
        f"Paste this into the configuration of the registry, and restart it:\n\n{answer['registry_config']}"
    )
