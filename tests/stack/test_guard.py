"""The guard ends exactly the children it was left with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from coordinator.stack import guard as guarding
from coordinator.stack.guard import Child, Guard, read_identity

STUBBORN = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def known(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> Child:
    started = read_identity(process.pid)
    assert started is not None
    return Child(process.pid, started, number)


def test_a_child_is_sent_its_own_signal_when_the_pipe_ends(sleeper: subprocess.Popen[bytes]) -> None:
    """Each child gets the signal that means an orderly end to it."""
    guard = Guard()
    # None that whoever started these tests may have had ignored, as shells do with SIGINT in the background.
    guard.add(known(sleeper, signal.SIGUSR1))
    guard.close()
    assert sleeper.wait(10) == -signal.SIGUSR1


def test_a_child_that_was_taken_back_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    """`remove` makes the guard forget a process id."""
    guard = Guard()
    guard.add(known(sleeper))
    guard.remove(sleeper.pid)
    guard.close()
    assert sleeper.poll() is None


def test_a_stranger_under_the_same_id_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    """A process id that another process uses now gets no signal."""
    guard = Guard()
    guard.add(known(sleeper)._replace(identity="1"))
    guard.close()
    assert sleeper.poll() is None


def test_a_child_that_ignores_its_signal_is_killed_after_the_time() -> None:
    """Nothing outlives the guard."""
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        guarding.end_children([known(process)], seconds=0.2)
        assert process.wait(10) == -signal.SIGKILL


def test_the_guard_does_not_mind_the_signals_of_a_terminal(sleeper: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, SIGTERM or a closed terminal end the parent, not its guard."""
    guard = Guard()
    guard.add(known(sleeper))
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    deadline = time.monotonic() + 10
    while not all(_ignores(guard.pid, number) for number in numbers):
        assert time.monotonic() < deadline
    for number in numbers:
        guard._process.send_signal(number)
    guard.close()
    assert sleeper.wait(10) == -signal.SIGTERM


def test_a_process_that_only_waits_to_be_reaped_is_gone() -> None:
    """A zombie has no identity."""
    with subprocess.Popen(["true"]) as process:
        deadline = time.monotonic() + 10
        while read_identity(process.pid) is not None:
            assert time.monotonic() < deadline


def _ignores(pid: int, number: int) -> bool:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - one line of a system file
        ignored = next(line.split()[1] for line in status if line.startswith("SigIgn"))
    return bool(int(ignored, 16) >> (number - 1) & 1)
