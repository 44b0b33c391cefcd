"""The prose of a Python file: its docstrings, its comments, and its strings that have more than one word.

Route: `module(path)` -> `Module.search(pattern)`, as `Page.search` does it for a page.
Not prose: inline code in backticks, what stands in braces in an f-string, and SQL, which has the names of the table.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.support.pages import ROOT, Found, without_code

_SQL = re.compile(r"\b(?:SELECT|FROM|WHERE|JOIN|INSERT INTO|ORDER BY|UPDATE \w+ SET|(?:CREATE|ALTER|DROP) [A-Z]+)\b")
_PREFIX = re.compile(r"(?<!\w)[rbfuRBFU]{1,2}(?=[\"'])")
_QUOTES = re.compile(r"\"|(?<!\w)'|'(?!\w)")
_ESCAPE = re.compile(r"\\[\"'\\abfnrtv\n]")
_BRACES = re.compile(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")


@dataclass(frozen=True)
class Module:
    """One Python file."""

    path: Path

    @property
    def name(self) -> str:
        """The path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def pieces(self) -> tuple[Found, ...]:
        """Each comment, docstring and string with the line on which it begins. Lines of a piece keep their numbers."""
        source = self.path.read_text(encoding="utf-8")
        return tuple(Found(line, without_code(text)) for line, text in (*find_comments(source), *find_strings(source)))

    def search(self, pattern: re.Pattern[str]) -> Iterator[Found]:
        """Each match of a pattern in the prose."""
        for piece in self.pieces:
            for match in pattern.finditer(piece.text):
                line = piece.line + piece.text.count("\n", 0, match.start())
                yield Found(line, " ".join(match[0].split()))


def find_comments(source: str) -> Iterator[Found]:
    """Each comment. One that goes on in the next lines is one piece."""
    begin, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("#:")
        if lines and token.start[0] == begin + len(lines) and not token.line[: token.start[1]].strip():
            lines.append(text)
            continue
        if lines:
            yield Found(begin, "\n".join(lines))
        begin, lines = token.start[0], [text]
    if lines:
        yield Found(begin, "\n".join(lines))


def find_docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Each docstring, as a node of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str()) as found), *_]:
                    yield found


def find_strings(source: str) -> Iterator[Found]:
    """Each docstring, and each string that has a space and no SQL. Strings that stand side by side are one."""
    tree = ast.parse(source)
    docstrings = set(find_docstrings(tree))
    for node in find_outer_strings(tree):
        written = ast.get_source_segment(source, node) or ""
        text = _ESCAPE.sub(_make_spaces, _PREFIX.sub(_make_spaces, written))
        text = _QUOTES.sub(_make_spaces, text)
        if isinstance(node, ast.JoinedStr):
            text = _BRACES.sub(lambda match: re.sub(r"[^\n]", "`", match[0]), text)
        if node in docstrings or (" " in text.strip() and not _SQL.search(text)):
            yield Found(node.lineno, text)


def find_outer_strings(tree: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Each string, but none that is a part of another one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node
        else:
            yield from find_outer_strings(node)


def read_modules(folder: str) -> tuple[Module, ...]:
    """Return the files of a package, those of packages in it, too; of a module that file."""
    path = ROOT / folder
    return tuple(Module(each) for each in ([path] if path.is_file() else sorted(path.rglob("*.py"))))


def _make_spaces(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
