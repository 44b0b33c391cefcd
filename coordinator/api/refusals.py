"""Describe what a call takes, for a parameter or field with an invalid value.

Route: problems.py gets a refusal of the framework -> `describe_refusal` finds the parameter or field in the handler's
types, and describes its valid values. The value that was sent is not repeated: it may be a secret.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_FIELD_PATH = re.compile(r"([A-Za-z_]+)((?:\[[0-9.]*\])?)")
_BODY = "data"


class _Type(NamedTuple):
    """A type with its annotations: bounds, a description, the name that clients use."""

    kind: Any
    marks: Sequence[Any] = ()

    def find_mark(self, name: str) -> Any:
        return next((found for mark in self.marks if (found := getattr(mark, name, None)) is not None), None)


def hints_of(handler: Any) -> dict[str, Any]:
    """Return the types of a handler's parameters; one that blocks is wrapped by the framework."""
    return get_type_hints(getattr(handler, "func", handler), include_extras=True)


def describe_refusal(handler: Any, complaints: Sequence[Any]) -> str:
    """Describe the valid values for each invalid parameter or field; empty if there is nothing to say."""
    hints = hints_of(handler)
    return " ".join(dict.fromkeys(sentence for each in complaints if (sentence := _describe(hints, each))))


def _describe(hints: Mapping[str, Any], complaint: Any) -> str | None:
    place = str(complaint.get("key") or "") if isinstance(complaint, Mapping) else ""
    body = _unwrap(hints[_BODY]).kind if _BODY in hints else None
    if body is not None and place == _BODY:
        return _describe_body(_fields_of(body), str(complaint.get("message")))
    match = _FIELD_PATH.fullmatch(place)
    known = hints if body is None or complaint.get("source") != "body" else _fields_of(body)
    if match is None or match[1] not in known:
        return None
    expected = _unwrap(known[match[1]])
    name = expected.find_mark("name") or match[1]
    if match[2] and get_origin(expected.kind) is list:
        return f"Each of `{name}` must be {_describe_type(_unwrap(get_args(expected.kind)[0]))}."
    return f"`{name}` must be {_describe_type(expected)}."


def _describe_body(fields: Mapping[str, Any], message: str) -> str:
    """Describe a body with missing or unknown fields, or one that is not an object."""
    quoted = re.search(r"field `([^`]{1,100})`", message)
    if quoted is not None and quoted[1] in fields:
        return f"`{quoted[1]}` is missing: it must be {_describe_type(_unwrap(fields[quoted[1]]))}."
    names = ", ".join(fields)
    if quoted is not None:
        return f"`{quoted[1]}` is not a field of this call: it takes {names}."
    return f"The body must be a JSON object: it takes {names}."


def _fields_of(body: Any) -> Mapping[str, Any]:
    return get_type_hints(body, include_extras=True) if isinstance(body, type) else {}


def _unwrap(hint: Any) -> _Type:
    """Unwrap annotations and `| None`."""
    marks: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks = more + marks
        elif get_origin(hint) in {Union, UnionType} and len(kinds := _without_none(hint)) == 1:
            hint = kinds[0]
        elif hasattr(hint, "__value__"):
            hint = hint.__value__
        else:
            return _Type(hint, marks)


def _without_none(hint: Any) -> list[Any]:
    return [kind for kind in get_args(hint) if kind is not NoneType]


def _describe_type(expected: _Type) -> str:
    kind = expected.kind
    if choices := list(_choices_of(kind)):
        return f"one of {', '.join(choices)}"
    if expected.find_mark("pattern") is not None and (described := expected.find_mark("description")) is not None:
        return str(described).rstrip(".")
    least, most = expected.find_mark("min_length"), expected.find_mark("max_length")
    known = {
        bool: "true or false",
        int: f"a whole number{_describe_range(expected.find_mark('ge'), expected.find_mark('le'), '')}",
        str: f"text{_describe_range(least, most, ' characters', ' of')}",
        list: f"a list{_describe_range(least, most, ' items', ' of')}",
    }
    return known.get(get_origin(kind) or kind, "a JSON object")


def _choices_of(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        yield from (str(each.value) for each in kind)


def _describe_range(minimum: int | None, maximum: int | None, unit: str, of: str = "") -> str:
    if minimum is not None and maximum is not None:
        return f"{of or ' from'} {minimum} to {maximum}{unit}"
    if maximum is not None:
        return f"{of} up to {maximum}{unit}"
    return "" if minimum is None else f"{of} {minimum}{unit} or more"
