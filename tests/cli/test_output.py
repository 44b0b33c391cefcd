"""What commands print for people: tables, times, bytes and numbers."""

import datetime as dt
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from coordinator.commands.output import format_count, format_value, make_progress_bar, print_fields, print_table
from tests.cli.conftest import program_environment

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
SENTENCE = "a sentence that is longer than what is left of a line and may go on in the next"


def on_a_terminal(width: int, rows: list[Any], term: str = "xterm") -> str:
    """A table as a program prints it on a terminal of so many columns."""
    columns = ("name", "number", "why")
    program = f"from coordinator.commands.output import print_table; print_table({columns!r}, {rows!r})"
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = program_environment({}) | {"TERM": term}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen([sys.executable, "-c", program], stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    document = b""
    try:
        while chunk := os.read(ours, 65536):
            document += chunk
    except OSError:
        pass  # its end is closed
    finally:
        os.close(ours)
    assert process.wait(60) == 0, document
    return re.sub("\x1b\\[[0-9;]*m", "", document.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("rows", [[(DIGEST, 1, "short")], [(DIGEST, 1, SENTENCE), (DIGEST * 3, 20, SENTENCE)]])
@pytest.mark.parametrize(("width", "term"), [(40, "xterm"), (80, "xterm"), (80, "dumb"), (300, "xterm")])
def test_nothing_is_cut_on_a_terminal(rows: list[Any], width: int, term: str) -> None:
    """Identifiers are printed whole and in one piece, however narrow the terminal."""
    document = on_a_terminal(width, rows, term)
    assert "…" not in document
    assert all(row[0] in document for row in rows)
    assert all(word in document for word in SENTENCE.split() if len(rows) > 1)


def test_sentences_are_broken_where_there_is_room_for_the_rest() -> None:
    """A table is as wide as the terminal, if its identifiers leave room."""
    lines = on_a_terminal(60, [("a-name", 1, SENTENCE)]).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 60


def test_a_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A row is a line, however long, and numbers stand at the right."""
    long = "x" * 5000
    print_table(("name", "number", "size", "unknown"), [(long, 7, 1234, None), ("b", 1000, 5, None)])
    head, first, second = capsys.readouterr().out.splitlines()
    assert long in first
    assert [line[5000:].rstrip() for line in (head, first, second)] == [
        "  number     size  unknown",
        "       7  1.23 kB        -",
        "    1000      5 B        -",
    ]


def test_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty table is printed as none."""
    print_table(("name", "number"), [])
    assert capsys.readouterr().out == "none\n"


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        ("2026-11-25T03:56:22.123456Z", "", "2026-11-25 03:56:22"),
        ("2026-11-25T03:56:22+00:00", "", "2026-11-25 03:56:22"),
        (dt.datetime(2026, 11, 25, 4, 56, 22, 5, dt.timezone(dt.timedelta(hours=1))), "", "2026-11-25 03:56:22"),
        ("since 2026-11-25T03:56:22Z", "", "since 2026-11-25T03:56:22Z"),
        (1234, "payload_bytes", "1.23 kB"),
        (1234, "size", "1.23 kB"),
        (1234, "blobs", "1234"),
        (None, "size", "-"),
        (True, "", "yes"),
        ([], "", "-"),
        (
            {"open": 1, "oldest": "2026-11-25T03:56:22Z", "bytes": 2000},
            "",
            "open 1, oldest 2026-11-25 03:56:22, bytes 2 kB",
        ),
    ],
)
def test_values(value: Any, name: str, text: str) -> None:
    """Times have one form and bytes one style, in tables and in fields."""
    assert format_value(value, name) == text


def test_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Fields are written as cells of tables are."""
    print_fields({"first_seen": "2026-11-25T03:56:22Z", "size": 1000})
    assert capsys.readouterr().out == "first seen  2026-11-25 03:56:22\nsize        1 kB\n"


@pytest.mark.parametrize(("count", "text"), [(0, "0 repositories"), (1, "1 repository"), (1234, "1,234 repositories")])
def test_nouns(count: int, text: str) -> None:
    """A count of one has the noun in the singular."""
    assert format_count(count, "repository", "repositories") == text


def test_progress_away_from_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal progress writes nothing, not even an empty line."""
    with make_progress_bar() as progress:
        progress.update(progress.add_task("listing"), completed=1)
    assert capsys.readouterr() == ("", "")
