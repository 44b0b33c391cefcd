"""A proxy between a registry and ingest: it can be away, can answer late, and remembers what passed."""

import http.client
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

DEADLINE_S = 60.0


class Delivery(NamedTuple):
    """One POST that ingest has answered, or None if it was not asked."""

    event: dict[str, Any]
    status: int | None


class WebhookProxy:
    """`away`: connections are closed without an answer. `repeats`: answers come when an event came so often."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._changed = threading.Condition()
        self._came: Counter[str] = Counter()
        self.deliveries: list[Delivery] = []
        self.away = False
        self.repeats = 1
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}{self._target.path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)

    def accepted(self) -> list[dict[str, Any]]:
        """The events that ingest has taken, in the order in which it did; repeated ones too."""
        with self._changed:
            return [each.event for each in self.deliveries if each.status == http.client.ACCEPTED]

    def attempts(self) -> int:
        with self._changed:
            return self._came.total()

    def _take(self, body: bytes, headers: dict[str, str]) -> int | None:
        """Pass one POST on; None if nothing is to be answered."""
        (event,) = json.loads(body)["events"]
        with self._changed:
            self._came[event["id"]] += 1
            away = self.away
            self._changed.notify_all()
        status = None if away else self._pass_on(body, headers)
        with self._changed:
            self.deliveries.append(Delivery(event, status))
            # The registry gives up in the meantime, and comes again.
            self._changed.wait_for(lambda: self._came[event["id"]] >= self.repeats, DEADLINE_S)
        return status

    def _pass_on(self, body: bytes, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port or 80, timeout=30)
        try:
            connection.request("POST", self._target.path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                kept = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
                status = proxy._take(body, kept)
                if status is None:
                    self.close_connection = True
                    return
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:  # it has given up
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler
