"""`baleen status`: how far events are applied, and what blocks garbage collection."""

import sys
from typing import Any

import typer

from coordinator import settings
from coordinator.client import connected
from coordinator.commands.output import Json, print_fields, print_json


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(*, json: Json = False) -> None:
    """Show how far events are applied, what is unresolved, and what blocks garbage collection."""
    with connected(settings.load()) as api:
        told = api.get("/v1/status")
    print_json(told) if json else _print(told)


def _print(told: dict[str, Any]) -> None:
    collection = told["gc"]
    lag = [count for count in told["lag"].values() if count is not None]
    known = bool(lag) and len(lag) == len(told["lag"])
    print_fields(
        told
        | {
            "lag": sum(lag) if known else "not known",
            "gc": "on" if collection["enabled"] else "off",
            "unowned_repositories": _unowned(told["unowned_repositories"]),
        },
    )
    sys.stdout.write("\nblocked by\n" if collection["held_by"] else "\nNothing blocks GC.\n")
    for reason in collection["held_by"]:
        sys.stdout.write(f"  {reason}\n")
    if told["missing_blobs"]:
        sys.stdout.write("\nNeeded blobs have no bytes: see `baleen blob list --state missing`.\n")


def _unowned(told: dict[str, Any]) -> str:
    if told["listed_at"] is None:
        return "not known"
    return ", ".join([*told["names"], *([] if told["complete"] else ["and more"])]) or "none"
