"""Bearer tokens of the API, with their roles.

A token is 256 random bits, so that one unsalted hash is enough and a stolen table reveals no token.
"""

import datetime as dt
import hashlib
import re
import secrets
from typing import Literal, NamedTuple

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from coordinator.db.session import read_connection, write_transaction
from coordinator.db.shapes import View
from coordinator.errors import ConflictError, InvalidNameError, NotFoundError
from coordinator.settings import Secret

Role = Literal["read", "operate"]
TOKENS_LIMIT = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class ApiToken(View, frozen=True, kw_only=True):
    name: str
    role: Role
    created_at: dt.datetime


class KnownToken(NamedTuple):
    name: str
    role: Role
    sha256: bytes


def make_token() -> Secret:
    return Secret(secrets.token_urlsafe(32))


def hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise InvalidNameError(f"{name[:100]!r} is not a token name: use up to 63 letters, digits, dots and hyphens.")
    return name


def create_token(engine: Engine, name: str, role: Role) -> Secret:
    """Create a token and return it, the only time that it is visible; raises ConflictError if the name is taken."""
    token = make_token()
    try:
        with write_transaction(engine) as connection:
            _insert_token(connection, check_name(name), role, hash_token(token.reveal()))
    except IntegrityError as error:
        raise ConflictError(f"There is a token {name} already: choose another name, or revoke it first.") from error
    return token


def replace_token(engine: Engine, name: str, role: Role) -> Secret:
    """Create a token with this name, replacing an existing one."""
    token = make_token()
    with write_transaction(engine) as connection:
        connection.execute(text("DELETE FROM api_tokens WHERE name = :name"), {"name": check_name(name)})
        _insert_token(connection, name, role, hash_token(token.reveal()))
    return token


def revoke_token(engine: Engine, name: str) -> None:
    """Revoke a token; every API replica refuses it within seconds. Raises NotFoundError."""
    with write_transaction(engine) as connection:
        done = connection.execute(text("DELETE FROM api_tokens WHERE name = :name"), {"name": check_name(name)})
        if not done.rowcount:
            raise NotFoundError(f"There is no token {name}: see `baleen tokens list`.")


def read_tokens(engine: Engine) -> list[ApiToken]:
    """Return all tokens by name, without their secrets."""
    with read_connection(engine) as connection:
        rows = connection.execute(
            text("SELECT name, role, created_at FROM api_tokens ORDER BY name LIMIT :limit"),
            {"limit": TOKENS_LIMIT},
        )
        return [ApiToken(name=row.name, role=row.role, created_at=row.created_at) for row in rows]


def read_known_tokens(engine: Engine) -> dict[bytes, KnownToken]:
    """Return all tokens by their hash."""
    with read_connection(engine) as connection:
        rows = connection.execute(
            text("SELECT name, role, token_sha256 FROM api_tokens LIMIT :limit"), {"limit": TOKENS_LIMIT}
        )
        return {row.token_sha256: KnownToken(row.name, row.role, row.token_sha256) for row in rows}


def _insert_token(connection: Connection, name: str, role: Role, sha256: bytes) -> None:
    connection.execute(
        text("INSERT INTO api_tokens (name, role, token_sha256) VALUES (:name, :role, :sha256)"),
        {"name": name, "role": role, "sha256": sha256},
    )
