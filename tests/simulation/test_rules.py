"""Mutants switch rules off by the names that the code and docs/SAFETY.md have. Not here: that this is noticed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.rules import Rule, always, without

RULES = sorted({rule for mutant in MUTANTS.values() for rule in mutant.without}, key=lambda rule: rule.name)
SAFETY = (Path(__file__).parents[2] / "docs" / "SAFETY.md").read_text()
#: Number, and where the code enforces it.
NUMBERED = re.findall(r"^\| (\d+) [^|]+\|([^|]+)\|", SAFETY.partition("## Rule by rule")[2], re.MULTILINE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_code_has_each_rule_that_a_mutant_switches_off(rule: Rule) -> None:
    rule.find()


@pytest.mark.parametrize("name", ["NO_RULE", "NoClass.method", "Rule.no_method"])
def test_a_rule_that_the_code_does_not_have_cannot_be_switched_off(name: str) -> None:
    with pytest.raises(LookupError, match=name):
        without(Rule(sys.modules[Rule.__module__], name, always(None)))


def test_a_rule_is_switched_off_wherever_it_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ModuleType("coordinator.one"), ModuleType("coordinator.two")
    for module in (one, two):
        vars(module)["is_allowed"] = sorted
        monkeypatch.setitem(sys.modules, module.__name__, module)
    without(Rule(one, "is_allowed", always(value=True)))
    assert one.is_allowed()
    assert two.is_allowed()


@pytest.mark.parametrize(("number", "place"), NUMBERED)
def test_each_rule_of_safety_has_a_mutant_and_names_what_that_switches_off(number: str, place: str) -> None:
    dropped = {
        rule.name for mutant in MUTANTS.values() if mutant.name.startswith(f"{number}:") for rule in mutant.without
    }
    assert any(f"`{name}`" in place for name in dropped), f"rule {number}: mutants switch off {dropped or 'nothing'}"


def test_the_rules_of_safety_are_found() -> None:
    assert {"1", "17"} <= {number for number, _ in NUMBERED}
