"""`baleen up` that cannot begin says why in one sentence, and starts nothing."""

from pathlib import Path

import pytest

from coordinator.commands import up
from coordinator.stack.supervisor import StackEndpoints
from tests.cli.conftest import Command, free_port
from tests.cli.test_commands import errs
from tests.services.s3 import s3_settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "192.0.2.1"], "192.0.2.1 cannot be listened on, since it is no address of this machine"),
        (["--host", "name.invalid"], "name.invalid cannot be listened on, since that name is not known here"),
        (["--host", "a..b"], "a..b cannot be listened on, since that name is not known here"),
        (
            ["--data-dir", "file"],
            "file cannot be created, since there is a file of that name: choose another with --data",
        ),
        (["--data-dir", "file/below"], "since there is a file of that name"),
    ],
)
def test_where_it_cannot_be(bare: Command, options: list[str], message: str) -> None:
    """An address that is not of this machine, or a file in place of the directory, is reported as that."""
    (bare.directory / "file").write_text("")
    assert message in errs(bare("up", *options), 1)


def test_a_broken_stack_file(bare: Command) -> None:
    """A broken file of an earlier run is named with what to do about it."""
    left = bare.directory / ".baleen" / "stack.json"
    left.parent.mkdir()
    left.write_text("{")
    for command in (["up"], ["status"]):
        assert ".baleen/stack.json is malformed: delete it" in errs(bare(*command), 2)


def test_a_token_that_is_no_text(tmp_path: Path) -> None:
    """A malformed file of the operator's token is replaced."""
    file = tmp_path / "token"
    assert up._read_token(file) == ""
    file.write_bytes(b"\xff\0")
    assert "token" not in up._read_token(file)
    file.write_text("token\n")
    assert up._read_token(file) == "token"


def test_a_database_that_is_away(bare: Command, embedded_stack: StackEndpoints) -> None:
    """A database that does not answer is named by its setting, without a trace or its password."""
    settings = s3_settings(embedded_stack) | {"kafka_bootstrap": embedded_stack.kafka_bootstrap or ""}
    done = bare("up", "--port", str(free_port()), database_url="postgresql://user:s3cr3t@127.0.0.1:9/x", **settings)
    assert (done.code, done.out) == (1, "")
    starting, message = done.err.splitlines()
    assert starting.startswith("Starting Baleen in ")
    assert "check BALEEN_DATABASE_URL" in message
    assert "s3cr3t" not in message
