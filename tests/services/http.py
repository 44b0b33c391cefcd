"""A small HTTP server of a test, on loopback, in threads of this process: until its block ends.

Not here: what it answers, which is each one's own.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

HOST = "127.0.0.1"
DEADLINE_S = 60.0
POLL_S = 0.05


class Handler(BaseHTTPRequestHandler):
    """Keeps connections, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: Beyond the usual five that come at once, the system would have a client try again after a second, or several.
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        # Clients that were killed, or that have given up.
        pass


class HTTPServer:
    """Serves from the beginning of its block to the end; what is asked before waits."""

    def __init__(self, handler: type[Handler], port: int = 0) -> None:
        """Port 0 is a free one."""
        self._server = _Server((HOST, port), handler)
        self._thread = Thread(target=self._server.serve_forever, args=(POLL_S,), daemon=True)
        self.port: int = self._server.server_port
        self.address = f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it: nothing listens there any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE_S)
