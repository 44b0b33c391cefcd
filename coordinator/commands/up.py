"""`baleen up`: everything on one machine until Ctrl-C.

Route: find the services that no setting names -> Stack starts them -> migrations, topics and versioning in parallel ->
a claim of the bucket, if requested -> the operator's token -> worker, scheduler and API as children -> wait.
End: Ctrl-C and SIGTERM stop everything and exit 0. If a service dies, everything ends with exit 1 and the tail of its
log. API, worker and scheduler keep no state, so they are restarted a few times.
Not here: starting and guarding children (coordinator/stack).
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from msgspec.structs import replace

from coordinator import settings
from coordinator.commands.output import stderr_console
from coordinator.errors import SettingsError, StackError
from coordinator.settings import Secret, Settings
from coordinator.stack import application
from coordinator.stack.files import write_secret
from coordinator.stack.ports import describe_obstacle
from coordinator.stack.process import ManagedProcess
from coordinator.stack.supervisor import Service, Stack, StackEndpoints

OPERATOR = "operator"
#: Settings that other commands need to find the same services.
ADDRESSES = ("database_", "kafka_", "s3_", "url")
#: After this time a child counts as healthy, and its failures are counted from zero.
STABLE_SECONDS = 60.0
RESTARTS = 5
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0


class _Ended(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception, so that no handler takes it for a failure."""


def run(data_dir: Path | None, *, host: str, port: int, claim: Callable[[Settings], None] | None = None) -> None:
    """Run until Ctrl-C or SIGTERM; raises StackError when a child cannot be kept running.

    `claim` is called once the services run, before any process of Baleen; an error that it raises ends everything.
    """
    directory = (data_dir or Path(settings.load().data_dir)).absolute()
    own = application.load_own_settings(directory)
    # A shell's background job may have inherited that signals are ignored.
    previous = {number: signal.signal(number, _raise_ended) for number in (signal.SIGINT, signal.SIGTERM)}
    console = stderr_console()
    began = time.monotonic()
    try:
        stack = Stack(directory, services=_find_unset_services(own))
        with _claim_directory(stack):
            # After the claim of the directory: a second `baleen up` reports that, and not the taken port.
            if (why := describe_obstacle(host, port)) is not None:
                raise StackError(why)
            console.print(f"Starting Baleen in {directory} …", soft_wrap=True)
            threading.Thread(target=_import_drivers, daemon=True).start()
            stack.start()
            up = _Processes(stack, directory, _merge_settings(own, stack.endpoints, host, port, directory), host, port)
            up.start(claim)
            console.print(up.describe_addresses(time.monotonic() - began), soft_wrap=True)
            up.watch()
    except _Ended:
        console.print("Stopped.")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _claim_directory(stack: Stack) -> Iterator[None]:
    stack.claim()
    try:
        yield
    finally:
        stack.stop()


def _import_drivers() -> None:
    """Import the drivers while the services start: it takes longer than they do."""
    for module in ("compose.database", "db.migrate", "tokens.table", "kafka.topics", "storage.s3"):
        importlib.import_module(f"coordinator.{module}")


def _raise_ended(_: int, __: FrameType | None) -> None:
    # A second Ctrl-C must not interrupt the shutdown: only the children's guard would end them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Written unbuffered: the handler may have interrupted a write to the same stream.
    os.write(sys.stderr.fileno(), "Stopping …\n".encode())
    raise _Ended


def _find_unset_services(own: Settings) -> list[Service]:
    """Return the services that no setting names."""
    if own.s3_endpoint_url is not None and own.s3_bucket is None:
        raise SettingsError("BALEEN_S3_BUCKET is not set, but BALEEN_S3_ENDPOINT_URL is: name the bucket there.")
    named: dict[Service, bool] = {
        "postgres": own.database_url is not None,
        "s3": own.s3_bucket is not None,
        "kafka": own.kafka_bootstrap is not None,
    }
    return [service for service, is_named in named.items() if not is_named]


def _merge_settings(own: Settings, found: StackEndpoints, host: str, port: int, directory: Path) -> Settings:
    """Return the settings for all processes of this run."""
    merged = replace(own, data_dir=str(directory), url=own.url or application.local_url(host, port), token=None)
    if found.database_url is not None:
        merged = replace(merged, database_url=Secret(found.database_url))
    if found.kafka_bootstrap is not None:
        merged = replace(merged, kafka_bootstrap=found.kafka_bootstrap)
    if found.s3_bucket is not None:
        merged = replace(
            merged,
            s3_endpoint_url=found.s3_endpoint_url,
            s3_bucket=found.s3_bucket,
            s3_root=found.s3_root or "",
            s3_access_key=found.s3_access_key,
            s3_secret_key=None if found.s3_secret_key is None else Secret(found.s3_secret_key),
        )
    return merged


class _Processes:
    """Runs Baleen's own processes on top of the services."""

    def __init__(self, stack: Stack, directory: Path, merged: Settings, host: str, port: int) -> None:
        self._stack = stack
        self._directory = directory
        self._settings = merged
        self._host = host
        self._port = port
        self._started: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._makers: dict[str, Callable[[], ManagedProcess]] = {
            application.WORKER: self._make_worker,
            application.SCHEDULER: self._make_scheduler,
            application.API: self._make_api,
        }

    def start(self, claim: Callable[[Settings], None] | None = None) -> None:
        from coordinator.compose import database as compose_database  # noqa: PLC0415 - see _load
        from coordinator.compose import store as compose_store  # noqa: PLC0415 - see _load
        from coordinator.db import migrate  # noqa: PLC0415
        from coordinator.db.engine import connect  # noqa: PLC0415
        from coordinator.db.session import translate_errors  # noqa: PLC0415
        from coordinator.kafka.topics import EVENTS, ensure_topics  # noqa: PLC0415
        from coordinator.table import progress  # noqa: PLC0415

        store = compose_store.make_object_store(self._settings)
        url = compose_database.database_url(self._settings)
        with translate_errors(), ThreadPoolExecutor(3) as pool:
            steps: list[Future[object]] = [
                pool.submit(migrate.upgrade, url),
                pool.submit(ensure_topics, self._settings),
                pool.submit(store.enable_versioning),
            ]
            for step in steps:
                step.result()
        if self._stack.endpoints.kafka_log_cut:
            # The embedded broker was killed: events that it had acknowledged may be lost.
            with connect(url, name="baleen-up") as connection:
                pods = progress.record_log_cut(connection, EVENTS)
            if pods:
                stderr_console().print(
                    "The embedded broker was killed in the last run, and events that it had acknowledged may be lost: "
                    "every pod is reconciled automatically, and GC is blocked until then.",
                    soft_wrap=True,
                )
        if claim is not None:
            claim(self._settings)
        self._make_token()
        self._write_addresses()
        for name in self._makers:
            self._start_process(name)
        # Worker and scheduler may have died while the API started.
        while (dead := self._stack.wait(0)) is not None:
            self._restart(dead)

    def watch(self) -> None:
        """Wait, and restart processes that may be restarted, until one dies for good."""
        while (dead := self._stack.wait()) is not None:
            self._restart(dead)

    def describe_addresses(self, seconds: float) -> str:
        keys = "" if self._settings.s3_secret_key is None else f"   (its keys are in {self._directory / 'stack.json'})"
        return (
            f"Baleen is ready after {seconds:.1f} s.\n"
            f"  API       {self._settings.url}   (OpenAPI at /schema)\n"
            f"  token     {self._directory / 'token'}   (role operate; commands run here find it)\n"
            f"  S3        {self._settings.s3_endpoint_url or 'AWS'}, bucket {self._settings.s3_bucket}, "
            f"root {self._settings.s3_root or '/'}{keys}\n"
            f"  Kafka     {self._settings.kafka_bootstrap}\n"
            f"  logs      {self._directory / 'logs'}\n"
            "Register a pod in another terminal, in this directory (--no-check if its registry does not run yet):\n"
            "  baleen pods add pod-a --prefix pod-a --registry http://127.0.0.1:5001\n"
            "Press Ctrl-C to stop. The next `baleen up` continues with the same state."
        )

    def _start_process(self, name: str) -> None:
        self._started[name] = time.monotonic()
        self._stack.add(self._makers[name]())

    def _restart(self, dead: ManagedProcess) -> None:
        """Restart a process, or raise StackError if it may not be restarted again."""
        name = dead.name
        died = f"{name} died (status {dead.exit_status})"
        tail = f"its log {dead.log_file} ends with:\n{dead.log_tail()}"
        if name not in self._makers:
            raise StackError(f"{died}; {tail}")
        well = time.monotonic() - self._started[name] > STABLE_SECONDS
        self._failures[name] = 1 if well else self._failures.get(name, 0) + 1
        self._stack.remove(dead)
        if self._failures[name] > RESTARTS:
            raise StackError(f"{died} again after {RESTARTS} restarts; {tail}")
        pause = min(FIRST_PAUSE * 2 ** (self._failures[name] - 1), LONGEST_PAUSE)
        again = f"It is restarted in {pause:.1f} s."
        notice = f"{died}; {tail}\n{again}" if self._failures[name] == 1 else f"{died} again. {again}"
        stderr_console().print(notice, soft_wrap=True)
        time.sleep(pause)
        self._start_process(name)

    def _make_api(self) -> ManagedProcess:
        return application.make_api(self._settings, self._directory, host=self._host, port=self._port)

    def _make_worker(self) -> ManagedProcess:
        group = self._settings.worker_group
        if self._stack.endpoints.kafka_bootstrap is not None:
            # The embedded broker never forgets a member that was killed.
            group = f"{group}-{uuid.uuid4().hex}"
        return application.make_worker(replace(self._settings, worker_group=group), self._directory)

    def _make_scheduler(self) -> ManagedProcess:
        return application.make_scheduler(self._settings, self._directory)

    def _make_token(self) -> None:
        """Keep the operator's token if it is valid, else create another."""
        from coordinator.compose import database as compose_database  # noqa: PLC0415 - see _load
        from coordinator.tokens import table as tokens  # noqa: PLC0415

        file = self._directory / "token"
        with compose_database.open_database(self._settings, name="baleen-up") as database:
            known = tokens.read_known_tokens(database).get(tokens.hash_token(_read_token(file)))
            if known is None or known.role != "operate":
                token = tokens.replace_token(database, OPERATOR, "operate")
                write_secret(file, token.reveal() + "\n")

    def _write_addresses(self) -> None:
        """Write where everything is, for other commands; Stack removes the file when it ends."""
        values = application.plain_values(self._settings, ADDRESSES)
        write_secret(self._directory / "stack.json", json.dumps(values, indent=1))


def _read_token(file: Path) -> str:
    """Return the token of an earlier run; a damaged file gives an invalid one."""
    return file.read_bytes().decode(errors="replace").strip() if file.exists() else ""
