"""The table of settings in docs: names, defaults and allowed values are those of the code, meanings those of the page.

Route: `python -m tests.settings_table docs/SETTINGS.md` writes the tables anew, between these two lines of the page:

    <!-- settings: kafka_* -->
    <!-- end of settings -->

A page may have several such places, each with the patterns of its settings; without a pattern it has all of them. What
the last column says is kept. Meanings are also found in other tables whose first column names settings, so that a page
that had such a table keeps its text. A setting without a meaning is marked, and tests/test_docs.py fails.
"""

import re
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

from coordinator import settings
from coordinator.settings import (
    HTTP_URL,
    TOKEN,
    Duration,
    OneOf,
    Secret,
    Settings,
    SomeOf,
    TextForm,
    TimeRange,
    WholeNumber,
)

HEAD: Final = "| setting | default | allowed | meaning |\n|---|---|---|---|\n"
MARKED: Final = re.compile(
    r"^<!-- settings:(?P<patterns>[^>]*)-->\n(?P<table>.*?)^<!-- end of settings -->$", re.MULTILINE | re.DOTALL
)
UNDESCRIBED: Final = "DESCRIBE THIS SETTING"
NOTHING: Final = "\u2013"
NAMES: Final = frozenset(Settings.__annotations__)

_ROW = re.compile(r"^\|((?:[^|\\\n]|\\.)*)\|.*?(?<!\\)\|((?:[^|\\\n]|\\.)*)\|$", re.MULTILINE)
_NAME = re.compile(r"`(?:BALEEN_)?([A-Z][A-Z0-9_]*)`")
#: What an error says at length.
_SHORT: Final = {HTTP_URL: "an `http://` or `https://` URL", TOKEN: "a token"}
_FLOORS: Final = {name: floor for name, floor, _ in settings.FLOORS}


def table(names: list[str], meanings: Mapping[str, str]) -> str:
    """Return the table of some settings, in this order."""
    rows = [
        f"| `{name.upper()}` | {default(name)} | {allowed(name)} | {meanings.get(name, UNDESCRIBED)} |\n"
        for name in names
    ]
    return HEAD + "".join(rows)


def rewritten(source: str) -> str:
    """Return a page with every marked table as it has to be."""
    meanings = meanings_of(source)

    def one(match: re.Match[str]) -> str:
        shown = table(selected(match["patterns"]), meanings)
        return f"<!-- settings:{match['patterns']}-->\n{shown}<!-- end of settings -->"

    return MARKED.sub(one, source)


def selected(patterns: str) -> list[str]:
    """Return the settings that patterns such as `kafka_* url` select, in the order of coordinator/settings.py."""
    wanted = patterns.split() or ["*"]
    return [name for name in Settings.__annotations__ if any(fnmatch(name, each) for each in wanted)]


def meanings_of(source: str) -> dict[str, str]:
    """Return what tables of a page say of settings. A row of its own wins over one for several settings."""
    meanings: dict[str, tuple[int, str]] = {}
    for match in _ROW.finditer(source):
        names = [name.lower() for name in _NAME.findall(match[1])]
        for name in names:
            if name in NAMES and (name not in meanings or len(names) < meanings[name][0]):
                meanings[name] = (len(names), match[2].strip())
    return {name: text for name, (_, text) in meanings.items()}


def default(name: str) -> str:
    """Return a setting's default as `baleen config show` prints it."""
    value = getattr(Settings(), name)
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def choices() -> frozenset[str]:
    """Every word that is a value of some setting, such as `SASL_SSL`."""
    marks = [mark for kind in Settings.__annotations__.values() for mark in get_args(kind) if isinstance(mark, OneOf)]
    return frozenset(word for mark in marks for word in mark._choices.values())


def allowed(name: str) -> str:
    """Return what a setting's value may be."""
    kind: Any = Settings.__annotations__[name]
    return f"{_allowed(name, kind)} (secret)" if Secret in _types(kind) else _allowed(name, kind)


def _allowed(name: str, kind: Any) -> str:  # noqa: PLR0911 - one for each kind of setting
    match get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        case (TextForm() as mark,) if mark in _SHORT:
            return _SHORT[mark]
        case (SomeOf(),):
            return "names of checks, separated by commas"
        case (WholeNumber() as mark,):
            return f"{mark.minimum} to {mark.maximum}{f' {mark.unit}' if mark.unit else ''}"
        case (TimeRange() as mark,):
            least = max(mark.minimum, _FLOORS.get(name, mark.minimum))
            return f"{Duration(least) if least else 0} to {Duration(mark.maximum)}"
        case (OneOf() as mark,):
            return ", ".join(f"`{word}`" for word in mark._choices.values())
        case (TextForm() as mark,):
            return mark.description
    if kind is bool:
        return "`true`, `false`"
    assert _types(kind) <= {str, Secret, type(None)}, f"{name}: say here how a {kind} is written"
    return "text"


def _types(kind: Any) -> set[Any]:
    """Return the types of a setting: `Annotated[Secret | None, …]` has `Secret` and that of None."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return set(get_args(bare)) or {bare}


def main() -> None:
    for argument in sys.argv[1:]:
        path = Path(argument)
        source = path.read_text(encoding="utf-8")
        if MARKED.search(source) is None:
            sys.exit(f"{path} has no line <!-- settings: --> with a line <!-- end of settings --> after it.")
        path.write_text(rewritten(source), encoding="utf-8")


if __name__ == "__main__":
    main()
