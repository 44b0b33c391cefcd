"""Measure the processor time of process trees. Not here: the processes (services.py)."""

import time
from collections.abc import Mapping

import psutil


def read_cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and its children, running or waited for."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        members = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in members:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        if process is root:
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


class Meter:
    """Cores that each named process uses from `start` to `cores`."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self.start()

    def start(self) -> None:
        self._at = time.perf_counter()
        self._before = self._read()

    def cores(self) -> dict[str, float]:
        elapsed, now = time.perf_counter() - self._at, self._read()
        return {name: round((now[name] - self._before[name]) / elapsed, 2) for name in self._pids}

    def _read(self) -> dict[str, float]:
        return {name: read_cpu_seconds(pid) for name, pid in self._pids.items()}


def wait_quiet(pid: int, seconds: float = 30.0) -> None:
    """Wait until a process uses hardly any processor time, so that earlier load does not affect the measurement."""
    deadline, before = time.monotonic() + seconds, read_cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = read_cpu_seconds(pid)
        if now - before < 0.05:
            return
        before = now
