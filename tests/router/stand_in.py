"""A stand-in of Baleen behind the router: it forwards a mount to the pod as Baleen does, or fails in a chosen way.

Run as a program (`python -m tests.router.stand_in PORT`) it is a process that can be stopped where it is.
Not here: whether a mount is allowed.
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.services.http import Handler, HTTPServer

DEADLINE_S = 30.0


class Asked(NamedTuple):
    method: str
    target: str
    #: By their names in lower case.
    headers: dict[str, str]
    body: bytes


class StandIn(HTTPServer):
    """`fails` is a status that it answers itself, `outcome` the mark on that; mounts have no answer until `go` is set,
    and a token takes `token_seconds`.
    """

    def __init__(self, owners: dict[str, str], port: int = 0) -> None:
        self._owners = owners
        self.asked: list[Asked] = []
        self.fails: int | None = None
        self.outcome: str | None = None
        self.token_seconds = 0.0
        self.go = threading.Event()
        self.go.set()
        super().__init__(self._handler(), port)
        self.url = self.address

    def close(self) -> None:
        self.go.set()
        super().close()

    def serve(self) -> None:
        self._server.serve_forever()

    def taken(self) -> list[Asked]:
        """What it was asked since this was called before."""
        asked, self.asked = self.asked, []
        return asked

    def _pod(self, path: str) -> str:
        owned = max(
            (prefix for prefix in self._owners if f"{path}/".startswith(f"/v2/{prefix}/")), key=len, default=None
        )
        assert owned is not None, path
        return self._owners[owned]

    def _handler(self) -> type[Handler]:
        stand_in = self

        class Answering(Handler):
            def do_POST(self) -> None:
                self._record()
                stand_in.go.wait(DEADLINE_S)
                try:
                    if stand_in.fails is None:
                        self._forward()
                    else:
                        outcome = {} if stand_in.outcome is None else {"X-Baleen-Mount": stand_in.outcome}
                        self.reply(stand_in.fails, b"its own", outcome)
                except OSError:  # the router has given up
                    self.close_connection = True

            def do_GET(self) -> None:
                self._record()
                time.sleep(stand_in.token_seconds)
                if stand_in.fails is None:
                    self.reply(200, b'{"token": "of Baleen"}', {"Content-Type": "application/json"})
                else:
                    self.reply(stand_in.fails, b"its own")

            def _record(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                stand_in.asked.append(Asked(self.command, self.path, headers, self.body()))

            def _forward(self) -> None:
                """Begin a plain upload at the pod, whose answer is the client's."""
                path = urlsplit(self.path).path
                pod = http.client.HTTPConnection(urlsplit(stand_in._pod(path)).netloc, timeout=DEADLINE_S)
                try:
                    pod.request("POST", path, b"", {"Host": self.headers["Host"]})
                    answer = pod.getresponse()
                    headers = {k: v for k, v in answer.getheaders() if k.lower() not in {"content-length", "date"}}
                    self.reply(answer.status, answer.read(), headers | {"X-Baleen-Mount": "forwarded"})
                finally:
                    pod.close()

        return Answering


if __name__ == "__main__":
    StandIn({}, int(sys.argv[1])).serve()
