"""Start, watch and stop the embedded services of one data directory.

Route: lock DIR -> end what a killed run left -> guard -> the services in parallel -> stack.json -> add(...)
for further children -> wait() until one died -> stop() in reverse order.

One run per directory: parent and guard hold the lock, so after a SIGKILL of the parent the next run waits until the
children of the killed one are gone. `children` in DIR lists them in case the guard was killed as well.
Not here: signals (the command turns SIGTERM and Ctrl-C into stop()), which services are replaced (settings),
topics, migrations, and versioning of the bucket (compose/).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Self

from coordinator.errors import StackError
from coordinator.stack import guard as guarding
from coordinator.stack.files import write_secret
from coordinator.stack.noida import EmbeddedKafka
from coordinator.stack.ports import Ports
from coordinator.stack.postgres import EmbeddedPostgres
from coordinator.stack.process import ManagedProcess
from coordinator.stack.seaweedfs import BUCKET, ROOT, EmbeddedS3

Service = Literal["postgres", "s3", "kafka"]
ALL_SERVICES: tuple[Service, ...] = ("postgres", "s3", "kafka")

DEFAULT_DIRECTORY = Path(".baleen")
LOOPBACK = "127.0.0.1"
MIN_FREE_BYTES = 500 * 1000 * 1000  # an empty stack takes about 100 MB, and a log needs room to grow
WATCH_SECONDS = 0.2
LOCK_SECONDS = guarding.END_SECONDS + 10  # what a guard takes to end the children of a killed run


@dataclass(frozen=True)
class StackEndpoints:
    """Addresses of the embedded services; None for one that is not embedded."""

    database_url: str | None = field(default=None, repr=False)
    s3_endpoint_url: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: str | None = field(default=None, repr=False)
    s3_bucket: str | None = None
    s3_root: str | None = None
    kafka_bootstrap: str | None = None
    # The broker was killed in an earlier run: offsets may have jumped back (see noida.py).
    kafka_log_cut: bool = False


class Stack:
    """The embedded services of one data directory, as a context manager."""

    def __init__(
        self,
        data_dir: Path = DEFAULT_DIRECTORY,
        host: str = LOOPBACK,
        services: Collection[Service] = ALL_SERVICES,
        *,
        ports: Mapping[Service, int] | None = None,
        postgres: Mapping[str, str] | None = None,
    ) -> None:
        """`postgres` has settings of PostgreSQL, in place of its own (postgres.py)."""
        self._directory = data_dir.absolute()
        self._host = host
        self._services = services
        self._asked = dict(ports or {})
        self._postgres = postgres
        self._lock: int | None = None
        self._guard: guarding.Guard | None = None
        self._children: list[ManagedProcess] = []
        self._changing = threading.Lock()  # children and their file change from the starting threads too
        self._stopping = threading.Event()
        self.endpoints = StackEndpoints()

    def claim(self) -> None:
        """Lock the directory until stop(), as start() does first; raises StackError if another run has it."""
        if self._lock is None:
            self._open_directory()

    def start(self) -> StackEndpoints:
        """Start all services; if one fails, none is left running."""
        try:
            self.claim()
            check_disk(self._directory)
            self._end_leftovers()
            assert self._lock is not None
            self._guard = guarding.Guard(keep_open=[self._lock])
            self._start_services()
            self._write_addresses()
        except BaseException:
            self.stop()
            raise
        return self.endpoints

    def add(self, process: ManagedProcess) -> ManagedProcess:
        """Start one more child and wait until it is ready; it is watched, guarded and stopped with the others."""
        self._spawn(process)
        try:
            process.wait_ready()
        except BaseException:
            self.remove(process)
            raise
        return process

    def remove(self, process: ManagedProcess) -> None:
        """Stop one child only."""
        process.stop()
        with self._changing:
            self._children.remove(process)
            self._write_children()
        if self._guard is not None:
            self._guard.remove(process.pid)

    def wait(self, timeout: float | None = None) -> ManagedProcess | None:
        """Wait until a child dies, and return it; None after `timeout` or if stop() is called elsewhere."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._stopping.wait(WATCH_SECONDS):
            if self._guard is not None and not self._guard.is_alive():
                raise StackError("The guard process of the embedded stack was killed: stop and start again.")
            with self._changing:
                dead = next((child for child in self._children if not child.is_alive()), None)
            if dead is not None:
                return dead
            if deadline is not None and time.monotonic() > deadline:
                return None
        return None

    def discard(self) -> None:
        """Kill every child at once, if the directory is about to be deleted; call stop() afterwards."""
        self._stopping.set()
        for child in reversed(self._children):
            child.discard()

    def stop(self) -> None:
        """End every child, the last started first; may be called twice."""
        self._stopping.set()
        while self._children:
            self.remove(self._children[-1])
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._lock is not None:
            (self._directory / "stack.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_services(self) -> None:
        ports = Ports(self._directory / "ports.json", self._host)
        starts = list(self._prepare_services(ports))
        ports.save()
        found: dict[str, str | bool] = {}
        with ThreadPoolExecutor(max_workers=len(ALL_SERVICES)) as pool:
            running = [pool.submit(start) for start in starts]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
                for each in done:
                    found |= each.result()
            except BaseException:
                self._stopping.set()
                with self._changing:
                    started = list(self._children)
                for child in started:  # so that the other threads stop waiting for them
                    child.stop()
                raise
        self.endpoints = StackEndpoints(**found)  # type: ignore[arg-type]

    def _prepare_services(self, ports: Ports) -> Iterator[Callable[[], Mapping[str, str | bool]]]:
        """Choose the ports of each service now; yield what starts it and returns its addresses."""
        directory, host, logs = self._directory, self._host, self._directory / "logs"
        if "postgres" in self._services:
            port = ports.take("postgres", asked=self._asked.get("postgres"))
            log = logs / "postgres.log"
            server = EmbeddedPostgres(directory / "postgres", log, host=host, port=port, settings=self._postgres)
            yield partial(self._start_postgres, server)
        if "s3" in self._services:
            asked = self._asked.get("s3")
            store = EmbeddedS3(directory / "s3", logs / "s3.log", host=host, ports=ports, port=asked)
            yield partial(self._start_s3, store)
        if "kafka" in self._services:
            port = ports.take("kafka", asked=self._asked.get("kafka"))
            broker = EmbeddedKafka(directory / "kafka", logs / "kafka.log", host=host, port=port)
            yield partial(self._start_kafka, broker)

    def _start_postgres(self, server: EmbeddedPostgres) -> Mapping[str, str | bool]:
        server.prepare()
        self._start_service(server.process())
        return {"database_url": server.url}

    def _start_s3(self, server: EmbeddedS3) -> Mapping[str, str | bool]:
        server.prepare()
        self._start_service(server.process())
        place = {"s3_endpoint_url": server.url, "s3_bucket": BUCKET, "s3_root": ROOT}
        return place | {"s3_access_key": server.key.access, "s3_secret_key": server.key.secret}

    def _start_kafka(self, broker: EmbeddedKafka) -> Mapping[str, str | bool]:
        cut = broker.prepare()
        self._start_service(broker.process())
        return {"kafka_bootstrap": broker.bootstrap, "kafka_log_cut": cut}

    def _start_service(self, process: ManagedProcess) -> None:
        if self._stopping.is_set():
            raise StackError(f"{process.name} was not started: another service failed.")
        self._spawn(process)
        process.wait_ready()

    def _spawn(self, process: ManagedProcess) -> None:
        assert self._guard is not None, "start() comes first"
        with self._changing:
            process.spawn()
            self._children.append(process)
            self._guard.add_pid(process.pid, process.stop_signal)
            self._write_children()

    def _write_children(self) -> None:
        known = ((child, guarding.read_identity(child.pid)) for child in self._children)
        lines = [guarding.Child(c.pid, i, c.stop_signal).line() for c, i in known if i is not None]
        (self._directory / "children").write_text("".join(lines))

    def _end_leftovers(self) -> None:
        """End children of a run whose parent and guard were both killed."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            lines = (self._directory / "children").read_text().splitlines()
            guarding.end_children([guarding.Child.parse(line) for line in lines])

    def _write_addresses(self) -> None:
        """Write the services' addresses for the commands; the file holds secrets."""
        write_secret(self._directory / "stack.json", json.dumps(dataclasses.asdict(self.endpoints), indent=1))

    def _open_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except (FileExistsError, NotADirectoryError) as error:
            raise StackError(
                f"The data directory {self._directory} cannot be created, since there is a file of that name: choose "
                "another with --data-dir."
            ) from error
        except OSError as error:
            raise StackError(
                f"The data directory {self._directory} cannot be written ({error.strerror}): "
                "choose another with --data-dir."
            ) from error
        try:
            self._take_lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def _take_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                ended = holder.isdigit() and guarding.read_identity(int(holder)) is None
                if not ended or time.monotonic() > deadline:
                    raise StackError(
                        f"The data directory {self._directory} is in use by process {holder or '(unknown)'}: "
                        "stop that one first, or choose another with --data-dir."
                    ) from None
                time.sleep(WATCH_SECONDS)  # its guard is about to end its children
            else:
                return


def check_disk(directory: Path, needed: int = MIN_FREE_BYTES) -> None:
    """Refuse to start if the services would soon fail for lack of disk space."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise StackError(
            f"Only {free // 1_000_000} MB are free for {directory}, and {needed // 1_000_000} MB are needed: "
            "free some space, or choose another place with --data-dir."
        )
