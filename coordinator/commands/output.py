"""Printing: tables for people, one JSON document for programs. Results go to stdout, everything else to stderr."""

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def notes() -> Console:
    """Where progress and remarks go."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; into a pipe, it is as wide as it needs to be."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    _console().print(table)


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
        sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {_cell(value)}\n")


def as_bytes(count: int) -> str:
    """Write a number of bytes as people do, in powers of a thousand."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"


def _console() -> Console:
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=1000)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items()) or "-"
    return str(value)
