"""Run one child process: start it, wait until it serves, stop it by its process id.

Every child gets its own session, so Ctrl-C in the terminal reaches only the parent, which then stops its children in
order. A child's output goes to a log file; if it fails to start, the end of that log is part of the error.
Not here: what happens when the parent is killed (guard.py), which children there are (supervisor.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.errors import StackError

POLL_SECONDS = 0.02
KILL_SECONDS = 30.0  # after SIGKILL only an uninterruptible system call keeps a process
LOG_LIMIT_BYTES = 10 * 1024 * 1024  # one older log is kept beside it
TAIL_BYTES = 8192
TAIL_LINES = 5
LINE_LENGTH = 200

Probe = Callable[[], bool]


@dataclass(kw_only=True)
class ManagedProcess:
    """A child process that is started once and stopped once."""

    name: str
    argv: Sequence[str | Path]
    log_file: Path
    env: Mapping[str, str] | None = field(default=None, repr=False)  # may carry secrets; None: the parent's
    cwd: Path | None = None
    uid_gid: tuple[int, int] | None = None  # a system user to run as; only root may give one
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout: float = 10.0
    discard_signal: signal.Signals = signal.SIGKILL
    probe: Probe | None = None
    ready_timeout: float = 30.0
    advice: str = ""  # what the user can do when it does not start, as the end of a sentence
    _popen: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    def spawn(self) -> int:
        """Start the program and return its process id, without waiting until it serves."""
        if self._popen is not None:
            raise StackError(f"{self.name} was started already: make a new process instead.")
        self._rotate_log()
        user: dict[str, object] = {}
        if self.uid_gid is not None:
            user = {"user": self.uid_gid[0], "group": self.uid_gid[1], "extra_groups": []}
        try:
            with self.log_file.open("ab") as log:
                self._log_start = log.tell()
                self._popen = subprocess.Popen(  # type: ignore[call-overload] # noqa: S603 - our own argv
                    [str(argument) for argument in self.argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=None if self.env is None else dict(self.env),
                    cwd=self.cwd,
                    start_new_session=True,
                    **user,
                )
        except OSError as error:
            raise StackError(f"{self.name} cannot be started ({error}){self._format_advice()}.") from error
        return self.pid

    def wait_ready(self) -> None:
        """Wait until the probe succeeds; raises StackError if the child ends or the time is over."""
        deadline = time.monotonic() + self.ready_timeout
        while not self._is_serving():
            if not self.is_alive():
                raise StackError(self._describe_failure(f"ended with status {self.exit_status} before it was ready"))
            if time.monotonic() > deadline:
                raise StackError(self._describe_failure(f"is not ready after {self.ready_timeout:.0f} s"))
            time.sleep(POLL_SECONDS)

    def start(self) -> ManagedProcess:
        """Spawn and wait until ready; a child that does not become ready is stopped."""
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ask it to end, wait, then kill it; harmless if it has ended already."""
        self._end(self.stop_signal, self.stop_timeout)

    def discard(self) -> None:
        """End it at once, without the writes of an orderly end."""
        self._end(self.discard_signal, KILL_SECONDS)

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self._popen is None or self._popen.poll() is not None:
            return
        self._popen.send_signal(number)
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the child and to everything that it started in its session."""
        if self._popen is None or self._popen.poll() is not None:
            return
        # The child leads its session and is not reaped yet, so its id names its group and nothing else.
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(KILL_SECONDS)

    def is_alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        if self._popen is None:
            raise StackError(f"{self.name} was not started yet.")
        return self._popen.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status; negative: the signal that ended it; None: alive or never started."""
        return None if self._popen is None else self._popen.poll()

    def log_tail(self) -> str:
        """The last lines of this run's output, shortened for people."""
        try:
            with self.log_file.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(f"  {_shorten_line(line)}" for line in text.strip().splitlines()[-TAIL_LINES:])

    def _is_serving(self) -> bool:
        if self.probe is None:
            return True
        try:
            return self.is_alive() and self.probe()
        except OSError:
            return False

    def _describe_failure(self, what: str) -> str:
        tail = self.log_tail()
        if "No space left on device" in tail:
            return f"{self.name} {what}: the disk is full. Free some space for {self.log_file.parent}."
        return f"{self.name} {what}{self._format_advice()}; its log {self.log_file} ends with:\n{tail}"

    def _format_advice(self) -> str:
        return f": {self.advice}" if self.advice else ""

    def _rotate_log(self) -> None:
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_LIMIT_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))


def _shorten_line(line: str) -> str:
    """Return a log line for people; of a JSON record only the event and its reason."""
    message = line
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            known = (record.get(name) for name in ("level", "event", "reason", "error"))
            # Of a traceback only the last line, which is the error.
            trace = str(record.get("exception", "")).strip().rpartition("\n")[2]
            message = ": ".join(str(each) for each in (*known, trace) if each) or line
    return message if len(message) <= LINE_LENGTH else f"{message[:LINE_LENGTH]}…"
