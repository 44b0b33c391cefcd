"""`baleen` beside one API and its database.

A command runs in this process, since starting a program takes longer than most of them. Those that become a server,
or another program, run as programs; so do the tests of exit codes, signals and pipes (test_up.py, test_telemetry.py).
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from coordinator import cli
from coordinator.compose import database as compose_database
from coordinator.stack.ports import Ports
from coordinator.stack.supervisor import StackEndpoints
from tests.api.harness import OPERATE, Facts, Served, served, settings_for

ROOT = Path(__file__).parent.parent.parent


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def ok(self) -> "Done":
        """Check that it succeeded."""
        assert self.code == 0, self.err
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.ok().out)


#: They end with the process that runs them.
PROGRAMS = ("up", "api", "worker", "scheduler", "demo")


class Command(NamedTuple):
    """Runs `baleen` in an empty directory with settings of its own."""

    directory: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str, **settings: str) -> Done:
        if arguments[:1] and arguments[0] in PROGRAMS:
            return self.program(*arguments, **settings)
        environment = program_environment(self.environment | settings)
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            contextlib.chdir(self.directory),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = cli.run(arguments)
        return Done(code, out.getvalue(), err.getvalue())

    def program(self, *arguments: str, **settings: str) -> Done:
        environment = program_environment(self.environment | settings)
        return python(self.directory, "-m", "coordinator.cli", *arguments, env=environment)


def python(directory: Path, *arguments: str, **options: Any) -> Done:
    """Run Python in a directory, without the tester's own settings unless `env` has them."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    given = streams | {"cwd": directory, "env": program_environment({}), "text": True, "timeout": 60} | options
    done = subprocess.run([sys.executable, *arguments], check=False, **given)
    return Done(done.returncode, done.stdout or "", done.stderr)


def program_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program of ours: nothing of the tester's own settings."""
    passed = {name: value for name, value in os.environ.items() if not name.startswith(("BALEEN_", "AWS_"))}
    return passed | {"PYTHONPATH": str(ROOT)} | {f"BALEEN_{name.upper()}": value for name, value in settings.items()}


def free_port() -> int:
    """A port that no outgoing connection gets, so that it is free between two runs."""
    return Ports(Path("nothing-is-remembered"), "127.0.0.1").take("up")


@pytest.fixture(scope="session")
def api(embedded_stack: StackEndpoints) -> Iterator[Served]:
    with served(settings_for(embedded_stack)) as api:
        yield api


@pytest.fixture
def facts(api: Served) -> Iterator[Facts]:
    facts = Facts(api.db)
    yield facts
    # The port of a registry that has ended may be that of the next test's, which must not be another pod's then.
    api.db.execute("UPDATE pods SET registries = '{}' WHERE name = ANY(%s)", (facts.pods,))


@pytest.fixture
def baleen(api: Served, tmp_path: Path) -> Command:
    """The command with every setting that the API has."""
    settings = api.settings
    assert settings.kafka_bootstrap is not None
    services = {"database_url": compose_database.database_url(settings), "kafka_bootstrap": settings.kafka_bootstrap}
    return Command(tmp_path, {"url": api.url, "token": OPERATE} | services)


@pytest.fixture
def bare(tmp_path: Path) -> Command:
    return Command(tmp_path, {})
