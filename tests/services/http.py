"""A small HTTP server of a test, on loopback, in threads of this process: until its block ends.

Not here: its answers, which each test defines.
"""

import ssl
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any, Self

HOST = "127.0.0.1"
DEADLINE_S = 60.0
POLL_S = 0.05


class Handler(BaseHTTPRequestHandler):
    """Keeps connections, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int = 200, content: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: Beyond the usual five that come at once, the system would have a client try again after a second, or several.
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        # Clients that were killed, or that have given up.
        pass


class HTTPServer:
    """Serves from the beginning of its block to the end; an earlier request waits."""

    def __init__(self, handler: type[Handler], port: int = 0, server_file: Path | None = None) -> None:
        """Port 0 is a free one. With a file of a key and its certificate, over TLS."""
        self._server = _Server((HOST, port), handler)
        #: The names that TLS clients have sent.
        self.names: list[str | None] = []
        if server_file is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(server_file)
            context.sni_callback = lambda _, name, __: self.names.append(name)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
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
