"""Pages and code use one word for one thing: the words of other fields' documentation, and no metaphors of our own.

Each pattern is looked for in prose only: in pages, and in docstrings, comments and messages of the packages in CHECKED.
Code blocks, inline code and SQL keep the names that the program has. Names that Python files define are checked by
themselves, word by word.
Not here: docs/adr. The decisions say why something was decided, in the words of that time, and are not instructions.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support import prose
from tests.support.identifiers import find_identifiers, list_files, split_name
from tests.support.pages import Page, read_pages
from tests.support.prose import Module, read_modules

PAGES: Final = tuple(each for each in read_pages("docs") if each.name != "CHANGELOG.md")
#: Packages and modules, by their paths, whose docstrings, comments and messages are checked, too.
CHECKED: Final[tuple[str, ...]] = ("coordinator", "workers", "schemas")
TEXTS: Final[tuple[Page | Module, ...]] = (*PAGES, *(module for name in CHECKED for module in read_modules(name)))


class Rule(NamedTuple):
    """A pattern that is a mistake wherever it stands, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str


def _rule(pattern: str, instead: str) -> Rule:
    # A space is any white space, since sentences go on in the next line.
    return Rule(re.compile(rf"\b(?:{pattern})\b".replace(" ", r"\s+"), re.IGNORECASE), instead)


RULES: Final = (
    # What a registry does, and what a command shows.
    _rule(r"(?:tell|tells|telling)(?! apart)|told", "report, send an event, notify; of a command: print, show"),
    _rule(r"(?:speak|speaks|spoke|spoken|speaking) of", "report, name"),
    _rule(r"(?:has|have|is|are|was) not (?:been )?heard|unheard", "silent"),
    # What blocks garbage collection.
    _rule(r"brakes?", "hold, GC controls"),
    _rule(r"(?:keep|keeps|kept|keeping|hold|holds|held|holding) (?:away|off|back)", "block, GC is blocked by"),
    _rule(r"(?:stand|stands|stood|standing) in the way", "block"),
    # What ends.
    _rule(r"(?:un)?settled?|settles|settling", "resolve, resolved, unresolved"),
    _rule(r"(?:come|comes|came|coming) to no end", "pending, unfinished"),
    _rule(r"counts? no more", "is retired, no longer counts"),
    _rule(r"(?:let|lets|letting) (?:it |them )?go", "release, stop working on"),
    _rule(r"of late", "recent, recently"),
    # What somebody does about it.
    _rule(r"mend|mends|mended|mending", "repair, fix"),
    _rule(r"believe|believes|believed|believing", "trust, confirm, verify"),
    # An operator may look at a plan or at what a command prints; Baleen confirms.
    _rule(r"(?:have|has|had|having) (?:a|another) look", "confirm, verify"),
    _rule(r"(?:without|after|before|until) (?:a|the) look(?!-| at (?:the plan|`))", "confirm, verify"),
    _rule(r"(?:look|looks|looked|looking) at it", "confirm, verify"),
    _rule(r"(?:hand|hands|handed|handing) (?:it |them |that |this )?on", "forward, pass through"),
    _rule(r"(?:is|are|be|was|were|been|may be) let|lets? do", "permitted, allowed"),
    _rule(r"whoever|whomever", "the caller, the client, the operator, the process: name it"),
    _rule(r"somebody|he|him|his", "the client, the operator, the process: name it"),
    _rule(r"who (?:asks|answered|answers)", "the client, the registry process: name it"),
    # What there is.
    _rule(r"leavings", "leftovers"),
    _rule(r"story|stories", "history"),
    _rule(r"verdicts?|judge?ments?", "finding, result"),
    _rule(r"doubts?", "doubtful removal"),
)

#: A page or module and the words that are found in it, as a failure shows them, and why they are right there.
ALLOWED: Final[dict[tuple[str, str], str]] = {}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.name)
def test_the_words_of_the_field(text: Page | Module) -> None:
    """A text has no word that stands for another one in Baleen's language; each that it has is named with its line."""
    wrong = [
        (found.line, f"{text.name}:{found.line}: {found.text!r}: write {rule.instead}")
        for rule in RULES
        for found in text.search(rule.pattern)
        if (text.name, found.text) not in ALLOWED
    ]
    if wrong:
        pytest.fail("\n".join(line for _, line in sorted(wrong)), pytrace=False)


def test_exceptions_are_needed() -> None:
    """Every exception is found in its text: one that is not is taken off the list."""
    found = {(text.name, found.text) for text in TEXTS for rule in RULES for found in text.search(rule.pattern)}
    assert ALLOWED.keys() - found == set()


def test_checked_packages_exist() -> None:
    """Every package that is checked has a file: one that was moved is named anew."""
    assert [name for name in CHECKED if not read_modules(name)] == []


def test_prose_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docstrings, comments and strings of several words are prose, across lines. Names, code and SQL are not."""
    (tmp_path / "some.py").write_text(
        '''"""What somebody

does."""
#: The leavings; `leavings` are a name. It is handed
#: on.
told = {"told", "verdict", f"{told} and {'his'}"}
print("The event is handed "
      f"on to {told}.\\nHe waits.")
SQL = "SELECT verdict FROM stories WHERE settled"
'''
    )
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    (some,) = read_modules("some.py")
    assert some.name == "some.py"
    assert sorted(found for rule in RULES for found in some.search(rule.pattern)) == [
        (1, "somebody"),
        (4, "handed on"),
        (4, "leavings"),
        (7, "handed on"),
        (8, "He"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "the brake is on",
        "A process is told\nas silent",
        "what that key is let do",
        "runs of\nlate",
        "it counts no more",
        "handed on to the pod",
        "the leavings of uploads",
        "events are held\noff",
        "Whoever meets this",
        "lets go of it",
        "a gap that a reconcile settles",
        "is believed only after a look",
        "his own registry",
    ],
)
def test_mistakes_are_found(text: str) -> None:
    """A word of the list is found in any case and across lines."""
    assert any(rule.pattern.search(text) for rule in RULES)


@pytest.mark.parametrize(
    "text",
    [
        "no more than 10 percent",
        "The registry reports its events",
        "on the other hand, on disk",
        "let clients upload",
        "This page",
        "Baleen holds garbage collection back-to-back",
        "history, storage, restore",
        "the recommended way",
    ],
)
def test_good_sentences_pass(text: str) -> None:
    """Words of the field pass, also where a mistake is a part of them."""
    assert [rule.pattern.pattern for rule in RULES if rule.pattern.search(text)] == []


#: What is checked for names, too: tests and measurements are read by maintainers.
NAMED: Final = ("bench", "coordinator", "schemas", "tests", "workers")
#: Words that are mistakes in names. In prose some have another meaning, and `RULES` has the clear cases.
NAME_RULES: Final = (
    *RULES,
    _rule(r"said|say|unsa(?:id|y)", "report, print, show"),
    _rule(r"(?:un)?heard|hears?", "echo, receive, silent"),
    _rule(r"untold", "not published, not reported"),
    _rule(r"settlement|settler", "resolution, resolver"),
    _rule(r"(?<!dead[ ])letters?", "dead letter, character"),
    _rule(r"(?:look|looks|looked|looking)(?! up)", "check, confirm, list"),
    _rule(r"held by", "blocked by"),
)
#: A file and a name in it that has such a word, and why it is right there.
ALLOWED_NAMES: Final[dict[tuple[str, str], str]] = {}


@pytest.mark.parametrize("package", NAMED)
def test_names_have_the_words_of_the_field(package: str) -> None:
    """A name has no word that stands for another one in Baleen's language."""
    wrong = [
        f"{path.relative_to(prose.ROOT)}:{each.line}: {each.text}: write {rule.instead}"
        for path in list_files(package)
        for each in find_identifiers(path)
        if (path.relative_to(prose.ROOT).as_posix(), each.text) not in ALLOWED_NAMES
        for rule in NAME_RULES
        if rule.pattern.search(split_name(each.text))
    ]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_exceptions_of_names_are_needed() -> None:
    """Every exception of a name is found in its file."""
    for (file, name), why in ALLOWED_NAMES.items():
        found = {each.text for each in find_identifiers(prose.ROOT / file)}
        assert name in found, f"{file} has no {name} any more ({why})"
        assert any(rule.pattern.search(split_name(name)) for rule in NAME_RULES)


@pytest.mark.parametrize(
    "name", ["told", "HandOn", "_settle_all", "held_by", "SOURCE_UNHEARD", "test_who_asks", "letters"]
)
def test_mistakes_in_names_are_found(name: str) -> None:
    """A name is split at underscores and capitals."""
    assert any(rule.pattern.search(split_name(name)) for rule in NAME_RULES)


@pytest.mark.parametrize("name", ["dead_letters", "look_up", "LOOKUP_LIMIT", "doubtful", "DeadLetterFound", "resolve"])
def test_good_names_pass(name: str) -> None:
    """Names of the field pass."""
    assert not any(rule.pattern.search(split_name(name)) for rule in NAME_RULES)
