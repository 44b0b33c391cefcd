"""End the children of a parent that was killed with SIGKILL.

A parent that is killed cannot stop anything, so a small process of its own session watches a pipe from the
parent: each line names a child (`pid identity signal`) or takes one back (`gone pid`). When the pipe ends,
for whatever reason, every child left is sent its signal, given END_SECONDS, then SIGKILL. After an orderly
stop all are gone and the guard simply ends.

A process id may be used again by a stranger, so each goes with an identity: the time its process was started.
The guard also keeps the descriptors it was given open (the lock of the data directory): a next `up` waits
until the children of a killed one are gone.

This file runs by its path and imports the standard library only: it must start fast and on its own.
A child that the parent starts by fork alone would hold the pipe open; ManagedProcess does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

END_SECONDS = 30.0  # the broker writes its whole log as it ends
POLL_SECONDS = 0.05


class Child(NamedTuple):
    """A process and what it is sent at the end."""

    pid: int
    identity: str
    signal: int

    def line(self) -> str:
        return f"{self.pid} {self.identity} {self.signal}\n"

    @classmethod
    def parse(cls, line: str) -> Child:
        pid, identity, number = line.split()
        return cls(int(pid), identity, int(number))


def identity(pid: int) -> str | None:
    """When the process was started, in the system's words; None when it is gone or waits to be reaped."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # the name before it may hold anything
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(  # noqa: S603 - a number is all that varies
        ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return "_".join(shown[1:]) if shown and not shown[0].startswith("Z") else None


def end(children: Iterable[Child], seconds: float = END_SECONDS) -> None:
    """Signal each child that still is the one we knew, wait, and kill what is left."""
    left = [child for child in children if _send(child, child.signal)]
    deadline = time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [child for child in left if identity(child.pid) == child.identity]
    for child in left:
        _send(child, signal.SIGKILL)


def _send(child: Child, number: int) -> bool:
    if identity(child.pid) != child.identity:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(child.pid, number)
    return True


def watch(lines: TextIO) -> None:
    """Follow the parent's lines until it is gone, then end what it left."""
    children: dict[int, Child] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "gone":
            children.pop(int(rest), None)
        elif line.endswith("\n"):  # half a line: the parent was killed while it wrote
            child = Child.parse(line)
            children[child.pid] = child
    end(children.values())


class Guard:
    """The parent's side: one guard process, told about each child."""

    def __init__(self, keep_open: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this very file
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=keep_open,
            start_new_session=True,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def add(self, child: Child) -> None:
        self._write(child.line())

    def follow(self, pid: int, number: int) -> None:
        """Add a process that was just started, to be ended by this signal; one that is gone already needs no guard."""
        if (mark := identity(pid)) is not None:
            self.add(Child(pid, mark, number))

    def gone(self, pid: int) -> None:
        self._write(f"gone {pid}\n")

    def close(self) -> None:
        """Let the guard end whatever is left, and wait for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        # A guard that was killed is reported by alive(): the children run on and are stopped in order.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watch(sys.stdin)
