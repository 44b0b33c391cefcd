"""Baleen's own processes as children of `baleen up`: one API, one worker, one scheduler.

They get their settings, secrets too, by environment, because every user of the machine can read a command line.
The rest of the parent's environment is passed on (proxies, AWS credentials, certificates).
Not here: restarts (coordinator/commands/up.py).
"""

import os
import signal
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from coordinator import settings
from coordinator.settings import PREFIX, Duration, Secret, Settings
from coordinator.stack.probes import get_url
from coordinator.stack.process import ManagedProcess

API = "API"
WORKER = "worker"
SCHEDULER = "scheduler"
PROBE_SECONDS = 2.0
READY_SECONDS = 60.0
#: The API gives requests 10 s to end; the worker ends its batch, the scheduler stops within a few seconds.
STOP_SECONDS = 20.0


def load_own_settings(data_dir: Path) -> Settings:
    """Return the user's settings, without those of an earlier run's data directory."""
    return settings.load({**os.environ, f"{PREFIX}DATA_DIR": str(data_dir / "no-stack-here")})


def plain_values(merged: Settings, beginning: tuple[str, ...] = ("",)) -> dict[str, Any]:
    """Return the present settings as plain values; all, or those whose names begin with `beginning`."""
    values = {
        name: _plain_value(getattr(merged, name)) for name in Settings.__annotations__ if name.startswith(beginning)
    }
    return {name: value for name, value in values.items() if value is not None}


def local_url(host: str, port: int) -> str:
    """Return the URL, on this machine, of a server that listens on a host: a name, an address, or any address."""
    try:
        address = ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.version == 4:
        return f"http://{'127.0.0.1' if address.is_unspecified else host}:{port}"
    # A server on any address of IPv6 listens only on IPv6.
    return f"http://[{'::1' if address.is_unspecified else host}]:{port}"


def make_api(merged: Settings, directory: Path, *, host: str, port: int) -> ManagedProcess:
    """The API, ready when its liveness check succeeds."""
    address = f"{local_url(host, port)}/healthz"
    arguments = ["-m", "coordinator.cli", "api", "--host", host, "--port", str(port)]
    return _make_process(API, arguments, merged, directory, probe_url=address)


def make_worker(merged: Settings, directory: Path) -> ManagedProcess:
    """The worker. It takes long to join its group, so nothing waits until it is ready."""
    return _make_process(WORKER, ["-m", "workers"], merged, directory)


def make_scheduler(merged: Settings, directory: Path) -> ManagedProcess:
    """The scheduler; nothing waits until it is ready."""
    return _make_process(SCHEDULER, ["-m", "workers.scheduler"], merged, directory)


def _make_process(
    name: str, arguments: list[str], merged: Settings, directory: Path, probe_url: str | None = None
) -> ManagedProcess:
    return ManagedProcess(
        name=name,
        argv=[sys.executable, *arguments],
        log_file=directory / "logs" / f"{name.lower()}.log",
        env=_make_environment(merged),
        cwd=Path.cwd(),
        stop_signal=signal.SIGTERM,
        stop_timeout=STOP_SECONDS,
        ready_timeout=READY_SECONDS,
        probe=None if probe_url is None else lambda: is_answering(probe_url),
    )


def _make_environment(merged: Settings) -> Mapping[str, str]:
    ours = {f"{PREFIX}{name.upper()}": _format_value(value) for name, value in plain_values(merged).items()}
    return {"PYTHONUNBUFFERED": "1"} | user_environment() | ours


def user_environment() -> dict[str, str]:
    """The user's environment for children, without Baleen's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    return str(value) if isinstance(value, Duration) else value


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_answering(url: str) -> bool:
    """Whether something on this machine answers 200 there now."""
    return get_url(url, PROBE_SECONDS)[0] == 200
