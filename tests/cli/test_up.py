"""`baleen up` runs everything on one machine, goes on with what it had, and ends cleanly."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from coordinator import settings
from coordinator.compose import store as compose_store
from tests.cli.conftest import Command, free_port, program_environment, python
from tests.support.wait import eventually

#: These stop, kill and start services, which takes its time.
pytestmark = pytest.mark.outage

SECONDS = 120


@contextmanager
def running(directory: Path, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `baleen up` until the block ends; it is ready when the block begins."""
    log = directory / "up.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", "up", "--data-dir", "data", "--port", str(port), *options],
            cwd=directory,
            env=program_environment({}),
            stdout=stream,
            stderr=stream,
        )
    try:
        eventually(lambda: process.poll() is not None or ready(port), "it is ready, or has ended", seconds=SECONDS)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).is_success
    except httpx.HTTPError:
        return False


def child(process: subprocess.Popen[bytes], *words: str, old: int = 0) -> psutil.Process | None:
    """The child of `up` with this name, or with these words in its command line, but not the old one."""
    for each in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):
            if each.pid != old and {*words} <= {each.name(), *each.cmdline()}:
                return each
    return None


def test_up(data_dir: Path) -> None:
    """Pods and the token outlive a restart; API and worker are started again; SIGINT and SIGTERM end it with 0."""
    port = free_port()
    beside = Command(data_dir, {"data_dir": "data"})
    with running(data_dir, port) as up:
        token = data_dir / "data" / "token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE((data_dir / "data" / "stack.json").stat().st_mode) == 0o600
        kept = token.read_text()
        assert beside("pods", "add", "pod-a", "--prefix", "pod-a", "--json").json["pod"] == "pod-a"
        assert beside("check", "--json").json["agrees"]
        secrets = [kept.strip(), json.loads((data_dir / "data" / "stack.json").read_text())["s3_secret_key"]]
        assert not any(secret in word for secret in secrets for word in command_lines(up))
        assert not any(secret in (data_dir / "up.log").read_text() for secret in secrets)

        taken = Command(data_dir, {})("up", "--data-dir", "other", "--port", str(port))
        assert (taken.code, "--port" in taken.err) == (1, True)
        again = Command(data_dir, {})("up", "--data-dir", "data", "--port", str(port))
        assert (again.code, f"in use by process {up.pid}" in again.err) == (1, True)

        for words in (("workers",), ("api",)):
            old = eventually(lambda words=words: child(up, *words), f"{words} runs", seconds=SECONDS).pid
            os.kill(old, signal.SIGKILL)
            restarted = f"{words} is restarted"
            eventually(lambda words=words, old=old: child(up, *words, old=old), restarted, seconds=SECONDS)
        eventually(lambda: ready(port), "it is ready again", seconds=SECONDS)
        up.send_signal(signal.SIGINT)
        assert up.wait(SECONDS) == 0
    assert (data_dir / "up.log").read_text().endswith("Stopping …\nStopped.\n")
    assert not (data_dir / "data" / "stack.json").exists()

    with running(data_dir, port) as up:
        assert token.read_text() == kept
        assert [pod["name"] for pod in beside("pods", "list", "--json").json["items"]] == ["pod-a"]
        up.send_signal(signal.SIGTERM)
        assert up.wait(SECONDS) == 0


def test_up_claims_the_bucket(data_dir: Path) -> None:
    """`up --claim` claims the bucket before anything else runs, and `gc claim` beside `up` refers to it."""
    port = free_port()
    beside = Command(data_dir, {"data_dir": "data"})
    with running(data_dir, port):
        assert beside("pods", "add", "pod-a", "--prefix", "pod-a", "--json").json["pod"] == "pod-a"
        refused = beside("gc", "claim", "--why", "a backup", "--yes")
        assert (refused.code, "`baleen up --claim WHY`" in refused.err) == (1, True)
        assert not any("he claim of" in reason for reason in beside("status", "--json").json["gc"]["blocked_by"])
    unconfirmed = Command(data_dir, {})("up", "--data-dir", "data", "--port", str(port), "--claim", "a backup")
    assert (unconfirmed.code, "--yes" in unconfirmed.err) == (2, True)
    with running(data_dir, port, "--claim", "a backup", "--yes"):
        status = beside("status", "--json").json
        assert any("he claim of" in reason and "is not verified" in reason for reason in status["gc"]["blocked_by"])
        assert "switched off: a backup" in status["gc"]["blocked_by"]
        assert [pod["name"] for pod in beside("pods", "list", "--json").json["items"]] == ["pod-a"]
    document = (data_dir / "up.log").read_text()
    assert "gives this database a new identity" in document
    assert "1 pod will be reconciled" in document


def test_up_ends_when_a_service_dies(data_dir: Path) -> None:
    """A service that dies ends everything: exit 1, its name and the end of its log."""
    with running(data_dir, free_port()) as up:
        database = eventually(lambda: child(up, "postgres"), "PostgreSQL runs", seconds=SECONDS)
        os.kill(database.pid, signal.SIGKILL)
        assert up.wait(SECONDS) == 1
    message = (data_dir / "up.log").read_text()
    assert "PostgreSQL died" in message
    assert "Traceback" not in message


def test_up_after_its_broker_was_killed(data_dir: Path) -> None:
    """After the broker was killed the next run reports possible gaps, and a reconcile resolves them automatically."""
    port = free_port()
    beside = Command(data_dir, {"data_dir": "data"})
    with running(data_dir, port) as up:
        # A root in which nothing of a registry is may be the wrong one, and is not compared.
        loaded = settings.load({"BALEEN_DATA_DIR": str(data_dir / "data")}, data_dir)
        compose_store.make_object_store(loaded).put("docker/registry/v2/blobs/sha256/00/another-pods", b"")
        beside("pods", "add", "pod-a", "--prefix", "pod-a", "--json")
        broker = eventually(lambda: child(up, "noida-db"), "the broker runs", seconds=SECONDS)
        os.kill(broker.pid, signal.SIGKILL)
        assert up.wait(SECONDS) == 1
    assert "every pod is reconciled" not in (data_dir / "up.log").read_text()
    with running(data_dir, port):
        assert (data_dir / "up.log").read_text().count("every pod is reconciled automatically") == 1

        def resolved() -> bool:
            pod = beside("pods", "show", "pod-a", "--json").json
            return bool(pod["gaps"]["open"] == 0 and pod["reconciled_at"])

        eventually(resolved, "the gap is resolved", seconds=SECONDS)


def test_up_ends_when_a_child_cannot_begin(data_dir: Path) -> None:
    """A worker that dies repeatedly is reported each time, and ends everything with exit 1 and its last words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        arguments = ("-m", "coordinator.cli", "up", "--data-dir", "data", "--port", str(free_port()))
        environment = program_environment({"worker_metrics_port": number})
        done = python(data_dir, *arguments, env=environment, timeout=2 * SECONDS)
    assert done.code == 1, done
    assert done.err.count("It is restarted in") == 5
    last = done.err.partition("after 5 restarts")[2]
    assert "BALEEN_WORKER_METRICS_PORT" in last
    assert "Address already in use" in last
    assert "Traceback" not in last
    assert len(done.err.splitlines()) < 40


def command_lines(process: subprocess.Popen[bytes]) -> list[str]:
    """The words of all that run below `up`; a child may end while it is looked at."""
    words: list[str] = []
    for each in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words += each.cmdline()
    assert words
    return words
