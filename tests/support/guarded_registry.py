"""A registry that lets in whom it was told to, and records what it was asked: for what the real ones cannot show."""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.services.http import Handler, HTTPServer


class Request(NamedTuple):
    method: str
    path: str
    authorization: str | None
    host: str | None = None


class GuardedRegistry(HTTPServer):
    """Answers 401 with `challenge` to whoever does not send one of `good`, and as a registry that has all to others."""

    def __init__(self, server_file: Path | None = None) -> None:
        """With a file of a key and its certificate, over TLS."""
        self.challenge = ""
        self.good: set[str | None] = set()
        self.requests: list[Request] = []
        #: What TLS clients said whom they want to speak with.
        self.names: list[str | None] = []
        self.redirects: dict[str, str] = {}
        #: Whoever asks for something hears that it is not there.
        self.has_nothing = False
        #: What a PUT is answered.
        self.put_status = 201
        #: Called with the User-Agent of each request, before it is answered.
        self.asked: Callable[[str], object] = lambda _: None
        registry = self

        class Answering(Handler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                registry.asked(self.headers["User-Agent"])
                authorization = self.headers["Authorization"]
                registry.requests.append(Request(self.command, self.path, authorization, self.headers["Host"]))
                if authorization not in registry.good:
                    self._send(401, {"WWW-Authenticate": registry.challenge})
                elif self.path in registry.redirects:
                    self._send(307, {"Location": registry.redirects[self.path]})
                elif self.command == "POST":
                    self._send(202, {"Location": f"{self.path}session"})
                else:
                    found = 404 if registry.has_nothing else 200
                    put = 404 if registry.has_nothing and "/manifests/" in self.path else registry.put_status
                    self._send({"PUT": put, "DELETE": 202}.get(self.command, found), {})

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

            def _send(self, status: int, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Answering)
        self.url = self.address
        if server_file is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(server_file)
            context.sni_callback = lambda _, name, __: self.names.append(name)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
