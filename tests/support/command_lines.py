"""Command lines of `baleen` as pages write them, parsed by the real commands without running one.

Pages write placeholders. `NAME`, `…`, `<digest>` and `$VAR` are accepted as any value. `[--yes]` is parsed without its
brackets. `on|off` and `add|list` stand for one command line each.
"""

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from typer._click.core import Context
from typer._click.exceptions import ClickException
from typer.main import get_command

from coordinator.cli import _make_application

_SUBSTITUTION = re.compile(r"\$\((?=[^()]*\bbaleen\b)")
_ENDS = frozenset({"&&", "||", "|", ";", "&", "{", "}", "then", "do"})
_REDIRECTION = re.compile(r"[0-9]?(>>?|<)(&[0-9])?")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_PROGRAM = re.compile(r"(.*/)?baleen")
#: What stands for a value: `NAME`, `<digest>`, `$VAR`, `…`, and what has any of these in it.
_PLACEHOLDER = re.compile(r".*(…|\.\.\.|[<>$]|\b[A-Z][A-Z_]*\b).*", re.DOTALL)
_ALTERNATIVES = re.compile(r"[^\s|]+(\|[^\s|]+)+")
_DRAWING = re.compile(r"[\u2190-\u21ff\u2500-\u25ff]")


def find_command_lines(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the offset and the words of every command line of `baleen` in a code block."""
    joined, begin = "", 0
    for offset, line in enumerate(lines):
        if not joined:
            begin = offset
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        text, joined = joined + line, ""
        if "baleen" in text and not _DRAWING.search(text):
            for words in split_commands(text):
                yield begin, words


def split_commands(text: str) -> Iterator[list[str]]:
    """Yield the words after `baleen` of each of its command lines in one line of shell."""
    try:
        tokens = shlex.split(_SUBSTITUTION.sub(" ; ", text), comments=True)
    except ValueError:
        # A quotation that goes on in the next line is no command line of ours.
        return
    for part in _split_tokens(tokens):
        words = list(itertools.dropwhile(_ASSIGNMENT.fullmatch, part))
        words = words[1:] if words[:1] == ["$"] else words
        if words and _PROGRAM.fullmatch(words[0]):
            yield words[1:]


def _split_tokens(tokens: Sequence[str]) -> Iterator[list[str]]:
    """Split a line of shell where one command ends."""
    part, redirected = list[str](), False
    for token in tokens:
        word = token.lstrip("(") if not part else token
        last = word.endswith((";", ")")) and not word.startswith("-")
        word = word.rstrip(";)") if last else word
        if word in _ENDS:
            yield part
            part, redirected = [], False
            continue
        if _REDIRECTION.fullmatch(word):
            redirected = not word[-1].isdigit()
        elif redirected:
            redirected = False
        elif word:
            part.append(word)
        if last:
            yield part
            part, redirected = [], False
    yield part


def describe_error(words: Sequence[str], *, complete: bool) -> str | None:
    """Say what is wrong with a command line, or nothing. Of a complete one, everything required must be there."""
    for given in _expand_variants(list(words)):
        # An ellipsis may also stand for nothing, and an option may be named without its value.
        readings = [given, [word for word in given if word not in {"…", "..."}]]
        if not complete and given and given[-1].startswith("--"):
            readings.append([*given, "…"])
        errors = [_describe_error(reading, complete=complete) for reading in readings]
        if None not in errors:
            return errors[0]
    return None


def _describe_error(words: list[str], *, complete: bool) -> str | None:
    try:
        _check(words, complete=complete)
    except ClickException as error:
        return error.format_message()
    return None


def _expand_variants(words: list[str]) -> Iterator[list[str]]:
    """Every command line that alternatives and brackets stand for."""
    bare = [word if " " in word else word.strip("[]") for word in words]
    choices = [word.split("|") if _ALTERNATIVES.fullmatch(word) else [word] for word in bare if word]
    # Alternatives are independent: each is tried once, beside the first of the others.
    yield [each[0] for each in choices]
    for place, each in enumerate(choices):
        for other in each[1:]:
            yield [other if index == place else choice[0] for index, choice in enumerate(choices)]


def _check(words: list[str], *, complete: bool) -> None:
    command: Any = load_application()
    context = Context(command, info_name="baleen")
    arguments = words
    while hasattr(command, "commands"):
        given, arguments, _ = _parse_arguments(command, context, arguments)
        if not arguments or _PLACEHOLDER.fullmatch(arguments[0]) or _is_exit(given):
            return
        name, command, arguments = command.resolve_command(context, arguments)
        context = Context(command, info_name=name, parent=context)
    given, extra, _ = _parse_arguments(command, context, arguments)
    if extra:
        context.fail(f"Got unexpected extra argument ({' '.join(extra)}).")
    for parameter in command.params:
        value = given.get(parameter.name)
        if value is None and parameter.required and complete and not _is_exit(given):
            context.fail(f"{parameter.get_error_hint()} is missing.")
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str) and not _PLACEHOLDER.fullmatch(each) and not _opens_file(parameter):
                parameter.get_runtime_param().coerce(
                    [each] if _takes_many(parameter) else each, param=parameter, ctx=context
                )


def _parse_arguments(command: Any, context: Context, arguments: list[str]) -> tuple[dict[str, Any], list[str], Any]:
    parser = command.make_parser(context)
    parser.allow_interspersed_args = not hasattr(command, "commands")
    given, extra, order = parser.parse_args(list(arguments))
    return given, extra, order


def _is_exit(given: dict[str, Any]) -> bool:
    return bool(given.get("help"))


def _takes_many(parameter: Any) -> bool:
    return bool(getattr(parameter, "multiple", False)) or parameter.nargs != 1


def _opens_file(parameter: Any) -> bool:
    """Whether a value is the name of a file that would be opened."""
    return parameter.type_descriptor.file_annotation is not None


def find_options() -> frozenset[str]:
    """Every option of every command."""
    return frozenset(_find_options(load_application()))


def _find_options(command: Any) -> Iterator[str]:
    for parameter in command.get_params(Context(command)):
        yield from (*parameter.opts, *parameter.secondary_opts)
    for each in getattr(command, "commands", {}).values():
        yield from _find_options(each)


def find_groups() -> frozenset[str]:
    """The commands that have commands below them: `pods`, `gc`."""
    return frozenset(name for name, each in load_application().commands.items() if hasattr(each, "commands"))


@cache
def load_application() -> Any:
    """The command `baleen`."""
    return get_command(_make_application())
