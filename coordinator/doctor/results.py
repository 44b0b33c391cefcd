"""Join the parts of a check, one for each place where it was tried, into a finding. Pure.

One check explains a problem that prevents several. The parts of the other checks (`follows`) are one sentence that
refers to it, without a repair of their own.
"""

from collections.abc import Sequence
from typing import NamedTuple

from coordinator.doctor.texts import TEXTS, Patient, set_registries
from coordinator.domain.findings import Check, Finding, Verdict

#: Places that a proof describes, and processes that it names; the others are counted.
SHOWN = 12
NAMED = 3
#: Characters of one part: an error may repeat what a registry answered.
LENGTH = 600
#: The repair for an error that prevented an experiment, where no check knows the cause.
AGAIN = "Fix what this error and the registry's log say; then run `baleen pods doctor` again."

_ORDER = (Verdict.REFUTED, Verdict.UNPROVED, Verdict.PROVED)


class Part(NamedTuple):
    """The result of a check in one place."""

    #: An address, a key, a topic; empty if the check has only one part.
    where: str
    verdict: Verdict
    #: The evidence, with figures.
    sentence: str
    #: The repair, in place of that of the check's texts; empty if another check explains it.
    mend: str | None = None


def finding(
    check: Check, parts: Sequence[Part], patient: Patient, *, meaning: str | None = None, mend: str | None = None
) -> Finding:
    """Join the parts. The worst of them is the result, and comes first. Without parts the check is unproved.

    `meaning` and `mend` replace those of the check's texts, `mend` also where all is proved.
    """
    if not parts:
        parts = [follows("", "no process of the registry answers", Check.REGISTRY_ANSWERS)]
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
    """Join the places with the same sentence, where there is nothing to repair."""
    places: dict[Part, list[str]] = {}
    for part in parts:
        key = part._replace(where="") if part.mend == "" else part
        places.setdefault(key, []).append(part.where)
    return [
        part._replace(where=", ".join(dict.fromkeys(each for each in where if each))) for part, where in places.items()
    ]


def without(found: Finding, unreached: Sequence[str], patient: Patient) -> Finding:
    """Return a finding about processes as it is if these unreached processes count too."""
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
        f"process {each}: it counts for the watermark, and the doctor did not reach it" for each in unreached[:SHOWN]
    )
    if len(unreached) > SHOWN:
        told += f"; and {len(unreached) - SHOWN} more"
    retire = "\n".join(f"baleen pods retire-source {patient.pod} {each} --why …" for each in unreached[:SHOWN])
    mend = (
        "List its address too. Replace URL by it (Baleen does not know where the process listens):\n"
        f"{set_registries(patient, patient.registries, 'URL')}\n"
        f"Or, if you have seen that the process ended, retire it, and say how you know:\n{retire}"
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
    """Return a part that was not tried, or not to its end, because of a problem that check `cause` explains."""
    return unproved(where, f"not tried, since {why}: see `{cause}`", mend="")
