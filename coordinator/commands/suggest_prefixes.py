"""`baleen pods suggest-prefixes`: repositories in the bucket that no pod owns, and commands that register them."""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

import typer

from coordinator import settings
from coordinator.client import connect_api
from coordinator.commands.output import Json, format_count, print_json, print_table
from coordinator.domain.names import parse_repository
from coordinator.domain.perimeter import NAMES_LIMIT
from coordinator.errors import BaleenError

#: Repositories that are counted, and folders that are read, for one prefix.
COUNT_LIMIT = 1000
#: More than there are.
ALL_PODS = 100_000
#: Characters of a pod's name.
NAME_LIMIT = 63


def suggest_prefixes(*, json: Json = False) -> None:
    """Propose a prefix for each folder of the bucket that no pod owns, and print the command that registers it.

    Lists at most a hundred folders; changes nothing. Folders that one registry writes belong to one pod: give its
    command several `--prefix`.
    """
    from coordinator.compose import store as compose_store  # noqa: PLC0415
    from coordinator.perimeter.root_listing import count_repositories, find_unowned  # noqa: PLC0415

    loaded = settings.load()
    with connect_api(loaded) as api:
        pods = api.get_pages("/v1/pods", ALL_PODS)["items"]
    prefixes = [prefix for pod in pods for prefix in pod["prefixes"]]
    store = compose_store.make_object_store(loaded)
    found = list(islice(find_unowned(store, prefixes), NAMES_LIMIT + 1))
    items = [
        suggest_prefix(name, prefixes, {pod["name"] for pod in pods}, *count_repositories(store, name, COUNT_LIMIT))
        for name in found[:NAMES_LIMIT]
    ]
    complete = len(found) <= NAMES_LIMIT
    if json:
        print_json({"items": items, "complete": complete})
        return
    if not items:
        typer.echo("Every repository in the bucket and root belongs to a pod.")
        return
    print_table(
        ("prefix", "repositories"),
        [(each["prefix"], f"{each['repositories']:,}{'' if each['counted_all'] else '+'}") for each in items],
    )
    typer.echo("")
    for each in items:
        typer.echo(each["command"] or f"{each['prefix']}: {each['problem']}")
    if not complete:
        typer.echo(f"\nThere are more than {format_count(NAMES_LIMIT, 'folder')}: register these, and run this again.")


def suggest_prefix(
    prefix: str, prefixes: Sequence[str], pods: set[str], repositories: int, counted_all: bool
) -> dict[str, Any]:
    """Return the command that registers a prefix, or why there is none."""
    problem = None
    try:
        parse_repository(prefix)
    except BaleenError:
        problem = "it is not a valid name of a repository, and no registry wrote it: delete it."
    below = sorted(each for each in prefixes if each.startswith(f"{prefix}/"))
    if below:
        problem = f"it is a repository, and {below[0]} below it is a prefix of a pod: delete or move it."
    name = re.sub(r"[^a-z0-9]+", "-", prefix.lower()).strip("-")[:NAME_LIMIT].rstrip("-") or "pod"
    name = next(each for each in (name, *(f"{name[: NAME_LIMIT - 4]}-{n}" for n in range(2, 1000))) if each not in pods)
    command = f'baleen pods add {name} --prefix {prefix} --registry URL --unmanaged --why "it sends no events yet"'
    return {
        "prefix": prefix,
        "repositories": repositories,
        "counted_all": counted_all,
        "problem": problem,
        "command": command if problem is None else None,
    }
