"""Run one visit: make all checks, remove everything that the visit made, write the findings.

Invariants: however a visit ends, what it made is removed; findings are written only after all checks were made, under
a lock that lets no process be added, with the processes that the visit has not reached; a pod has one visit at a time.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

import structlog

from coordinator.doctor import table as findings
from coordinator.doctor.checks import CHECKS, CHECKS_OF_PROCESSES
from coordinator.doctor.results import add_unreached, make_finding, not_tried, unproved
from coordinator.doctor.scratch import clean_up_after
from coordinator.doctor.table import ExaminedPod
from coordinator.doctor.visit import Instruments, Visit
from coordinator.domain.findings import (
    KEY_CHECKS,
    Check,
    Finding,
    Result,
    checks_of_pod,
    describe_unproved,
    repeated_checks,
)
from coordinator.domain.names import PodName
from coordinator.errors import BaleenError

log = structlog.get_logger()

#: The last step that `OnStep` gets.
REMOVING: Final = "removing all scratch data"
#: Gets the name of the next step. An error that it raises ends the visit, except while everything is removed.
OnStep = Callable[[str], None]
#: Writes the findings, in the block of `lock_processes`.
Conclude = Callable[[Any, ExaminedPod, Sequence[Finding]], None]


class VisitReport(NamedTuple):
    """The result of a visit."""

    #: In the order of `Check`.
    findings: list[Finding]
    #: Sentences about what could not be removed.
    problems: list[str]

    @property
    def is_proved(self) -> bool:
        return all(found.result is Result.PROVED for found in self.findings)


def examine(instruments: Instruments, pod: PodName, on_step: OnStep = lambda what: None) -> VisitReport:
    """Examine a pod, and write the findings. Raises BaleenError, and writes nothing, if the visit cannot begin.

    Raises ConflictError, and writes nothing, if the pod's registries were changed meanwhile.
    """
    with instruments.connections.use() as connection:
        examined = findings.read_pod(connection, pod)
        wanted = checks_of_pod(examined.kind, managed=examined.managed)
        return _run_visit(instruments, examined, connection, wanted, findings.write_findings, on_step)


def examine_again(
    instruments: Instruments, pod: PodName, unsafe_findings: Collection[str], on_step: OnStep = lambda what: None
) -> list[str]:
    """Examine a pod's present processes without its key; return what is not proved and blocks GC.

    If that is nothing, it counts as a visit: the processes are examined, and the findings replace the earlier ones,
    except those of the key. Else only the failure is written. Raises as `examine` does.
    """
    failed: list[str] = []

    def conclude(connection: Any, examined: ExaminedPod, found: Sequence[Finding]) -> None:
        failed[:] = describe_unproved(wanted, {each.check: each.result for each in found}, unsafe_findings)
        if failed:
            findings.write_failed_visit(connection, examined.name, failed)
        else:
            findings.write_findings(connection, examined, found, kept=KEY_CHECKS)

    with instruments.connections.use() as connection:
        examined = findings.read_pod(connection, pod)
        wanted = repeated_checks(examined.kind, managed=examined.managed)
        report = _run_visit(instruments, examined, connection, wanted, conclude, on_step)
    for found in report.findings:
        if found.result is not Result.PROVED and found.check not in unsafe_findings:
            log.warning("check is not proved", pod=pod, check=found.check, result=found.result, proof=found.proof)
    return failed


def _run_visit(
    instruments: Instruments,
    examined: ExaminedPod,
    connection: Any,
    wanted: Sequence[Check],
    conclude: Conclude,
    on_step: OnStep,
) -> VisitReport:
    """Make these checks of the pod, remove everything that the visit made, and conclude with the findings."""
    with findings.lock_visits(connection, examined):
        on_step("removing what earlier visits left")
        if cleaned := clean_up_after(examined, instruments.store, instruments.connections):
            log.warning("removed scratch repositories of an earlier visit", pod=examined.name, repositories=cleaned)
        visit = Visit(instruments, examined)
        try:
            instruments.tail.begin()
            visit.clean_registry()
            found = _run_checks(visit, wanted, on_step)
        finally:
            on_step(REMOVING)
            left = visit.clean()
            visit.close()
        with findings.lock_processes(connection, examined) as counting:
            # Without events, no process of the registry is known by name.
            unreached = sorted(counting - visit.reached) if examined.managed else []
            ordered = [
                add_unreached(found[check], unreached, visit.pod_facts)
                if check in CHECKS_OF_PROCESSES
                else found[check]
                for check in wanted
            ]
            conclude(connection, examined, ordered)
    return VisitReport(ordered, left)


def _run_checks(visit: Visit, wanted: Sequence[Check], on_step: OnStep) -> dict[Check, Finding]:
    found: dict[Check, Finding] = {}
    #: Errors that ended a check, each with the first such check.
    errors: dict[str, Check] = {}
    for check, examined in CHECKS.items():
        if check not in wanted:
            continue
        on_step(check)
        try:
            found[check] = examined(visit)
        except BaleenError as error:
            first = errors.setdefault(str(error), check)
            part = (
                unproved(
                    "", str(error), f"Fix what the error says, and run `baleen pods doctor {visit.pod.name}` again."
                )
                if first is check
                else not_tried("", "the same error prevented it", first)
            )
            found[check] = make_finding(check, [part], visit.pod_facts)
    return found
