"""One child process, and the ports it listens on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator.errors import StackError
from coordinator.stack import ports as port_module
from coordinator.stack.ports import Ports
from coordinator.stack.process import ManagedProcess
from coordinator.stack.seaweedfs import EmbeddedS3

STUBBORN = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("up").touch()
time.sleep(60)
"""


def child(directory: Path, code: str, **more: Any) -> ManagedProcess:
    argv = [sys.executable, "-c", code]
    return ManagedProcess(name="The child", argv=argv, log_file=directory / "log", cwd=directory, **more)


def test_a_child_is_ready_when_its_probe_answers_and_leads_a_session_of_its_own(tmp_path: Path) -> None:
    """start() returns once the probe is true, and Ctrl-C in our terminal cannot reach the child."""
    process = child(tmp_path, STUBBORN, probe=(tmp_path / "up").exists, stop_timeout=0.1)
    process.start()
    try:
        assert (tmp_path / "up").exists()
        assert os.getsid(process.pid) == process.pid
    finally:
        process.stop()
    assert not process.is_alive()


def test_a_child_that_ignores_its_signal_is_killed(tmp_path: Path) -> None:
    """stop() ends a child that does not end by itself."""
    process = child(tmp_path, STUBBORN, probe=(tmp_path / "up").exists, stop_timeout=0.1).start()
    process.stop()
    assert process.exit_status == -signal.SIGKILL
    assert not psutil.pid_exists(process.pid)


def test_a_child_that_ends_early_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """The error of a failed start carries the advice and what this run of the child printed last."""
    (tmp_path / "log").write_text("an older run\n")
    process = child(tmp_path, "print('no luck'); raise SystemExit(3)", probe=lambda: False, advice="try X")
    with pytest.raises(StackError, match=r"(?s)status 3 .*try X.*no luck") as caught:
        process.start()
    assert "an older run" not in str(caught.value)


def test_the_end_of_a_log_is_for_people(tmp_path: Path) -> None:
    """The end of a log is a few short lines: of JSON the event and error, of a trace the error alone."""
    record = '{"event": "it ends", "level": "error", "pid": 7, "exception": "Trace:\\n  f\\nOSError: no luck"}'
    code = f"for n in range(50): print('line', n)\nprint('x' * 5000)\nprint({record!r})"
    process = child(tmp_path, code, probe=lambda: False)
    with pytest.raises(StackError):
        process.start()
    lines = process.log_tail().splitlines()
    assert lines[-1].strip() == "error: it ends: OSError: no luck"
    assert lines[-3].strip() == "line 49"
    assert len(lines) <= 6
    assert max(map(len, lines)) < 250


def test_a_full_disk_is_named_as_such(tmp_path: Path) -> None:
    """When the child complains of a full disk, the error says so and where."""
    process = child(tmp_path, "raise OSError(28, 'No space left on device')", probe=lambda: False)
    with pytest.raises(StackError, match="disk is full"):
        process.start()


def test_a_child_that_never_becomes_ready_is_stopped(tmp_path: Path) -> None:
    """After the deadline the start fails and nothing is left running."""
    process = child(tmp_path, STUBBORN, probe=lambda: False, ready_timeout=0.2, stop_timeout=0.1)
    with pytest.raises(StackError, match="is not ready after"):
        process.start()
    assert not process.is_alive()


def test_a_missing_program_is_an_error_of_the_stack(tmp_path: Path) -> None:
    """A missing program is reported in a sentence."""
    process = ManagedProcess(name="X", argv=[tmp_path / "nothing"], log_file=tmp_path / "log")
    with pytest.raises(StackError, match="cannot be started"):
        process.start()


def test_ports_are_the_same_next_time(tmp_path: Path) -> None:
    """A directory keeps its ports, and all of them differ."""
    first = Ports(tmp_path / "ports.json", "127.0.0.1")
    chosen = [first.take("a"), first.take("b", offset=10_000)]
    first.save()
    again = Ports(tmp_path / "ports.json", "127.0.0.1")
    assert [again.take("a"), again.take("b", offset=10_000)] == chosen
    assert len({chosen[0], chosen[1], chosen[1] + 10_000}) == 3


def test_a_remembered_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    """Another program on a remembered port, or on the one above it, leads to a new choice."""
    first = Ports(tmp_path / "ports.json", "127.0.0.1")
    kept = first.take("a", offset=10_000)
    first.save()
    with socket.create_server(("127.0.0.1", kept + 10_000)):
        assert Ports(tmp_path / "ports.json", "127.0.0.1").take("a", offset=10_000) != kept


def test_a_port_that_was_asked_for_and_is_in_use_is_refused(tmp_path: Path) -> None:
    """A requested port that is in use is refused, and not replaced."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StackError, match=f"Port {port} for s3 is in use"):
            Ports(tmp_path / "ports.json", "127.0.0.1").take("s3", asked=port)


@pytest.mark.parametrize("content", ['{"a": 1', '{"a": 70000}', '{"a": 60000}', '{"a": -1}', '{"a": 1e400}', "[]"])
def test_a_broken_memory_of_ports_is_forgotten(tmp_path: Path, content: str) -> None:
    """A malformed file of ports leads to new ports, not to an error."""
    (tmp_path / "ports.json").write_text(content)
    chosen = Ports(tmp_path / "ports.json", "127.0.0.1").take("a", offset=10_000)
    assert port_module.LOWEST <= chosen < port_module.HIGHEST


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_broken_key_of_the_store_is_reported(tmp_path: Path, content: str) -> None:
    """A malformed key of the store, with which pods are configured, is refused, and not replaced."""
    ports = Ports(tmp_path / "ports.json", "127.0.0.1")
    server = EmbeddedS3(tmp_path, tmp_path / "s3.log", host="127.0.0.1", ports=ports)
    made = server.key
    assert server.key == made
    (tmp_path / "key.json").write_text(content)
    with pytest.raises(StackError, match=r"key\.json is malformed"):
        assert server.key


@pytest.mark.skipif(sys.platform != "linux", reason="ports are claimed on Linux alone")
def test_a_port_that_another_process_has_chosen(tmp_path: Path) -> None:
    """Stacks that start at once do not choose the same port, though nothing listens there yet."""
    program = (
        "import sys; from pathlib import Path; from coordinator.stack.ports import Ports;"
        "print(Ports(Path('none'), '127.0.0.1').take('a', offset=10_000), flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        with pytest.raises(StackError, match="No free port"):
            Ports(tmp_path / "ports.json", "127.0.0.1", among=[port]).take("a", offset=10_000)
    assert Ports(tmp_path / "ports.json", "127.0.0.1", among=[port]).take("a", offset=10_000) == port
    with pytest.raises(StackError, match="No free port"):
        Ports(tmp_path / "others.json", "127.0.0.1", among=[port]).take("a", offset=10_000)
