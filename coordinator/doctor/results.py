"""Join the parts of a check, one for each place where it was tried, into a finding. Pure.

One check explains a problem that prevents several. The parts of the other checks (`not_tried`) are one sentence that
refers to it, without a repair of their own.
"""

from collections.abc import Sequence
from typing import NamedTuple

from coordinator.doctor.texts import TEXTS, PodFacts, set_registries_command
from coordinator.domain.findings import Check, Finding, Result

#: Places that a proof describes, and processes that it names; the others are counted.
PARTS_SHOWN = 12
NAMED = 3
#: Characters of one part: an error may repeat what a registry answered.
PROOF_LENGTH = 600
#: The repair for an error that prevented an experiment, where no check knows the cause.
RUN_AGAIN = "Fix what this error and the registry's log say; then run `baleen pods doctor` again."

_ORDER = (Result.REFUTED, Result.UNPROVED, Result.PROVED)


class Part(NamedTuple):
    """The result of a check in one place."""

    #: An address, a key, a topic; empty if the check has only one part.
    where: str
    result: Result
    #: The evidence, with figures.
    sentence: str
    #: The repair, in place of that of the check's texts; empty if another check explains it.
    fix: str | None = None


def make_finding(
    check: Check, parts: Sequence[Part], pod_facts: PodFacts, *, meaning: str | None = None, fix: str | None = None
) -> Finding:
    """Join the parts. The worst of them is the result, and comes first. Without parts the check is unproved.

    `meaning` and `fix` replace those of the check's texts, `fix` also where all is proved.
    """
    if not parts:
        parts = [not_tried("", "no process of the registry answers", Check.REGISTRY_ANSWERS)]
    texts = TEXTS[check]
    found = sorted(_group_parts(parts), key=lambda part: _ORDER.index(part.result))
    result = found[0].result
    sentences = [f"{part.where}: {part.sentence}" if part.where else part.sentence for part in found[:PARTS_SHOWN]]
    if len(found) > PARTS_SHOWN:
        sentences.append(f"and {len(found) - PARTS_SHOWN} more")
    wrong = [part for part in found if part.result is not Result.PROVED]
    fixes = [texts.fix(pod_facts) if part.fix is None else part.fix for part in wrong] if fix is None else [fix]
    return Finding(
        check,
        result,
        meaning or texts.describe_result(result),
        "; ".join(sentence[:PROOF_LENGTH] for sentence in sentences),
        "\n".join(dict.fromkeys(each for each in fixes if each)),
    )


def _group_parts(parts: Sequence[Part]) -> list[Part]:
    """Join the places with the same sentence, where there is nothing to repair."""
    places: dict[Part, list[str]] = {}
    for part in parts:
        key = part._replace(where="") if part.fix == "" else part
        places.setdefault(key, []).append(part.where)
    return [
        part._replace(where=", ".join(dict.fromkeys(each for each in where if each))) for part, where in places.items()
    ]


def add_unreached(found: Finding, unreached: Sequence[str], pod_facts: PodFacts) -> Finding:
    """Return a finding about processes as it is if these unreached processes count too."""
    if not unreached:
        return found
    if found.check == Check.PROCESSES_REACHED:
        return _add_unreached_processes(found, unreached, pod_facts)
    if found.result is Result.UNPROVED and not found.fix:
        return found
    named = ", ".join(unreached[:NAMED]) + (f" and {len(unreached) - NAMED} more" if len(unreached) > NAMED else "")
    untried = f"not tried with process {named}: see `{Check.PROCESSES_REACHED}`"
    if found.result is not Result.PROVED:
        return found._replace(proof=f"{found.proof}; {untried}")
    meaning = TEXTS[Check(found.check)].describe_result(Result.UNPROVED)
    proof = f"{untried}; elsewhere it is proved"
    return found._replace(result=Result.UNPROVED, meaning=meaning, proof=proof, fix="")


def _add_unreached_processes(found: Finding, unreached: Sequence[str], pod_facts: PodFacts) -> Finding:
    untried = "; ".join(
        f"process {each}: it counts for the watermark, and the doctor did not reach it"
        for each in unreached[:PARTS_SHOWN]
    )
    if len(unreached) > PARTS_SHOWN:
        untried += f"; and {len(unreached) - PARTS_SHOWN} more"
    retire = "\n".join(f"baleen pods retire-process {pod_facts.pod} {each} --why …" for each in unreached[:PARTS_SHOWN])
    fix = (
        "List its address too. Replace URL by it (Baleen does not know where the process listens):\n"
        f"{set_registries_command(pod_facts, pod_facts.registries, 'URL')}\n"
        f"Or, if you have seen that the process ended, retire it, and say how you know:\n{retire}"
    )
    if found.result is Result.PROVED:
        meaning = TEXTS[Check.PROCESSES_REACHED].describe_result(Result.UNPROVED)
        return found._replace(result=Result.UNPROVED, meaning=meaning, proof=f"{untried}; {found.proof}", fix=fix)
    return found._replace(proof=f"{found.proof}; {untried}", fix=f"{found.fix}\n{fix}".strip())


def proved(where: str, sentence: str) -> Part:
    return Part(where, Result.PROVED, sentence)


def refuted(where: str, sentence: str, fix: str | None = None) -> Part:
    return Part(where, Result.REFUTED, sentence, fix)


def unproved(where: str, sentence: str, fix: str | None = None) -> Part:
    return Part(where, Result.UNPROVED, sentence, fix)


def not_tried(where: str, why: str, cause: Check) -> Part:
    """Return a part that was not tried, or not to its end, because of a problem that check `cause` explains."""
    return unproved(where, f"not tried, since {why}: see `{cause}`", fix="")
