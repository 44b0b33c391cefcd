"""A webhook that records a registry's notifications and can be told to fail."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

DEADLINE_SECONDS = 20.0


@dataclass(frozen=True)
class Delivery:
    """One POST: what came, and the status it was answered with."""

    content_type: str
    authorization: str | None
    envelope: dict[str, Any]
    status: int

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(self.envelope["events"])


class NotificationSink:
    """Records every delivery; `answer` is the status that it gives, 200 unless told otherwise."""

    def __init__(self) -> None:
        self.answer = 200
        self._changed = threading.Condition()
        self._deliveries: list[Delivery] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/events"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_SECONDS)

    @property
    def deliveries(self) -> list[Delivery]:
        with self._changed:
            return list(self._deliveries)

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """The events of the deliveries that were answered with success."""
        return [event for delivery in self.deliveries if delivery.status < 400 for event in delivery.events]

    def wait(self, enough: Callable[[Self], bool]) -> None:
        """Wait until the condition holds for what was recorded; fails after a deadline."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self), DEADLINE_SECONDS):
                raise AssertionError(f"the sink waited in vain; it has {self._deliveries}")

    def wait_for_events(self, count: int) -> list[dict[str, Any]]:
        self.wait(lambda sink: len(sink.accepted) >= count)
        return self.accepted

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with sink._changed:
                    status = sink.answer
                    headers = self.headers
                    delivery = Delivery(headers["Content-Type"], headers["Authorization"], json.loads(body), status)
                    sink._deliveries.append(delivery)
                    sink._changed.notify_all()
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler
