"""One visit from its beginning to its end: make all checks, take everything away, write down what was found.

Invariants: whatever ends a visit, what it tried is taken away; what was found is written only by a visit that made all
its checks, and that knows at its end, when nobody is added any more, whom it has not reached; one doctor at a time is
with a pod.
"""

from collections.abc import Callable
from typing import NamedTuple

import structlog

from coordinator.db import findings
from coordinator.domain.findings import Check, Finding, Verdict, checks
from coordinator.domain.names import PodName
from coordinator.errors import BaleenError
from coordinator.pods.doctor.checks import CHECKS, OF_PROCESSES
from coordinator.pods.doctor.scratch import clean_up_after
from coordinator.pods.doctor.verdicts import finding, follows, unproved, without
from coordinator.pods.doctor.visit import Instruments, Visit

log = structlog.get_logger()

#: Hears what is done next.
Tell = Callable[[str], None]


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
        with findings.visiting(connection, examined):
            tell("what earlier visits left")
            if cleaned := clean_up_after(examined, instruments.store, instruments.connections):
                log.warning("a visit that was ended had left scratch repositories", pod=pod, repositories=cleaned)
            visit = Visit(instruments, examined)
            try:
                instruments.tail.begin()
                found = _all_checked(visit, tell)
            finally:
                tell("taking everything away")
                left = visit.clean()
                visit.close()
            with findings.concluding(connection, examined) as counting:
                # A process that sends no events is not known by name.
                unreached = sorted(counting - visit.reached) if examined.managed else []
                ordered = [
                    without(found[check], unreached, visit.patient) if check in OF_PROCESSES else found[check]
                    for check in checks(managed=examined.managed)
                ]
                findings.write(connection, examined, ordered)
    return Report(ordered, left)


def _all_checked(visit: Visit, tell: Tell) -> dict[Check, Finding]:
    found: dict[Check, Finding] = {}
    #: What ended a check, and which was the first.
    errors: dict[str, Check] = {}
    wanted = checks(managed=visit.pod.managed)
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
