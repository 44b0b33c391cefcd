"""A registry that accepts chosen credentials and records its requests, for what the real ones cannot show."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.services.http import Handler, HTTPServer


class Request(NamedTuple):
    method: str
    path: str
    authorization: str | None
    host: str | None = None


class GuardedRegistry(HTTPServer):
    """Answers 401 with `challenge` to a request without one of `good`, and any other as if it had everything."""

    def __init__(self, server_file: Path | None = None) -> None:
        """With a file of a key and its certificate, over TLS."""
        self.challenge = ""
        self.good: set[str | None] = set()
        self.requests: list[Request] = []
        self.redirects: dict[str, str] = {}
        #: Everything is answered with 404.
        self.has_nothing = False
        #: The answer to a PUT.
        self.put_status = 201
        #: Called with the User-Agent of each request, before it is answered.
        self.asked: Callable[[str], object] = lambda _: None
        registry = self

        class Answering(Handler):
            def _answer(self) -> None:
                self.body()
                registry.asked(self.headers["User-Agent"])
                authorization = self.headers["Authorization"]
                registry.requests.append(Request(self.command, self.path, authorization, self.headers["Host"]))
                if authorization not in registry.good:
                    self.reply(401, headers={"WWW-Authenticate": registry.challenge})
                elif self.path in registry.redirects:
                    self.reply(307, headers={"Location": registry.redirects[self.path]})
                elif self.command == "POST":
                    self.reply(202, headers={"Location": f"{self.path}session"})
                else:
                    found = 404 if registry.has_nothing else 200
                    put = 404 if registry.has_nothing and "/manifests/" in self.path else registry.put_status
                    self.reply({"PUT": put, "DELETE": 202}.get(self.command, found))

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

        super().__init__(Answering, server_file=server_file)
        self.url = self.address
