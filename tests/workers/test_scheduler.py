"""`python -m workers.scheduler`: one works, another takes over when that one is gone, and each ends on a signal."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import StackEndpoints
from tests.services.databases import Databases
from tests.support.registries import running_model
from tests.support.sink import NotificationSink
from tests.support.wait import eventually
from tests.workers.conftest import place_of
from tests.workers.harness import PODS, Child, Place, Table

#: All work that one scheduler is enough for.
ALONE = {"probes", "old-probes", "old-mounts", "triggers", "presence", "lifecycle", "clock"}
UNKNOWN_BROKER = "127.0.0.1:9"


class Scheduler(Child):
    module = "workers.scheduler"

    def __init__(self, place: Place, log_file: Path) -> None:
        self._port = Ports(log_file.with_suffix(".ports"), "127.0.0.1").take("metrics")
        super().__init__(place.but(scheduler_metrics_port=str(self._port)), log_file)

    def leases(self) -> set[str]:
        written, _, _ = self.log().rpartition("\n")  # of the last line there may be half
        lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
        return {line["lease"] for line in lines if line["event"] == "lease taken"}

    def work(self, outcome: str) -> set[str]:
        """The work that had such an outcome."""
        try:
            metrics = httpx.get(f"http://127.0.0.1:{self._port}/metrics", trust_env=False, timeout=5).text
        except httpx.HTTPError:
            return set()
        wanted = "baleen_scheduler_work_total{"
        return {
            line.partition('work="')[2].partition('"')[0]
            for line in metrics.splitlines()
            if line.startswith(wanted) and f'outcome="{outcome}"' in line
        }


@pytest.fixture
def scheduled(embedded_stack: StackEndpoints, databases: Databases) -> Place:
    """A database, and a scheduler's settings; it needs no broker."""
    place = place_of(embedded_stack, databases.migrated(), UNKNOWN_BROKER).but(probe_every="100ms", log_format="json")
    Table(place.values["database_url"]).add_pods()
    return place


@pytest.fixture
def table(scheduled: Place) -> Table:
    return Table(scheduled.values["database_url"])


@contextmanager
def model() -> Iterator[tuple[NotificationSink, str]]:
    with NotificationSink() as sink, running_model(sink) as registry:
        yield sink, registry.url


def probes(table: Table) -> int:
    return int(table.rows("SELECT count(*) FROM probes")[0][0])


@pytest.mark.outage
def test_another_takes_over(scheduled: Place, table: Table, tmp_path: Path) -> None:
    """Of two schedulers one probes; when it is killed the other one does. SIGTERM ends it with 0."""
    with model() as (_, url), Scheduler(scheduled, tmp_path / "one.log") as one:
        table.do("UPDATE pods SET registries = %s WHERE name = %s", [url], PODS[0])
        eventually(lambda: one.leases() >= ALONE, why="the first takes all leases")
        with Scheduler(scheduled, tmp_path / "two.log") as two:
            eventually(lambda: two.work("left") >= ALONE, why="the second leaves it to the first")
            sent = probes(table)
            eventually(lambda: probes(table) > sent + 2, why="probes go on")
            assert two.leases() == set()
            assert not two.work("done") & ALONE
            one.kill()
            eventually(lambda: two.leases() >= ALONE, why="the second takes over")
            sent = probes(table)
            eventually(lambda: probes(table) > sent + 2, why="probes go on")
            two.send(signal.SIGTERM)
            assert two.wait() == 0


@pytest.mark.lengthy
def test_it_ends_while_something_hangs(scheduled: Place, table: Table, tmp_path: Path) -> None:
    """A registry that hangs does not keep a scheduler from ending."""
    with socket.create_server(("127.0.0.1", 0)) as hanging, Scheduler(scheduled, tmp_path / "log") as scheduler:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        table.do("UPDATE pods SET registries = %s WHERE name = %s", [url], PODS[0])
        eventually(lambda: probes(table) > 0, why="a probe is under way")
        scheduler.send(signal.SIGTERM)
        assert scheduler.wait() == 0


@pytest.mark.lengthy
def test_it_needs_a_database(tmp_path: Path) -> None:
    """Without a database, or with half a login, it ends and names the missing setting."""
    with Scheduler(Place({}), tmp_path / "none.log") as scheduler:
        assert scheduler.wait() != 0
        assert "BALEEN_DATABASE_URL" in scheduler.log()
    half = Place({"database_url": "postgresql://127.0.0.1:9/x", "registry_username": "prober"})
    with Scheduler(half, tmp_path / "half.log") as scheduler:
        assert scheduler.wait() == 2
        assert "BALEEN_REGISTRY_PASSWORD" in scheduler.log()


@pytest.mark.lengthy
def test_it_waits_for_the_database(tmp_path: Path) -> None:
    """While the database is away it retries, and still ends on a signal."""
    away = {"database_url": "postgresql://127.0.0.1:9/x", "kafka_bootstrap": UNKNOWN_BROKER, "s3_bucket": "none"}
    place = Place({**away, "probe_every": "100ms"})
    with Scheduler(place, tmp_path / "log") as scheduler:
        eventually(lambda: "probes" in scheduler.work("failed"), why="it tries")
        scheduler.send(signal.SIGTERM)
        assert scheduler.wait() == 0
