"""One visit from its beginning to its end: make all checks, take everything away, write down what was found.

Invariants: whatever ends a visit, what it tried is taken away; what was found is written only by a visit that made all
its checks, and that knows at its end, when nobody is added any more, whom it has not reached; one doctor at a time is
with a pod.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

import structlog

from coordinator.doctor import table as findings
from coordinator.doctor.checks import CHECKS, OF_PROCESSES
from coordinator.doctor.scratch import clean_up_after
from coordinator.doctor.table import ExaminedPod
from coordinator.doctor.verdicts import finding, follows, unproved, without
from coordinator.doctor.visit import Instruments, Visit
from coordinator.domain.findings import OF_THE_KEY, Check, Finding, Verdict, checks, repeated
from coordinator.domain.findings import unproved as unproved_checks
from coordinator.domain.names import PodName
from coordinator.errors import BaleenError

log = structlog.get_logger()

#: The last that `Tell` hears.
TAKING_AWAY: Final = "taking everything away"
#: Hears what is done next. What it raises ends the visit, but for when everything is taken away.
Tell = Callable[[str], None]
#: Writes what was found, in the block of `findings.concluding`.
Conclude = Callable[[Any, ExaminedPod, Sequence[Finding]], None]


class Report(NamedTuple):
    """What a visit came to."""

    #: In the order of `Check`.
    findings: list[Finding]
    #: Sentences on what could not be taken away.
    left: list[str]

    @property
    def is_proved(self) -> bool:
        return all(found.verdict is Verdict.PROVED for found in self.findings)


def examine(instruments: Instruments, pod: PodName, tell: Tell = lambda what: None) -> Report:
    """Examine a pod; raises BaleenError, with nothing written, if it cannot even begin.

    Nor is anything written, and ConflictError raised, if the pod's registries were changed meanwhile.
    """
    with instruments.connections.use() as connection:
        examined = findings.examined(connection, pod)
        wanted = checks(managed=examined.managed)
        return _examined(instruments, examined, connection, wanted, findings.write, tell)


def examine_again(
    instruments: Instruments, pod: PodName, in_spite_of: Collection[str], tell: Tell = lambda what: None
) -> list[str]:
    """Examine a pod without its key, by its processes of now; return what is not proved, of what blocks GC.

    Only if that is nothing it counts as a visit: its processes are examined, and its findings take the place of the
    earlier ones, but for those of the key, which stay. Else only the failure is noted. Raises as `examine` does.
    """
    failed: list[str] = []

    def conclude(connection: Any, examined: ExaminedPod, found: Sequence[Finding]) -> None:
        failed[:] = unproved_checks(wanted, {each.check: each.verdict for each in found}, in_spite_of)
        if failed:
            findings.write_failed(connection, examined.name, failed)
        else:
            findings.write(connection, examined, found, kept=OF_THE_KEY)

    with instruments.connections.use() as connection:
        examined = findings.examined(connection, pod)
        wanted = repeated(managed=examined.managed)
        report = _examined(instruments, examined, connection, wanted, conclude, tell)
    for found in report.findings:
        if found.verdict is not Verdict.PROVED and found.check not in in_spite_of:
            log.warning("not proved of a pod", pod=pod, check=found.check, verdict=found.verdict, proof=found.proof)
    return failed


def _examined(
    instruments: Instruments,
    examined: ExaminedPod,
    connection: Any,
    wanted: Sequence[Check],
    conclude: Conclude,
    tell: Tell,
) -> Report:
    """Make these checks of the pod, take everything away, and conclude with what was found."""
    with findings.visiting(connection, examined):
        tell("what earlier visits left")
        if cleaned := clean_up_after(examined, instruments.store, instruments.connections):
            log.warning("a visit that was ended had left scratch repositories", pod=examined.name, repositories=cleaned)
        visit = Visit(instruments, examined)
        try:
            instruments.tail.begin()
            found = _all_checked(visit, wanted, tell)
        finally:
            tell(TAKING_AWAY)
            left = visit.clean()
            visit.close()
        with findings.concluding(connection, examined) as counting:
            # A process that sends no events is not known by name.
            unreached = sorted(counting - visit.reached) if examined.managed else []
            ordered = [
                without(found[check], unreached, visit.patient) if check in OF_PROCESSES else found[check]
                for check in wanted
            ]
            conclude(connection, examined, ordered)
    return Report(ordered, left)


def _all_checked(visit: Visit, wanted: Sequence[Check], tell: Tell) -> dict[Check, Finding]:
    found: dict[Check, Finding] = {}
    #: What ended a check, and which was the first.
    errors: dict[str, Check] = {}
    for check, examined in CHECKS.items():
        if check not in wanted:
            continue
        tell(check)
        try:
            found[check] = examined(visit)
        except BaleenError as error:
            first = errors.setdefault(str(error), check)
            part = (
                unproved("", str(error), f"Mend what it says, and run `baleen pods doctor {visit.pod.name}` again.")
                if first is check
                else follows("", "the same stood in its way", first)
            )
            found[check] = finding(check, [part], visit.patient)
    return found
