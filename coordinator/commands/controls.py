"""`baleen pin`, `unpin`, `hold`, `release`, `gc on` and `gc off`: the GC controls.

`gc off` is the kill switch, so it also works without the API: where that does not answer or is not known, it writes the
switch to the database itself. Every delete checks that row; nothing else need run.
"""

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from coordinator import settings
from coordinator.client import connect_api
from coordinator.commands.blobs import Cursor, DigestArgument, Limit
from coordinator.commands.output import Json, print_json, print_page, stderr_console
from coordinator.domain.names import parse_digest, parse_repository
from coordinator.errors import UnavailableError, UnconfiguredError
from coordinator.settings import Settings

if TYPE_CHECKING:
    pass

Why = Annotated[str | None, typer.Option(help="The reason, kept with the record.")]
NeededWhy = Annotated[str, typer.Option(help="The reason, kept with the record.")]
Scope = Annotated[str, typer.Argument(metavar="SCOPE", help="A pod, or a prefix of repositories such as team/app.")]


def register(app: typer.Typer) -> None:
    for command in (pin, unpin, hold, release):
        app.command()(command)


def pin(digest: DigestArgument, *, why: Why = None, json: Json = False) -> None:
    """Pin a blob: it is never collected."""
    parse_digest(digest)
    with connect_api(settings.load()) as api:
        pinned = api.put(f"/v1/pins/{digest}", _reason_body(why))
        if api.get("/v1/gc/switch")["mark_pending"]:
            _print_mark_pending()
    if json:
        print_json(pinned)
        return
    typer.echo(f"{digest} is pinned: it is not collected until `baleen unpin`.")
    if pinned["state"] is None:
        stderr_console().print("No registry has reported it yet: check the digest.", soft_wrap=True)
    elif pinned["state"] in {"hidden", "hiding", "purging"}:
        stderr_console().print(f"It is hidden: restore it with `baleen blob undelete {digest}`.", soft_wrap=True)
    elif pinned["state"] == "purged":
        stderr_console().print("Its bytes are already deleted: push it again.", soft_wrap=True)


def unpin(digest: DigestArgument, *, json: Json = False) -> None:
    """Remove a pin."""
    parse_digest(digest)
    with connect_api(settings.load()) as api:
        api.delete(f"/v1/pins/{digest}")
    if json:
        print_json({"digest": digest, "pinned": False})
    else:
        typer.echo(f"{digest} is no longer pinned.")


def hold(scope: Scope, *, why: Why = None, json: Json = False) -> None:
    """Stop all garbage collection until this hold is removed."""
    name = parse_repository(scope)
    with connect_api(settings.load()) as api:
        held = api.put(f"/v1/holds/{name}", _reason_body(why))
        if api.get("/v1/gc/switch")["mark_pending"]:
            _print_mark_pending()
    if json:
        print_json(held)
    else:
        typer.echo(
            f"{name} is held. Any hold stops all garbage collection, because pods share blobs: remove it with "
            f"`baleen release {name}`."
        )


def release(scope: Scope, *, json: Json = False) -> None:
    """Remove a hold."""
    name = parse_repository(scope)
    with connect_api(settings.load()) as api:
        api.delete(f"/v1/holds/{name}")
        others = api.get("/v1/holds", limit=1)["items"]
    if json:
        print_json({"scope": name, "held": False})
    else:
        more = f"; {others[0]['scope']} still is: see `baleen gc holds`" if others else ""
        typer.echo(f"{name} is no longer held{more}.")


def holds(*, limit: Limit = 1000, cursor: Cursor = None, json: Json = False) -> None:
    """List holds. A single one stops all garbage collection."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/holds", limit, cursor)
    print_page(page, ("scope", "held_at", "why"), json=json)


def pins(*, limit: Limit = 1000, cursor: Cursor = None, json: Json = False) -> None:
    """List pinned blobs."""
    with connect_api(settings.load()) as api:
        page = api.get_pages("/v1/pins", limit, cursor)
    print_page(page, ("digest", "state", "pinned_at", "why"), json=json)


def on(*, why: NeededWhy, json: Json = False) -> None:
    """Turn garbage collection on."""
    with connect_api(settings.load()) as api:
        switch = api.put("/v1/gc/switch", {"enabled": True, "why": why})
        held = api.get("/v1/status")["gc"]["blocked_by"]
    if json:
        print_json(switch)
        return
    typer.echo("Garbage collection is on.")
    for reason in held:
        stderr_console().print(f"Still blocked by: {reason}", soft_wrap=True)


def off(*, why: NeededWhy, json: Json = False) -> None:
    """Turn garbage collection off, at once and in every process.

    If the API does not answer, this writes to the database: set BALEEN_DATABASE_URL, or have `baleen up` running here.
    """
    loaded = settings.load()
    try:
        with connect_api(loaded) as api:
            switch = api.put("/v1/gc/switch", {"enabled": False, "why": why})
            if switch["mark_pending"]:
                _print_mark_pending()
    except (UnavailableError, UnconfiguredError) as error:
        if loaded.database_url is None:
            raise type(error)(f"{error} Or set BALEEN_DATABASE_URL to turn the switch in the database.") from error
        switch = _turn_off_in_database(loaded, why)
        stderr_console().print("The API does not answer: the switch was turned in the database.", soft_wrap=True)
    print_json(switch) if json else typer.echo("Garbage collection is off: nothing more is deleted.")


def _turn_off_in_database(loaded: Settings, why: str) -> dict[str, Any]:
    from coordinator.compose import database as compose_database  # noqa: PLC0415
    from coordinator.gc import controls  # noqa: PLC0415
    from coordinator.gc import controls_view as queries  # noqa: PLC0415

    with compose_database.open_database(loaded, name="baleen-command") as database:
        with controls.changing(database) as connection:
            controls.put_switch(connection, why, on=False)
        switch: dict[str, Any] = msgspec.to_builtins(queries.read_switch(database))
    return switch


def _print_mark_pending() -> None:
    stderr_console().print(
        "The mark in the bucket does not have this change yet: until then, a restore of an older database is not "
        "noticed. A scheduler writes the mark; `mark_pending` in `baleen gc status --json` is false once it has.",
        soft_wrap=True,
    )


def _reason_body(why: str | None) -> dict[str, str]:
    return {} if why is None else {"why": why}
