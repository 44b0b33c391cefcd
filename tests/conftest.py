"""Services that tests share: each is started once for a run, when the first test asks for it.

They are stopped at the end, also after failures; a whole Baleen after the last test that needs it. When the test run
itself is killed, the stack's guard ends the embedded ones. Tests keep apart by names of their own (databases, topics,
prefixes).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from coordinator.stack import guard as guarding
from coordinator.stack.supervisor import Stack, StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.services.apache_kafka import ApacheKafka
from tests.services.databases import Databases, DatabaseServer
from tests.services.go_programs import DISTRIBUTION_3, RUNS_DISTRIBUTION_3, build_module
from tests.support.sink import NotificationSink
from tests.table.harness import Table

if TYPE_CHECKING:
    from tests.doctor.harness import Clinic
    from tests.registries.harness import Baleen
    from tests.scenarios.harness import Stage

T = TypeVar("T")

# A shell starts commands in the background with SIGINT ignored. Programs that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Which tests share a running Baleen, by what their files begin with. The scenarios have two: one would be done last.
SHARED = {
    "tests/scenarios/test_old_blobs": "another stage",
    "tests/scenarios/test_pushes": "another stage",
    "tests/scenarios/test_mounts": "another stage",
    "tests/scenarios/": "stage",
    "tests/perimeter/test_paused_registry": "stage",
    "tests/perimeter/test_shown_by_others": "stage",
    "tests/registries/": "baleen",
    "tests/perimeter/test_flood_of_pulls": "baleen",
    "tests/mounts/test_open": "open_baleen",
    "tests/mounts/test_relay": "open_baleen",
    "tests/doctor/": "clinic",
}
#: In memory, of which the services of a test process take a tenth.
ROOM_BYTES = 8 << 30

_numbers = itertools.count(1)

# An example that a busy machine has held up is no failure.
settings.register_profile("baleen", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baleen")


def pytest_configure() -> None:
    """Put distribution's version 3 in the place of `docker-registry`, if it is asked for."""
    if RUNS_DISTRIBUTION_3:
        os.environ["PATH"] = f"{build_module(DISTRIBUTION_3)}{os.pathsep}{os.environ['PATH']}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that failed in the file that the gate asks for, each ended by NUL."""
    wanted = os.environ.get("FAILED_TESTS_FILE")
    if wanted:
        reports = [*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())]
        names = dict.fromkeys(report.nodeid for report in reports)
        Path(wanted).write_text("".join(f"{name}\0" for name in names))


class ByServices(LoadFileScheduling):
    """Tests of one file stay on one worker process, and so do all that share a running Baleen: it is started once."""

    def _split_scope(self, nodeid: str) -> str:
        return shared_by(super()._split_scope(nodeid))


def shared_by(nodeid: str) -> str:
    """What the tests of a file share with other files, or else the file."""
    file = nodeid.partition("::")[0]
    return next((baleen for begin, baleen in SHARED.items() if file.startswith(begin)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByServices | None:
    return ByServices(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory for a stack, outside pytest's own.

    Run as root, PostgreSQL is another user there, and each new pytest run makes /tmp/pytest-of-root private
    again, which would lock the servers of a run beside it out of their data.
    """
    with temporary_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def embedded_stack() -> Iterator[StackEndpoints]:
    """PostgreSQL, S3 and the embedded broker."""
    with temporary_directory(in_memory()) as directory, Stack(directory) as stack:
        yield stack.endpoints
        stack.discard()


@pytest.fixture(scope="session")
def database_server(embedded_stack: StackEndpoints) -> DatabaseServer:
    assert embedded_stack.database_url is not None
    return DatabaseServer(embedded_stack.database_url)


@pytest.fixture(scope="module")
def databases(database_server: DatabaseServer) -> Iterator[Databases]:
    """Makes a database for each who asks."""
    with database_server.databases() as databases:
        yield databases


@pytest.fixture(scope="module")
def database(databases: Databases) -> str:
    """One for all tests of a module."""
    return databases.migrated()


@pytest.fixture
def table(database: str) -> Iterator[Table]:
    """The module's database, with names that no other test uses."""
    with Table(database) as table:
        yield table


@pytest.fixture
def fresh(databases: Databases) -> Iterator[Table]:
    """A database of one test: for what concerns the whole of it."""
    with Table(databases.migrated()) as table:
        yield table


@pytest.fixture
def s3(embedded_stack: StackEndpoints) -> S3ObjectStore:
    """An empty root on the real server."""
    assert embedded_stack.s3_bucket is not None
    return S3ObjectStore(
        embedded_stack.s3_bucket,
        f"test-{next(_numbers)}",
        endpoint_url=embedded_stack.s3_endpoint_url,
        access_key=embedded_stack.s3_access_key,
        secret_key=embedded_stack.s3_secret_key,
    )


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """An embedded broker for tests of topics, whose names are fixed."""
    with temporary_directory() as directory, Stack(directory, services=("kafka",)) as stack:
        assert stack.endpoints.kafka_bootstrap is not None
        yield stack.endpoints.kafka_bootstrap


@pytest.fixture
def sink() -> Iterator[NotificationSink]:
    with NotificationSink() as sink:
        yield sink


@pytest.fixture(scope="session")
def apache_kafka(apache_kafka_server: ApacheKafka) -> str:
    """The bootstrap address of an Apache Kafka that nobody restarts."""
    return apache_kafka_server.bootstrap


@pytest.fixture(scope="session")
def apache_kafka_server() -> Iterator[ApacheKafka]:
    with temporary_directory() as directory, guarded_kafka(directory) as server:
        yield server


# Whole Baleens. What they need is imported late: few runs ask for them.


class Shared:
    """What several files share, by the names of fixtures: started when the first test asks for it.

    Each runs registries' probes and a scheduler, and takes a part of a processor even while no test uses it.
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[Any, ExitStack]] = {}

    def get(self, name: str, start: Callable[[Path], AbstractContextManager[T]]) -> T:
        if name not in self._open:
            with ExitStack() as closing:
                started = closing.enter_context(start(closing.enter_context(temporary_directory())))
                self._open[name] = started, closing.pop_all()
        found: T = self._open[name][0]
        return found

    def keep(self, names: Collection[str]) -> None:
        """End all others."""
        for name in self._open.keys() - names:
            self._open.pop(name)[1].close()


_shared = Shared()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Function, nextitem: pytest.Function | None) -> Iterator[None]:
    """End what is shared after the last of its files on this process."""
    yield
    if nextitem is None or shared_by(nextitem.nodeid) != shared_by(item.nodeid):
        _shared.keep(() if nextitem is None else nextitem.fixturenames)


def pytest_sessionfinish() -> None:
    _shared.keep(())


@pytest.fixture(scope="module")
def running_baleen() -> Baleen:
    from tests.registries.harness import Baleen

    return _shared.get("running_baleen", Baleen.started)


@pytest.fixture
def baleen(running_baleen: Baleen) -> Iterator[Baleen]:
    """One `baleen up` for many tests: each registers pods of its own, and leaves table and bucket in agreement.

    No registry outlives its test: they would all be probed until the end.
    """
    with running_baleen.at_rest_after():
        yield running_baleen


@pytest.fixture(scope="module")
def running_open_baleen() -> Baleen:
    from tests.registries.harness import Baleen

    # Tests wait for mounts, however busy the machine is, and for no watermark.
    settings = {"BALEEN_MOUNTS": "open", "BALEEN_MOUNT_TIMEOUT": "2m", "BALEEN_PROBE_EVERY": "10s"}
    return _shared.get("running_open_baleen", lambda directory: Baleen.started(directory, settings))


@pytest.fixture
def open_baleen(running_open_baleen: Baleen) -> Iterator[Baleen]:
    """One `baleen up` for pods whose registries ask nobody who they are."""
    with running_open_baleen.at_rest_after():
        yield running_open_baleen


@pytest.fixture(scope="module")
def clinic() -> Clinic:
    """One for all examinations of the doctor."""
    from tests.doctor.harness import Clinic

    return _shared.get("clinic", Clinic.opened)


@pytest.fixture(scope="module")
def stage() -> Stage:
    """One for all: each test has repositories of its own, and leaves two pods that have reported."""
    from tests.scenarios.harness import Stage

    return _shared.get("stage", Stage.opened)


@pytest.fixture
def here(request: pytest.FixtureRequest) -> str:
    """A repository, and the seed of images, that no other test has."""
    name: str = request.node.name
    return name.removeprefix("test_").lower().translate(str.maketrans({"_": "-", "[": "-", "]": ""}))


@contextmanager
def temporary_directory(parent: Path | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="baleen-tests-", dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name)


def in_memory() -> Path | None:
    """A file system in memory that has room for the services of several test processes; None if there is none."""
    found = Path("/dev/shm")
    return found if found.is_dir() and shutil.disk_usage(found).free > ROOM_BYTES else None


@contextmanager
def guarded_kafka(directory: Path) -> Iterator[ApacheKafka]:
    """An Apache Kafka that ends with this process, whatever ends it."""
    guard = guarding.Guard()
    try:
        with ApacheKafka(directory, guard=guard) as server:
            yield server
    finally:
        guard.close()
