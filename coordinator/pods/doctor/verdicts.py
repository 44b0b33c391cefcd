"""How the parts of a check, one for each place where it was tried, become a finding. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from coordinator.domain.findings import Check, Finding, Verdict
from coordinator.pods.doctor.texts import TEXTS

#: Places that a proof tells of; the others are counted.
SHOWN = 12
#: Of one part: an error may repeat what a registry said.
LENGTH = 600

_ORDER = (Verdict.REFUTED, Verdict.UNPROVED, Verdict.PROVED)


class Part(NamedTuple):
    """What a check came to in one place."""

    #: An address, a key, a topic; empty if the check has only one part.
    where: str
    verdict: Verdict
    #: How it was found out, with figures.
    sentence: str


def finding(check: Check, parts: Sequence[Part], *, meaning: str | None = None, mend: str | None = None) -> Finding:
    """Join the parts: the worst of them is the verdict, and stands first. No part is no proof.

    `meaning` and `mend` stand in place of those of the check's texts.
    """
    texts = TEXTS[check]
    found = sorted(parts, key=lambda part: _ORDER.index(part.verdict))
    verdict = found[0].verdict if found else Verdict.UNPROVED
    sentences = [f"{part.where}: {part.sentence}" if part.where else part.sentence for part in found[:SHOWN]]
    if len(found) > SHOWN:
        sentences.append(f"and {len(found) - SHOWN} more")
    return Finding(
        check,
        verdict,
        meaning or texts.meaning(verdict),
        "; ".join(sentence[:LENGTH] for sentence in sentences) or "nowhere could it be tried: see registry-answers",
        "" if verdict is Verdict.PROVED and mend is None else texts.mend if mend is None else mend,
    )


def proved(where: str, sentence: str) -> Part:
    return Part(where, Verdict.PROVED, sentence)


def refuted(where: str, sentence: str) -> Part:
    return Part(where, Verdict.REFUTED, sentence)


def unproved(where: str, sentence: str) -> Part:
    return Part(where, Verdict.UNPROVED, sentence)
