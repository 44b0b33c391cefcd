"""Printing: tables for people, one JSON document for programs. Results go to stdout, everything else to stderr.

For people a time is `2026-11-25 03:56:22` in UTC, and bytes are in powers of a thousand; programs get both exactly.
What may have to be typed again (a digest, a name) is never cut short, however narrow the terminal.
"""

import datetime as dt
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, ConsoleDimensions
from rich.progress import Progress, ProgressColumn
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)")
_NUMBER = re.compile(r"-?[0-9][0-9,.]*(?: [kMGTP]?B)?")
_NOTHING = "-"
#: A longer cell with spaces is a sentence, which may be broken into lines.
_SENTENCE = 30
_COMMAND = re.compile(r"`[^`]*`")
#: Where no line ends, and what no text has.
_SPACE = "\0"
#: Of what is told in sentences.
WIDTH = 100
#: Wider than any table: into a pipe, a line is as long as it needs to be.
_NO_LIMIT = 1_000_000


def notes() -> Console:
    """Where progress and remarks go, as they are written: what people have named may look like markup."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Progress that is shown on a terminal, and nowhere else."""
    console = notes()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; what does not fit the terminal goes on beyond its edge."""
    cells = [[as_text(value, name) for name, value in zip(columns, row, strict=True)] for row in rows]
    if not cells:
        sys.stdout.write("none\n")
        return
    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, column in zip(columns, zip(*cells, strict=True), strict=True):
        width = max(map(len, column))
        whole = width <= _SENTENCE or not any(" " in cell for cell in column)
        numbers = all(cell == _NOTHING or _NUMBER.fullmatch(cell) for cell in column)
        table.add_column(
            "\n".join(textwrap.wrap(name, width, break_long_words=False)) if terminal else name,
            justify="right" if numbers else "left",
            no_wrap=whole,
            min_width=width if whole else None,
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    needed = console.measure(table, options=console.options.update(max_width=_NO_LIMIT))
    if not terminal or needed.minimum > console.width:
        console.size = ConsoleDimensions(_NO_LIMIT, console.height)
    console.print(table)


def print_page(page: dict[str, Any], columns: Sequence[str], *, json: bool) -> None:
    """Print the items of a list, and on stderr how to see more where there is more."""
    if json:
        print_json(page)
        return
    print_table(
        [column.replace("_", " ") for column in columns],
        [[item[column] for column in columns] for item in page["items"]],
    )
    if page["next"] is not None:
        notes().print(f"There are more: raise --limit, or go on with --cursor {page['next']}", soft_wrap=True)


def print_fields(fields: dict[str, Any]) -> None:
    """Print one thing, a line for each of its fields."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {as_text(value, name)}\n")


def paragraph(text: str, indent: int = 0) -> str:
    """Break text into lines of `WIDTH`, and no word or `command` in two; those after the first are indented."""
    whole = _COMMAND.sub(lambda match: match[0].replace(" ", _SPACE), text)
    lines = textwrap.wrap(
        whole, WIDTH - indent, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace(_SPACE, " ")


def as_bytes(count: int) -> str:
    """Write a number of bytes as people do, in powers of a thousand."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun: `1 blob`, `1,234 repositories`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def as_text(value: Any, name: str = "") -> str:
    """Write a value for people; the name of its field tells what is a number of bytes."""
    match value:
        case None:
            text = _NOTHING
        case bool():
            text = "yes" if value else "no"
        case list():
            text = ", ".join(map(as_text, value)) or _NOTHING
        case dict():
            text = ", ".join(f"{key} {as_text(each, key)}" for key, each in value.items()) or _NOTHING
        case dt.datetime():
            text = value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
        case int() if name == "size" or name.endswith("bytes"):
            text = as_bytes(value)
        case str() if (time := _TIME.fullmatch(value)) is not None:
            text = f"{time[1]} {time[2]}"
        case _:
            text = str(value)
    return text
