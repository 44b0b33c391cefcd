"""Histories on several processes, over one PostgreSQL that lives as long as they do."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from sqlalchemy.engine import make_url

from coordinator.stack.supervisor import Stack
from tests.simulation.database import Server

ROOT = Path(__file__).parents[2]
#: What of a process's complaints is shown.
COMPLAINT = 3000


class FoundViolation(NamedTuple):
    """A history that must not be."""

    seed: int
    where: str
    violation: str
    history: str
    #: There is a pod of kind `gitlab`.
    mixed: bool = False

    def __str__(self) -> str:
        return (
            f"{self.violation}\n\nSeed {self.seed} ({self.where}). What happened (seconds, who, what):\n\n"
            f"{self.history}\n\nAgain: .venv/bin/python -m tests.simulation --seed {self.seed} --histories 1"
            f"{' --mixed' * self.mixed}\n"
        )


class Total(NamedTuple):
    histories: int = 0
    steps: int = 0
    found: Sequence[FoundViolation] = ()
    #: Of all steps of all histories, in whatever order these were run.
    fingerprint: int = 0


class ProcessError(Exception):
    """A process of the simulation ended as it should not."""


class Ground(NamedTuple):
    """A PostgreSQL, and the places in it where histories begin."""

    url: str
    places: Path


@contextmanager
def start_ground() -> Iterator[Ground]:
    """Begin a PostgreSQL for histories; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="baleen-simulation-", ignore_cleanup_errors=True) as directory:
        # A socket of the file system costs less than one of the network.
        sockets = Path(directory) / "stack" / "postgres"
        settings = {"unix_socket_directories": str(sockets)}
        with Stack(Path(directory) / "stack", services=("postgres",), postgres=settings) as stack:
            assert stack.endpoints.database_url is not None
            url = make_url(stack.endpoints.database_url)
            url = url.set(host=None, port=None, query={"host": str(sockets), "port": str(url.port)})
            made = Ground(url.render_as_string(hide_password=False), Path(directory) / "places")
            Server(made.url).prepare()
            # The first process makes the places, and runs nothing.
            for _ in _listen(made, [{}]):
                pass
            yield made
            stack.discard()


def simulate(
    on: Ground,
    *,
    histories: int,
    seed: int,
    processes: int,
    mixed: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Total:
    """Run histories of consecutive seeds; return what was found. Raises ProcessError.

    `mixed`: with a pod of kind `gitlab` beside those of kind `link`.
    """
    asked = [
        {"first": seed + number, "histories": histories - number, "stride": processes, "mixed": mixed}
        for number in range(processes)
    ]
    done: dict[int, tuple[int, int]] = {}
    found: list[FoundViolation] = []
    fingerprint = 0
    for number, answer in _listen(on, asked):
        fingerprint ^= answer.get("fingerprint", 0)
        if "seed" in answer:
            found.append(_make_violation(answer))
        elif "done" in answer:
            done[number] = answer["done"], answer["steps"]
            progress(sum(each[0] for each in done.values()))
    histories, steps = (sum(numbers) for numbers in zip(*done.values(), strict=True))
    return Total(histories, steps, sorted(found), fingerprint)


def run_mutants(on: Ground, mutants: Sequence[str], *, processes: int) -> dict[str, Total]:
    """Run histories on each mutant until it is noticed; return what was found of each, with that last."""
    asked = [{"mutants": list(mutants[number::processes])} for number in range(processes)]
    totals: dict[str, Total] = {}
    for _, answer in _listen(on, asked):
        mutant = answer.get("mutant")
        if mutant is None:
            continue
        total = totals.get(mutant, Total())
        if "seed" in answer:
            total = total._replace(found=[*total.found, _make_violation(answer)])
        else:
            total = total._replace(histories=answer["done"], steps=answer["steps"])
        totals[mutant] = total
    return totals


def _make_violation(answer: dict[str, Any]) -> FoundViolation:
    return FoundViolation(answer["seed"], answer["where"], answer["violation"], answer["history"], answer["mixed"])


def _listen(on: Ground, asked: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Start processes, and give what they say until all have ended; raises ProcessError."""
    answer: SimpleQueue[tuple[int, str | None]] = SimpleQueue()
    children = [_start(on, number, each, answer) for number, each in enumerate(asked)]
    running, ended = len(children), 0
    try:
        while running:
            number, line = answer.get()
            if line is None:
                running -= 1
                continue
            what = json.loads(line)
            ended += bool(what.get("ended"))
            yield number, what
    finally:
        for child in children:
            child.kill()
            child.wait()
    if ended < len(children):
        raise ProcessError("A process of the simulation ended early: see what it printed.")


def _start(
    on: Ground, number: int, asked: dict[str, Any], answer: SimpleQueue[tuple[int, str | None]]
) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.simulation.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    asked_for = {"url": on.url, "places": str(on.places), "number": f"{os.getpid()}_{next(_numbers)}", **asked}
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(asked_for))
    child.stdin.close()
    output = child.stdout

    def read() -> None:
        for line in output:
            answer.put((number, line))
        answer.put((number, None))

    threading.Thread(target=read, name=f"simulation-{number}", daemon=True).start()
    return child


_numbers = itertools.count()
