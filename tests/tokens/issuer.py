"""A pod's token issuer over HTTP, with keys and users of its own, and every way in which one can misbehave."""

import base64
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from coordinator.domain.pods import TokenIssuer
from tests.services.http import Handler, HTTPServer
from tests.tokens import forge
from tests.tokens.forge import Private

#: What users may do: by repository.
Rights = Mapping[str, set[str]]


class Request(NamedTuple):
    method: str
    user: str | None
    password: str | None
    fields: dict[str, list[str]]
    #: By their names in lower case.
    headers: dict[str, str]

    def scopes(self) -> list[str]:
        return [scope for text in self.fields.get("scope", []) for scope in text.split()]


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Issuer(HTTPServer):
    """Grants its users their rights among the requested ones. `reply`, if set, answers instead."""

    def __init__(self, name: str, key: Private, users: Mapping[str, str], rights: Rights) -> None:
        self.name = name
        self.service = f"{name}-registry"
        self.key = key
        self.users = users
        self.rights = rights
        self.asked: list[Request] = []
        self.claims: dict[str, Any] = {}
        self.takes_forms = True
        self.reply: Callable[[Request], Reply | None] = lambda _: None
        super().__init__(self._handler())
        self.url = f"{self.address}/jwt/auth"

    def registered(self, keys: bytes | None = None) -> TokenIssuer:
        return TokenIssuer(self.url, self.name, self.service, (keys or forge.public_pem(self.key)).decode())

    def described(self, **others: str) -> dict[str, str]:
        """The issuer as the API takes it."""
        known = self.registered()
        return {"url": known.url, "issuer": known.issuer, "service": known.service, "keys": known.keys} | others

    def granted(self, scopes: list[str]) -> list[dict[str, Any]]:
        found = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, wanted = rest.rpartition(":")
            actions = sorted(set(wanted.split(",")) & self.rights.get(name, set()))
            if actions:
                found.append({"type": kind, "name": name, "actions": actions})
        return found

    def token(self, access: list[dict[str, Any]], user: str, **others: Any) -> str:
        stated = {"iss": self.name, "aud": self.service, "sub": user} | self.claims | others
        return forge.token(self.key, forge.claims(access, **stated))

    def issued(self, access: list[dict[str, Any]], user: str = "alice", **others: Any) -> Reply:
        return Reply(200, json.dumps({"token": self.token(access, user, **others), "expires_in": 300}).encode())

    def answer(self, request: Request) -> Reply:
        self.asked.append(request)
        if (reply := self.reply(request)) is not None:
            return reply
        if request.method == "POST" and not self.takes_forms:
            return Reply(404)
        if request.user is not None and self.users.get(request.user) != request.password:
            return Reply(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        return self.issued(self.granted(request.scopes()), request.user or "")

    def _handler(self) -> type[Handler]:
        issuer = self

        class Answering(Handler):
            def do_GET(self) -> None:
                user = password = None
                if (header := self.headers["Authorization"]) is not None:
                    pair = base64.b64decode(header.removeprefix("Basic ")).decode()
                    user, _, password = pair.partition(":")
                self._answer(Request("GET", user, password, parse_qs(urlsplit(self.path).query), self._headers()))

            def do_POST(self) -> None:
                fields = parse_qs(self.body().decode())
                user, password = fields.get("username", [None])[0], fields.get("password", [None])[0]
                if fields.get("grant_type") == ["refresh_token"]:
                    user, password = "alice", fields["refresh_token"][0].removeprefix("refresh-")
                self._answer(Request("POST", user, password, fields, self._headers()))

            def _headers(self) -> dict[str, str]:
                return {name.lower(): value for name, value in self.headers.items()}

            def _answer(self, request: Request) -> None:
                reply = issuer.answer(request)
                with contextlib.suppress(OSError):  # the client has given up
                    self.reply(*reply)

        return Answering


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def now() -> int:
    return int(time.time())
