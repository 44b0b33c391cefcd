"""The names that a Python file defines, as words: modules, classes, functions, parameters, variables and attributes.

Route: `find_identifiers(path)` -> each name once, with its first line -> `split_name(name)`, which
`tests/test_language.py` checks. Not here: names of libraries, which a file uses and does not define.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.pages import ROOT, Found

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def split_name(name: str) -> str:
    """Split a name at `_` and at capitals: `HandOn` and `hand_on` are "hand on"."""
    return " ".join(word.lower() for word in _WORD.findall(name))


def find_identifiers(path: Path) -> tuple[Found, ...]:
    """Return each name of a file with the line that defines it first; the file's own name is on line 1."""
    found = {path.stem: 1}
    for line, name in sorted(_find_defined(ast.parse(path.read_text(encoding="utf-8")))):
        found.setdefault(name, line)
    return tuple(Found(line, name) for name, line in found.items())


def list_files(folder: str) -> list[Path]:
    """Return the Python files of a package, those of packages in it, too."""
    return sorted((ROOT / folder).rglob("*.py"))


def _find_defined(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str(name)):
                yield node.lineno, name
