"""A TCP proxy on loopback that can be closed, so that Baleen is unreachable for a registry that uses it.

Not here: which registry uses it (run.py).
"""

import contextlib
import socket
import threading
from typing import Self

PIECE = 64 * 1024


class Gate:
    """Listens on a free port. `close` cuts all connections, and refuses new ones until `open`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._closed = False
        self._passing: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        # Wakes `accept`, which closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def open(self) -> None:
        self._closed = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            passing, self._passing = self._passing, set()
        for each in passing:
            _end_connection(each)

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                shut = self._closed
                if not shut:
                    self._passing |= {near, far}
            if shut:
                _end_connection(near)
                _end_connection(far)
                continue
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._copy_bytes, args=(source, target), daemon=True).start()

    def _copy_bytes(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                target.sendall(piece)
        with self._lock:
            self._passing -= {source, target}
        _end_connection(source)
        _end_connection(target)


def _end_connection(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
