"""The Markdown pages as tests read them: code blocks, inline code, prose, headings and links, each with its line.

It reads the Markdown that these pages use: fenced code blocks, inline code that may span lines, inline links, `#`
headings and tables. Not here: indented code blocks, reference links, setext headings.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")

_FENCE = re.compile(r"^ *(`{3,}|~{3,})(.*)$")
_CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")


class Found(NamedTuple):
    """A piece of a page, and the line on which it begins."""

    line: int
    text: str


class Block(NamedTuple):
    """A fenced code block: the line of its first fence, its language, and what is between the fences."""

    line: int
    language: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """The path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every fenced code block."""
        return self._split[0]

    @cached_property
    def text(self) -> str:
        """The page with its code blocks and comments blanked. Lines keep their numbers."""
        return _COMMENT.sub(lambda match: _blank_text(match[0]), self._split[1])

    @cached_property
    def codes(self) -> tuple[Found, ...]:
        """Every inline code, on one line, without the backslash that a table needs before a bar."""
        return tuple(
            Found(self._line(match.start()), " ".join(match[2].replace(r"\|", "|").split()))
            for match in _CODE.finditer(self.text)
        )

    @cached_property
    def prose(self) -> str:
        """The text without inline code and without the targets of links. Lines keep their numbers."""
        return _LINK.sub(lambda match: "]" + _blank_text(match[0][1:]), without_code(self.text))

    @cached_property
    def links(self) -> tuple[Found, ...]:
        """The target of every link."""
        links = _LINK.finditer(without_code(self.text))
        return tuple(Found(self._line(match.start()), match[1]) for match in links)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What `#…` may name: the slug of each heading as GitHub makes it, and explicit anchors."""
        seen: dict[str, int] = {}
        slugs = set(_ANCHOR.findall(self.text))
        for match in _HEADING.finditer(self.text):
            slug = slug_of(match[1])
            times = seen.get(slug, 0)
            seen[slug] = times + 1
            slugs.add(f"{slug}-{times}" if times else slug)
        return frozenset(slugs)

    def search(self, pattern: re.Pattern[str]) -> Iterator[Found]:
        """Each match of a pattern in the prose."""
        for match in pattern.finditer(self.prose):
            yield Found(self._line(match.start()), " ".join(match[0].split()))

    def _line(self, offset: int) -> int:
        return self.text.count("\n", 0, offset) + 1

    @cached_property
    def _split(self) -> tuple[tuple[Block, ...], str]:
        blocks, text = [], []
        fence, begin, language, inside = "", 0, "", list[str]()
        for number, line in enumerate(self.source.split("\n"), 1):
            match = _FENCE.match(line)
            if fence:
                if match and match[1].startswith(fence) and not match[2].strip():
                    blocks.append(Block(begin, language, tuple(inside)))
                    fence = ""
                else:
                    inside.append(line)
                text.append("")
            elif match:
                fence, begin, language, inside = match[1], number, match[2].strip(), []
                text.append("")
            else:
                text.append(line)
        assert not fence, f"{self.name}:{begin}: the code block has no end"
        return tuple(blocks), "\n".join(text)


def slug_of(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def without_code(text: str) -> str:
    """Return the text with each inline code blanked by backticks. Lines keep their numbers."""
    return _CODE.sub(lambda match: _blank_text(match[0], "`"), text)


@cache
def read_page(path: Path) -> Page:
    """Return the page of a path. It is read once."""
    return Page(path)


def read_pages(*folders: str) -> tuple[Page, ...]:
    """Return the pages at the top of the repository, then those directly in the folders."""
    found = [ROOT / name for name in TOP]
    for folder in folders:
        found += sorted((ROOT / folder).glob("*.md"))
    return tuple(read_page(path) for path in found)


def _blank_text(text: str, filler: str = " ") -> str:
    return re.sub(r"[^\n]", filler, text)
