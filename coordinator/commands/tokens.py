"""`baleen tokens`: create, list and revoke tokens for the API. Uses the database: the API would need a token.

Drivers are imported by the commands: all commands import this module, and most need no database.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from coordinator import settings
from coordinator.commands.output import Json, print_json, print_table

app = typer.Typer(help="Tokens for the API. Needs BALEEN_DATABASE_URL or a running `baleen up`.", no_args_is_help=True)


class RoleName(StrEnum):
    READ = "read"
    OPERATE = "operate"


Name = Annotated[str, typer.Argument(metavar="NAME", help="The token's name, by what it is for.")]


@app.command()
def create(
    name: Name,
    *,
    role: Annotated[
        RoleName, typer.Option(help="`read` may only read; `operate` may also make changes.")
    ] = RoleName.READ,
    json: Json = False,
) -> None:
    """Create a token, and print it. It is never shown again."""
    from coordinator.compose import database as compose_database  # noqa: PLC0415
    from coordinator.tokens import table as tokens  # noqa: PLC0415

    with compose_database.open_database(settings.load(), name="baleen-command") as database:
        token = tokens.create_token(database, name, role.value)
    print_json({"name": name, "role": role, "token": token.reveal()}) if json else typer.echo(token.reveal())


@app.command(name="list")
def list_tokens(*, json: Json = False) -> None:
    """List tokens, without their values."""
    from coordinator.compose import database as compose_database  # noqa: PLC0415
    from coordinator.tokens import table as tokens  # noqa: PLC0415

    with compose_database.open_database(settings.load(), name="baleen-command") as database:
        items = tokens.read_tokens(database)
    if json:
        print_json({"items": items, "next": None})
    else:
        rows = [(item.name, item.role, msgspec.to_builtins(item.created_at)) for item in items]
        print_table(("name", "role", "created at"), rows)


@app.command()
def revoke(name: Name, *, json: Json = False) -> None:
    """Revoke a token; it is refused within seconds."""
    from coordinator.compose import database as compose_database  # noqa: PLC0415
    from coordinator.tokens import table as tokens  # noqa: PLC0415

    with compose_database.open_database(settings.load(), name="baleen-command") as database:
        tokens.revoke_token(database, name)
    print_json({"name": name, "revoked": True}) if json else typer.echo(f"Token {name} is revoked.")
