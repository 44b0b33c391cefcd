"""Services of one test, which it may stop, kill and start again. They end with the test run, whatever ends that."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Self

from coordinator.stack.guard import Child, Guard, read_identity
from coordinator.stack.noida import EmbeddedKafka
from coordinator.stack.ports import Ports
from coordinator.stack.postgres import EmbeddedPostgres
from coordinator.stack.process import ManagedProcess


class GuardedProcess:
    """A service that can be stopped, killed and started again, and ends with the test run."""

    def __init__(self, guard: Guard, make: Callable[[], ManagedProcess]) -> None:
        self._guard = guard
        self._make = make
        self._process: ManagedProcess | None = None

    def start(self) -> None:
        self._process = self._make()
        pid = self._process.spawn()
        started = read_identity(pid)
        if started is not None:
            self._guard.add(Child(pid, started, signal.SIGKILL))
        self._process.wait_ready()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._guard.remove(self._process.pid)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._guard.remove(self._process.pid)
            self._process = None


class Broker(GuardedProcess):
    def __init__(self, guard: Guard, directory: Path) -> None:
        port = Ports(directory / "ports.json", "127.0.0.1").take("kafka")
        self.directory = directory / "kafka"
        server = EmbeddedKafka(self.directory, directory / "kafka.log", host="127.0.0.1", port=port)
        self.bootstrap = server.bootstrap
        super().__init__(guard, server.process)
        self._server = server

    def start(self) -> None:
        self._server.prepare()
        super().start()


class Database(GuardedProcess):
    def __init__(self, guard: Guard, directory: Path) -> None:
        port = Ports(directory / "ports.json", "127.0.0.1").take("postgres")
        server = EmbeddedPostgres(directory / "pg", directory / "pg.log", host="127.0.0.1", port=port)

        def make() -> ManagedProcess:
            server.prepare()
            return server.process()

        super().__init__(guard, make)
        self._server = server

    @property
    def url(self) -> str:
        return self._server.url
