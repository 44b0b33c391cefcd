"""Define the doctor's checks and findings, and say which findings block garbage collection.

Each check is one thing that garbage collection relies on. GC is blocked by each check that is not *proved*: one that is
refuted, one that could not be carried out, and one that no visit has made (none came, or it ran a release without the
check). A proof covers the processes that the visit met. One that began later, or came back, is not examined until the
next visit, an operator's or the scheduler's own (doctor/reexamination.py).
Not here: the experiments (coordinator/doctor), the rows (doctor/table.py).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from coordinator.domain.pods import PodKind


class Result(StrEnum):
    PROVED = "proved"
    #: An experiment showed the contrary.
    REFUTED = "refuted"
    #: No experiment could be carried out, or none to its end.
    UNPROVED = "unproved"


class Check(StrEnum):
    """The checks, in the order of a visit. The values are fixed: rows have them and scripts use them."""

    REGISTRY_ANSWERS = "registry-answers"
    PROCESSES_REACHED = "processes-reached"
    KAFKA_DURABLE = "kafka-durable"
    VERSIONED = "versioned"
    REPOSITORIES_OWNED = "repositories-owned"
    EVENTS_ARRIVE = "events-arrive"
    REFERENCES_ARRIVE = "references-arrive"
    EVENTS_IN_ORDER = "events-in-order"
    PROBES_ARRIVE = "probes-arrive"
    SAME_ROOT = "same-root"
    REGISTRY_DATABASE = "registry-database"
    REGISTRY_GC_OFF = "registry-gc-off"
    LOCK_FILE = "lock-file"
    CLOCKS = "clocks"
    UPLOAD_SECRET = "upload-secret"  # noqa: S105 - a name
    NO_DESCRIPTOR_CACHE = "no-descriptor-cache"
    CANNOT_DELETE = "cannot-delete"
    OTHERS_CLOSED = "others-closed"
    QUARANTINE_CLOSED = "quarantine-closed"
    BUCKET_CLOSED = "bucket-closed"
    DELETES_ARRIVE = "deletes-arrive"


#: Checks made with the key of the pod's registry. Each tests lines of that key's policy (pods/policy.py).
KEY_CHECKS = frozenset({Check.CANNOT_DELETE, Check.OTHERS_CLOSED, Check.QUARANTINE_CLOSED, Check.BUCKET_CLOSED})


#: Checks whose findings block nothing: each run checks again, and is blocked by what it finds (domain/perimeter.py).
CHECKS_OF_RUNS: Final = frozenset({Check.REPOSITORIES_OWNED})


def implied_checks(named: Collection[str]) -> frozenset[str]:
    """Return the checks that `settings.unsafe_findings` names: `cannot-delete` implies all that use the registry's key.

    A registry whose key may delete blobs has Baleen's key, or one as powerful: then none of the others can be proved.
    """
    return frozenset(named) | (KEY_CHECKS if Check.CANNOT_DELETE in named else frozenset())


#: The checks of a pod whose registry sends no events.
UNMANAGED_CHECKS: Final = frozenset(
    {
        Check.REGISTRY_ANSWERS,
        Check.VERSIONED,
        Check.REPOSITORIES_OWNED,
        Check.SAME_ROOT,
        Check.UPLOAD_SECRET,
        Check.NO_DESCRIPTOR_CACHE,
    }
    | KEY_CHECKS
)


#: Checks that only pods of one kind need.
CHECKS_OF_KIND: Final = {
    PodKind.GITLAB: frozenset({Check.REGISTRY_DATABASE, Check.REGISTRY_GC_OFF, Check.LOCK_FILE}),
}
_OF_SOME_KIND: Final = frozenset().union(*CHECKS_OF_KIND.values())


def checks_of_pod(kind: PodKind, *, managed: bool) -> list[Check]:
    """Return the checks of a pod, in the order of a visit; `managed`: its registry sends events."""
    own = CHECKS_OF_KIND.get(kind, frozenset())
    return [
        check
        for check in Check
        if check in own or (check not in _OF_SOME_KIND and (managed or check in UNMANAGED_CHECKS))
    ]


class Finding(NamedTuple):
    """The result of one check."""

    check: str
    result: Result
    #: What the result means for the pod, in a sentence for the operator.
    meaning: str
    #: The evidence, with figures.
    proof: str
    #: What to change and where, so that it can be proved; empty where there is nothing to repair.
    fix: str = ""
    #: By the database's clock; None until it is written.
    found_at: datetime | None = None
    #: The identity of what was proved, where that has to stay the same: of `registry-database`, the database's. In the
    #: table it outlives the proof.
    subject: str = ""


def sort_findings(found: Iterable[Finding]) -> list[Finding]:
    """Put findings into the order of the checks; those of checks that this release does not know come last."""
    places = {str(check): place for place, check in enumerate(Check)}
    return sorted(found, key=lambda each: (places.get(each.check, len(places)), each.check))


class FailedVisit(NamedTuple):
    """The scheduler's own visit to unexamined processes, which did not prove every check it makes."""

    at: datetime
    #: What was not proved, or why the visit did not end.
    why: Sequence[str]


def repeated_checks(kind: PodKind, *, managed: bool) -> list[Check]:
    """Return the checks that the scheduler makes of processes that began or came back: all without the pod's key.

    Checks with that key involve no process, and keep the result of the last visit that had the key.
    """
    return [check for check in checks_of_pod(kind, managed=managed) if check not in KEY_CHECKS]


def describe_unproved(
    wanted: Iterable[Check], found: Mapping[str, Result], unsafe_findings: Collection[str] = ()
) -> list[str]:
    """Return a phrase for each of these checks that is not proved and so blocks garbage collection."""
    return [
        f"{check} is {result or 'not examined'}"
        for check in wanted
        if check not in CHECKS_OF_RUNS
        and (result := found.get(check)) is not Result.PROVED
        and not (result and check in unsafe_findings)
    ]


def describe_block(
    found: Mapping[str, Result],
    pod: str,
    newer: int = 0,
    unsafe_findings: Collection[str] = (),
    *,
    kind: PodKind = PodKind.LINK,
    managed: bool = True,
    failed: FailedVisit | None = None,
) -> str | None:
    """Return why the doctor's findings block GC for the pod; None if every check that counts is proved.

    `newer`: processes of its registry that sent their first event after the visit, or were recorded as gone and came
    back: they may be configured differently.
    `unsafe_findings`: checks that block nothing, whatever a visit found (settings.unsafe_findings); there must have
    been a visit all the same.
    `kind`: some kinds have checks of their own.
    `managed`: its registry sends events. If it does not, checks about events are not required.
    `failed`: the scheduler's own visit to the newer processes, if it did not prove every check it made.
    """
    if not found:
        return f"never examined: it is not proved that GC is safe for its registry, run `baleen pods doctor {pod}`"
    reasons = describe_unproved(checks_of_pod(kind, managed=managed), found, unsafe_findings)
    if newer:
        reasons.append(
            f"{_format_count(newer)} of its registry began or came back after the visit, and {_describe_visit(failed)}"
        )
    if not reasons:
        return None
    return f"doctor: {', '.join(reasons)}: run `baleen pods doctor {pod}`, which says what to repair"


def _format_count(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def _describe_visit(failed: FailedVisit | None) -> str:
    if failed is None:
        return "the scheduler has not examined this yet"
    return f"the scheduler's own visit at {failed.at:%Y-%m-%d %H:%M:%S} UTC found: {', '.join(failed.why)}"
