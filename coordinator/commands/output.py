"""Print results as tables or as one JSON document. Results go to stdout, everything else to stderr.

Tables have times as `2026-11-25 03:56:22` in UTC, and bytes in powers of a thousand; JSON has both exactly.
Digests and names are never truncated, however narrow the terminal.
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
_EMPTY = "-"
#: A longer cell with spaces is a sentence, which may be wrapped.
_SENTENCE_LENGTH = 30
_COMMAND = re.compile(r"`[^`]*`")
#: Stands for a space where no line may end; no text has it.
_KEPT_SPACE = "\0"
#: Columns of sentences.
WIDTH = 100
#: Wider than any table: into a pipe, a line is as long as it needs to be.
_NO_LIMIT = 1_000_000


def stderr_console() -> Console:
    """Return the console for progress and remarks. It prints text literally: names may look like markup."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def make_progress_bar(*columns: ProgressColumn) -> Progress:
    """Return a progress bar that is shown on a terminal only."""
    console = stderr_console()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; lines may be wider than the terminal."""
    cells = [[format_value(value, name) for name, value in zip(columns, row, strict=True)] for row in rows]
    if not cells:
        sys.stdout.write("none\n")
        return
    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, column in zip(columns, zip(*cells, strict=True), strict=True):
        width = max(map(len, column))
        whole = width <= _SENTENCE_LENGTH or not any(" " in cell for cell in column)
        numbers = all(cell == _EMPTY or _NUMBER.fullmatch(cell) for cell in column)
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
    """Print the items of a list, and on stderr how to see more if there are more."""
    if json:
        print_json(page)
        return
    print_table(
        [column.replace("_", " ") for column in columns],
        [[item[column] for column in columns] for item in page["items"]],
    )
    if page["next"] is not None:
        stderr_console().print(
            f"There are more: raise --limit, or continue with --cursor {page['next']}", soft_wrap=True
        )


def print_fields(fields: dict[str, Any]) -> None:
    """Print one object, a line for each field."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {format_value(value, name)}\n")


def wrap_text(text: str, indent: int = 0) -> str:
    """Wrap text at `WIDTH`, never within a word or a `command`; lines after the first are indented."""
    whole = _COMMAND.sub(lambda match: match[0].replace(" ", _KEPT_SPACE), text)
    lines = textwrap.wrap(
        whole, WIDTH - indent, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace(_KEPT_SPACE, " ")


def format_bytes(count: int) -> str:
    """Format a number of bytes in powers of a thousand."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"


def format_count(count: int, one: str, many: str | None = None) -> str:
    """Format a number with its noun: `1 blob`, `1,234 repositories`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def format_value(value: Any, name: str = "") -> str:
    """Format a value as text; the field's name says whether it is a number of bytes."""
    match value:
        case None:
            text = _EMPTY
        case bool():
            text = "yes" if value else "no"
        case list():
            text = ", ".join(map(format_value, value)) or _EMPTY
        case dict():
            text = ", ".join(f"{key} {format_value(each, key)}" for key, each in value.items()) or _EMPTY
        case dt.datetime():
            text = value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
        case int() if name == "size" or name.endswith("bytes"):
            text = format_bytes(value)
        case str() if (time := _TIME.fullmatch(value)) is not None:
            text = f"{time[1]} {time[2]}"
        case _:
            text = str(value)
    return text
