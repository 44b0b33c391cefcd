"""What docstrings and comments name exists: files, and functions, types and attributes in backticks."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.pages import ROOT
from tests.support.prose import find_comments, find_docstrings, read_modules

PRODUCT = ("coordinator", "workers", "schemas")
#: Names of other programs and of their settings, and examples.
OTHERS = {"Infinity", "exec", "maxManifestBodySize", "normalize_path", "omitempty", "pg_ctl", "team0"}

_FILE = re.compile(r"[\w./-]*\w\.py\b")
_NAME = re.compile(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`")


class Remark(NamedTuple):
    """A docstring or a comment."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def remarks(*folders: str) -> Iterator[Remark]:
    for path in python_files(*folders):
        source = path.read_text(encoding="utf-8")
        found = [(each.lineno, each.value) for each in find_docstrings(ast.parse(source))]
        for line, text in (*found, *find_comments(source)):
            yield Remark(path, line, text)


def python_files(*folders: str) -> Iterator[Path]:
    return (module.path for folder in folders for module in read_modules(folder))


def words_of_code() -> frozenset[str]:
    """Every word of the code and of strings that are no docstring: names, columns, fields, commands."""
    found: set[str] = set()
    for path in python_files(*PRODUCT, "tests", "bench"):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        left_out = set(find_docstrings(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
                found.update(re.findall(r"\w+", node.value))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        found.update(token.string for token in tokens if token.type == tokenize.NAME)
    return frozenset(found)


def test_files_that_remarks_name_exist() -> None:
    """A file that a docstring or comment names exists: beside it, or from the root or `coordinator/` on."""
    wrong = []
    for remark in remarks(*PRODUCT, "tests", "bench"):
        top = ROOT / remark.path.relative_to(ROOT).parts[0]
        for name in _FILE.findall(remark.text):
            places = (remark.path.parent / name, top / name, ROOT / name, ROOT / "coordinator" / name)
            if not any(place.is_file() for place in places):
                wrong.append(f"{remark}: there is no {name}")
    assert wrong == []


def test_names_that_remarks_quote_exist() -> None:
    """A name in backticks stands somewhere in the code, so that no remark keeps a name that was changed."""
    known = words_of_code() | OTHERS
    wrong = [
        f"{remark}: {name}"
        for remark in remarks(*PRODUCT)
        for name in _NAME.findall(remark.text)
        if not known.issuperset(name.split("."))
    ]
    assert wrong == []
