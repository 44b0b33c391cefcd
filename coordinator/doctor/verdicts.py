"""How the parts of a check, one for each place where it was tried, become a finding. Pure.

What stands in the way of many checks is told in whole by one of them: a part of another that merely follows from it
(`follows`) is one sentence that refers to it, and has nothing of its own to mend.
"""

from collections.abc import Sequence
from typing import NamedTuple

from coordinator.doctor.texts import TEXTS, Patient, set_registries
from coordinator.domain.findings import Check, Finding, Verdict

#: Places that a proof tells of, and processes that are named; the others are counted.
SHOWN = 12
NAMED = 3
#: Of one part: an error may repeat what a registry said.
LENGTH = 600
#: What mends a thing that was in the way of an experiment, and is no matter of configuration that a check knows.
AGAIN = "What it says, and the registry's log, tell what to mend; then run `baleen pods doctor` again."

_ORDER = (Verdict.REFUTED, Verdict.UNPROVED, Verdict.PROVED)


class Part(NamedTuple):
    """What a check came to in one place."""

    #: An address, a key, a topic; empty if the check has only one part.
    where: str
    verdict: Verdict
    #: How it was found out, with figures.
    sentence: str
    #: What mends it, in place of what the check's texts say; empty if that is told elsewhere.
    mend: str | None = None


def finding(
    check: Check, parts: Sequence[Part], patient: Patient, *, meaning: str | None = None, mend: str | None = None
) -> Finding:
    """Join the parts: the worst of them is the verdict, and stands first. No part is no proof.

    `meaning` and `mend` stand in place of those of the check's texts, and `mend` also where all is proved.
    """
    if not parts:
        parts = [follows("", "no process of the registry can be asked", Check.REGISTRY_ANSWERS)]
    texts = TEXTS[check]
    found = sorted(_grouped(parts), key=lambda part: _ORDER.index(part.verdict))
    verdict = found[0].verdict
    sentences = [f"{part.where}: {part.sentence}" if part.where else part.sentence for part in found[:SHOWN]]
    if len(found) > SHOWN:
        sentences.append(f"and {len(found) - SHOWN} more")
    wrong = [part for part in found if part.verdict is not Verdict.PROVED]
    mends = [texts.mend(patient) if part.mend is None else part.mend for part in wrong] if mend is None else [mend]
    return Finding(
        check,
        verdict,
        meaning or texts.meaning(verdict),
        "; ".join(sentence[:LENGTH] for sentence in sentences),
        "\n".join(dict.fromkeys(each for each in mends if each)),
    )


def _grouped(parts: Sequence[Part]) -> list[Part]:
    """Places of which the same is to be said are told together, where there is nothing to mend."""
    places: dict[Part, list[str]] = {}
    for part in parts:
        key = part._replace(where="") if part.mend == "" else part
        places.setdefault(key, []).append(part.where)
    return [
        part._replace(where=", ".join(dict.fromkeys(each for each in where if each))) for part, where in places.items()
    ]


def without(found: Finding, unreached: Sequence[str], patient: Patient) -> Finding:
    """Of a finding about processes, what is left of it if these count, too, and it is not about them."""
    if not unreached:
        return found
    if found.check == Check.PROCESSES_REACHED:
        return _unreached(found, unreached, patient)
    if found.verdict is Verdict.UNPROVED and not found.mend:
        return found
    named = ", ".join(unreached[:NAMED]) + (f" and {len(unreached) - NAMED} more" if len(unreached) > NAMED else "")
    told = f"not tried with process {named}: see `{Check.PROCESSES_REACHED}`"
    if found.verdict is not Verdict.PROVED:
        return found._replace(proof=f"{found.proof}; {told}")
    meaning = TEXTS[Check(found.check)].meaning(Verdict.UNPROVED)
    proof = f"{told}; elsewhere it is proved"
    return found._replace(verdict=Verdict.UNPROVED, meaning=meaning, proof=proof, mend="")


def _unreached(found: Finding, unreached: Sequence[str], patient: Patient) -> Finding:
    told = "; ".join(
        f"process {each}: it counts for the watermark, and the visit did not reach it" for each in unreached[:SHOWN]
    )
    if len(unreached) > SHOWN:
        told += f"; and {len(unreached) - SHOWN} more"
    retire = "\n".join(f"baleen pods retire-source {patient.pod} {each} --why …" for each in unreached[:SHOWN])
    mend = (
        "List its address too, in place of URL (where it listens Baleen does not know):\n"
        f"{set_registries(patient, patient.registries, 'URL')}\n"
        f"Or, once you have seen it end, say so, and how you know:\n{retire}"
    )
    if found.verdict is Verdict.PROVED:
        meaning = TEXTS[Check.PROCESSES_REACHED].meaning(Verdict.UNPROVED)
        return found._replace(verdict=Verdict.UNPROVED, meaning=meaning, proof=f"{told}; {found.proof}", mend=mend)
    return found._replace(proof=f"{found.proof}; {told}", mend=f"{found.mend}\n{mend}".strip())


def proved(where: str, sentence: str) -> Part:
    return Part(where, Verdict.PROVED, sentence)


def refuted(where: str, sentence: str, mend: str | None = None) -> Part:
    return Part(where, Verdict.REFUTED, sentence, mend)


def unproved(where: str, sentence: str, mend: str | None = None) -> Part:
    return Part(where, Verdict.UNPROVED, sentence, mend)


def follows(where: str, why: str, cause: Check) -> Part:
    """It was not tried, or not to its end, for what another check tells in whole."""
    return unproved(where, f"not tried, since {why}: see `{cause}`", mend="")
