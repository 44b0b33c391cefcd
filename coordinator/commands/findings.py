"""Print a doctor's findings: first those to fix, then those that follow from them, then those that are proved.

Route: commands/doctor.py (a visit) and commands/pods.py (the last visit) -> `print_findings`.
A finding that merely follows from another has no fix of its own (doctor/results.py): all that follow from the same
one are printed in one line.
"""

import re
import sys
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from coordinator.commands.output import WIDTH, wrap_text
from coordinator.domain.findings import Finding, Result

#: Characters of the evidence of a proved check; --json has all of it.
SHORT_LENGTH = 2 * WIDTH - 20
#: A line of a fix that is prose; other lines are typed or pasted, and are not wrapped.
_SENTENCE_START = re.compile(r"\(|[A-Z][a-z]*,? ")


def print_findings(found: Sequence[Finding], *, with_proofs: bool) -> None:
    """Print findings. Of proved ones only the names are printed, unless `with_proofs`."""
    following: dict[str, list[str]] = {}
    for each in found:
        if each.result is Result.UNPROVED and not each.fix:
            following.setdefault(each.proof, []).append(each.check)
        elif each.result is not Result.PROVED:
            sys.stdout.write(f"\n{_format_finding(each)}\n")
    for proof, checks in following.items():
        sentence = f"{', '.join(checks)} {'is' if len(checks) == 1 else 'are'} {Result.UNPROVED}: {proof}"
        sys.stdout.write(f"\n{wrap_text(sentence, 2)}\n")
    proved = [each for each in found if each.result is Result.PROVED]
    if with_proofs:
        _print_proofs(proved)
    elif proved:
        names = ", ".join(each.check for each in proved)
        sys.stdout.write(f"\n{wrap_text(f'proved: {names}', 2)}\n")


def _format_finding(found: Finding) -> str:
    lines = [wrap_text(f"{found.check} is {found.result}: {found.meaning}", 2)]
    lines.append(f"  {wrap_text(f'evidence: {found.proof}', 4)}")
    return "\n".join([*lines, _format_fix(found)]) if found.fix else "\n".join(lines)


def _format_fix(found: Finding) -> str:
    lines = (wrap_text(line) if _SENTENCE_START.match(line) else line for line in found.fix.splitlines())
    return "\n".join(["  to fix it:", *lines])


def _print_proofs(proved: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    for each in proved:
        proof = textwrap.shorten(each.proof, SHORT_LENGTH, placeholder=" …")
        console.print(Text(f"\n{wrap_text(f'{each.check} is proved: {each.meaning}', 2)}"), soft_wrap=True)
        console.print(Text(f"  {wrap_text(f'evidence: {proof}', 4)}", style="dim"), soft_wrap=True)
        if each.fix:
            console.print(Text(_format_fix(each)), soft_wrap=True)
