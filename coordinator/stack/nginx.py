"""Run nginx with a configuration of router/nginx.py as a child process, for the demo and the tests.

The program is not part of the stack: Debian's package is `nginx-light`.
"""

import shutil
import signal
import socket
from pathlib import Path

from coordinator.errors import StackError
from coordinator.stack.process import ManagedProcess


def find_program() -> Path | None:
    """Return the path of nginx, if it is installed. Debian's folder for it is only on root's PATH."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    return None if found is None else Path(found)


def require_program() -> Path:
    found = find_program()
    if found is None:
        raise StackError("No nginx is installed: install the package nginx-light.")
    return found


def make_nginx(state: Path, file: Path, address: str) -> ManagedProcess:
    """A process of nginx that reads `file`, a whole configuration; ready when it accepts connections."""
    return ManagedProcess(
        name="nginx",
        argv=[require_program(), "-e", state / "error.log", "-p", state, "-c", file, "-g", "daemon off;"],
        log_file=state.with_name(f"{state.name}.log"),
        stop_signal=signal.SIGTERM,
        probe=lambda: is_listening(address),
    )


def is_listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=1):
        return True
