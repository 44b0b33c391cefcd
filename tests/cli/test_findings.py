"""Findings as a command prints them."""

import pytest

from coordinator.commands.findings import print_findings
from coordinator.commands.output import wrap_text
from coordinator.domain.findings import Finding, Result

LONG = "It is so, and for the following reason among others, which is told at some length here: " * 3
JSON = '{"Version": "2012-10-17", "Statement": [' + '{"Effect": "Deny"}, ' * 10 + "]}"
FOUND = [
    Finding("versioned", Result.PROVED, LONG, "bucket b has versioning Enabled"),
    Finding("cannot-delete", Result.REFUTED, LONG, LONG, f"{LONG}\n{JSON}\n  indented:   as it is"),
    Finding("clocks", Result.UNPROVED, LONG, "not tried, since no event came: see `events-arrive`"),
    Finding("probes-arrive", Result.UNPROVED, LONG, "not tried, since no event came: see `events-arrive`"),
    Finding("same-root", Result.REFUTED, LONG, LONG, LONG),
]


@pytest.mark.parametrize("with_proofs", [True, False])
def test_what_is_not_proved_comes_first(capsys: pytest.CaptureFixture[str], with_proofs: bool) -> None:
    """Findings to repair come first and in whole, then those that follow from them in one line, then the proved ones;
    prose fits a hundred columns.
    """
    print_findings(FOUND, with_proofs=with_proofs)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert JSON in lines
    assert "  indented:   as it is" in lines
    assert "clocks, probes-arrive are unproved: not tried, since no event came: see `events-arrive`" in lines
    assert all(len(line) <= 100 for line in lines if line != JSON)
    order = [out.index(document) for document in ("cannot-delete is", "same-root is", "clocks, probes", "versioned")]
    assert order == sorted(order)
    assert " ".join(out.split()).count("It is so, and") == (21 if with_proofs else 18)
    assert ("evidence: bucket b has versioning Enabled" in out) == with_proofs
    assert ("proved: versioned" in lines) != with_proofs


def test_no_command_is_broken_in_two() -> None:
    """A line breaks before a command and not within it, so that it can be copied."""
    text = f"{'word ' * 17}`baleen pods set-registries team-a --registry URL` and more"
    assert wrap_text(text, 2).splitlines() == [
        ("word " * 17).strip(),
        "  `baleen pods set-registries team-a --registry URL` and more",
    ]
