"""End the children of a parent that was killed with SIGKILL.

A killed parent cannot stop anything, so a small process in its own session watches a pipe from the parent: each line
adds a child (`pid identity signal`) or removes one (`gone pid`). When the pipe ends, for any reason, every remaining
child is sent its signal, gets END_SECONDS, then SIGKILL. After an orderly stop no child is left and the guard ends.

Another process may get the same process id, so each has an identity: the start time of its process.
The guard also keeps its inherited descriptors open (the lock of the data directory): a next `up` waits
until the children of a killed one are gone.

This file runs by its path and imports only the standard library: it must start fast and without the package.
A child that the parent starts by a plain fork would keep the pipe open; ManagedProcess does not.
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
    """A process and the signal for its end."""

    pid: int
    identity: str
    signal: int

    def line(self) -> str:
        return f"{self.pid} {self.identity} {self.signal}\n"

    @classmethod
    def parse(cls, line: str) -> Child:
        pid, identity, number = line.split()
        return cls(int(pid), identity, int(number))


def read_identity(pid: int) -> str | None:
    """Return the start time of a process, as the system writes it; None if it has ended, reaped or not."""
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


def end_children(children: Iterable[Child], seconds: float = END_SECONDS) -> None:
    """Signal each child whose identity is unchanged, wait, and kill what is left."""
    left = [child for child in children if _send_signal(child, child.signal)]
    deadline = time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [child for child in left if read_identity(child.pid) == child.identity]
    for child in left:
        _send_signal(child, signal.SIGKILL)


def _send_signal(child: Child, number: int) -> bool:
    if read_identity(child.pid) != child.identity:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(child.pid, number)
    return True


def watch_parent(lines: TextIO) -> None:
    """Read the parent's lines until it is gone, then end the children that it left."""
    children: dict[int, Child] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "gone":
            children.pop(int(rest), None)
        elif line.endswith("\n"):  # half a line: the parent was killed while it wrote
            child = Child.parse(line)
            children[child.pid] = child
    end_children(children.values())


class Guard:
    """The parent's side: starts one guard process and informs it of each child."""

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

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def add(self, child: Child) -> None:
        self._send_line(child.line())

    def add_pid(self, pid: int, number: int) -> None:
        """Add a process that was just started, to be ended by this signal; an ended one needs no guard."""
        if (mark := read_identity(pid)) is not None:
            self.add(Child(pid, mark, number))

    def remove(self, pid: int) -> None:
        self._send_line(f"gone {pid}\n")

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

    def _send_line(self, line: str) -> None:
        assert self._process.stdin is not None
        # A guard that was killed is reported by alive(): the children run on and are stopped in order.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watch_parent(sys.stdin)
