"""`baleen status`: how far events are applied, and what blocks garbage collection."""

import sys
from typing import Any

import typer

from coordinator import settings
from coordinator.client import connect_api
from coordinator.commands.output import Json, print_fields, print_json


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(*, json: Json = False) -> None:
    """Show how far events are applied, what is unresolved, and what blocks garbage collection."""
    with connect_api(settings.load()) as api:
        answer = api.get("/v1/status")
    print_json(answer) if json else _print_status(answer)


def _print_status(answer: dict[str, Any]) -> None:
    collection = answer["gc"]
    lag = [count for count in answer["lag"].values() if count is not None]
    known = bool(lag) and len(lag) == len(answer["lag"])
    print_fields(
        answer
        | {
            "lag": sum(lag) if known else "not known",
            "gc": "on" if collection["enabled"] else "off",
            "unowned_repositories": _describe_unowned(answer["unowned_repositories"]),
        },
    )
    sys.stdout.write("\nblocked by\n" if collection["blocked_by"] else "\nNothing blocks GC.\n")
    for reason in collection["blocked_by"]:
        sys.stdout.write(f"  {reason}\n")
    if answer["missing_blobs"]:
        sys.stdout.write("\nNeeded blobs have no bytes: see `baleen blob list --state missing`.\n")


def _describe_unowned(answer: dict[str, Any]) -> str:
    if answer["listed_at"] is None:
        return "not known"
    return ", ".join([*answer["names"], *([] if answer["complete"] else ["and more"])]) or "none"
