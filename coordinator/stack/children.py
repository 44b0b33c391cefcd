"""Child processes besides a stack: ended in reverse order, and by a guard if their parent is killed.

Not here: a data directory and its services (supervisor.py).
"""

from typing import Self

from coordinator.stack.guard import Guard
from coordinator.stack.process import ManagedProcess


class Children:
    def __init__(self) -> None:
        self._guard = Guard()
        self._running: list[ManagedProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            process.stop()
        self._guard.close()

    def start(self, process: ManagedProcess) -> ManagedProcess:
        """Start a process, and wait until it is ready."""
        process.spawn()
        self._running.append(process)
        self._guard.add_pid(process.pid, process.stop_signal)
        process.wait_ready()
        return process

    def kill(self, process: ManagedProcess) -> None:
        """Kill a process by SIGKILL, with everything that it started."""
        process.kill()
        self._running.remove(process)
        self._guard.remove(process.pid)

    def end(self, process: ManagedProcess) -> None:
        """Kill a process that may have ended already."""
        if process in self._running:
            self.kill(process)
