"""Switch off a safety rule of Baleen by the name that it has in the code.

A rule is a condition of SQL, a function or a method. Without it the same name stands for what lets everything pass, or
for something weaker. A name that the code does not have is an error. Not here: which rules there are (mutants.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A rule, and what stands in its place without it."""

    module: ModuleType
    #: In the module: `NAME`, `function`, `Class.method`.
    name: str
    #: Makes, from what has the name, what stands in its place.
    weaken: Callable[[Any], Any]

    def find(self) -> tuple[Any, str, Any]:
        """Return what has the name as an attribute, the attribute, and its value; raises LookupError."""
        *path, attribute = self.name.split(".")
        owner: Any = self.module
        for part in path:
            owner = vars(owner).get(part)
        if owner is None or attribute not in vars(owner):
            raise LookupError(f"{self.module.__name__} has no {self.name}: which rule took its place?")
        return owner, attribute, vars(owner)[attribute]


def always(value: object) -> Callable[[Any], Any]:
    """For a function: it returns this, whatever it is given."""
    return lambda _: lambda *_, **__: value


def instead(condition: str) -> Callable[[Any], Any]:
    """For SQL: this stands in its place."""
    return lambda _: condition


def without(rule: Rule) -> None:
    """Switch a rule off in this process, for good; raises LookupError."""
    owner, attribute, original = rule.find()
    weaker = rule.weaken(original)
    setattr(owner, attribute, weaker)
    for name, module in list(sys.modules.items()):
        if name.startswith("coordinator.") and vars(module).get(attribute) is original:
            setattr(module, attribute, weaker)
