"""What a doctor's visit may find out about a pod, and what of it keeps garbage collection away.

Each check is one thing that garbage collection relies on. What is not *proved* holds it: a check that is refuted, one
that could not be carried out, and one that no visit has made, be it that none came or that it was of a release
without the check. A proof is of the processes that were met: one that began later, or came back, is not examined until
a visit is of it, an operator's or the scheduler's own (doctor/again.py).
Not here: the experiments (coordinator/doctor), the rows (doctor/table.py).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple


class Verdict(StrEnum):
    PROVED = "proved"
    #: An experiment showed the contrary.
    REFUTED = "refuted"
    #: No experiment could be carried out, or none to its end.
    UNPROVED = "unproved"


class Check(StrEnum):
    """The names are fixed: scripts and rows have them. In the order of a visit."""

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
    CLOCKS = "clocks"
    UPLOAD_SECRET = "upload-secret"  # noqa: S105 - a name
    NO_DESCRIPTOR_CACHE = "no-descriptor-cache"
    CANNOT_DELETE = "cannot-delete"
    OTHERS_CLOSED = "others-closed"
    QUARANTINE_CLOSED = "quarantine-closed"
    BUCKET_CLOSED = "bucket-closed"
    DELETES_ARRIVE = "deletes-arrive"


#: What is tried with the key of the pod's registry, each for lines of the policy of that key (pods/policy.py).
OF_THE_KEY = frozenset({Check.CANNOT_DELETE, Check.OTHERS_CLOSED, Check.QUARANTINE_CLOSED, Check.BUCKET_CLOSED})


#: What no finding blocks GC for: each run looks again, and is blocked by what it sees itself (domain/perimeter.py).
SEEN_BY_RUNS: Final = frozenset({Check.REPOSITORIES_OWNED})


def implied(named: Collection[str]) -> frozenset[str]:
    """The checks that `settings.unsafe_findings` names: `cannot-delete` stands for all that are tried with that key.

    A registry whose key may delete blobs has the key of Baleen, or one as good: none of the others can be proved then.
    """
    return frozenset(named) | (OF_THE_KEY if Check.CANNOT_DELETE in named else frozenset())


#: What can be proved of, and is asked of, a pod whose registry sends no events.
OF_UNMANAGED: Final = frozenset(
    {
        Check.REGISTRY_ANSWERS,
        Check.VERSIONED,
        Check.REPOSITORIES_OWNED,
        Check.SAME_ROOT,
        Check.UPLOAD_SECRET,
        Check.NO_DESCRIPTOR_CACHE,
    }
    | OF_THE_KEY
)


def checks(*, managed: bool) -> list[Check]:
    """Return the checks of such a pod, in the order of a visit."""
    return [check for check in Check if managed or check in OF_UNMANAGED]


class Finding(NamedTuple):
    """What one check came to."""

    check: str
    verdict: Verdict
    #: What it means for the pod, for a person.
    meaning: str
    #: How it was found out, with figures.
    proof: str
    #: What to write where, so that it can be proved; empty where there is nothing to mend.
    mend: str = ""
    #: By the database's clock; None until it is written.
    found_at: datetime | None = None


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """Put findings into the order of the checks; those of checks that this release does not know come last."""
    places = {str(check): place for place, check in enumerate(Check)}
    return sorted(found, key=lambda each: (places.get(each.check, len(places)), each.check))


class Failed(NamedTuple):
    """Baleen's own visit to processes that are not examined, which did not prove all that it tries."""

    at: datetime
    #: What was not proved, or why the visit did not end.
    why: Sequence[str]


def repeated(*, managed: bool) -> list[Check]:
    """Return the checks that Baleen makes by itself of processes that began or came back: all without the pod's key.

    What is tried with that key is found out by way of no process, and keeps the result of the last visit that had it.
    """
    return [check for check in checks(managed=managed) if check not in OF_THE_KEY]


def unproved(wanted: Iterable[Check], found: Mapping[str, Verdict], in_spite_of: Collection[str] = ()) -> list[str]:
    """Say which of these checks are not proved, as far as that blocks garbage collection."""
    return [
        f"{check} is {verdict or 'not examined'}"
        for check in wanted
        if check not in SEEN_BY_RUNS
        and (verdict := found.get(check)) is not Verdict.PROVED
        and not (verdict and check in in_spite_of)
    ]


def hold(
    found: Mapping[str, Verdict],
    pod: str,
    newer: int = 0,
    in_spite_of: Collection[str] = (),
    *,
    managed: bool = True,
    failed: Failed | None = None,
) -> str | None:
    """Say why garbage collection may not run for the pod, as far as doctors know; None if all is proved that counts.

    `newer`: processes of its registry that were first heard after the visit, or had been believed to be gone and came
    back: they may be configured in another way.
    `in_spite_of`: checks that hold nothing whatever a visit found (settings.unsafe_findings); that there was one is
    asked all the same.
    `managed`: its registry sends events. Of one that does not, nothing that is about events is asked.
    `failed`: Baleen's own visit to the newer processes, if it did not prove what it tried.
    """
    if not found:
        return f"never examined: that its registry is safe to collect for is not proved, `baleen pods doctor {pod}`"
    reasons = unproved(checks(managed=managed), found, in_spite_of)
    if newer:
        reasons.append(f"{_processes(newer)} of its registry began or came back after the visit, and {_again(failed)}")
    if not reasons:
        return None
    return f"doctor: {', '.join(reasons)}: `baleen pods doctor {pod}` says what to mend"


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


def _again(failed: Failed | None) -> str:
    if failed is None:
        return "the scheduler has not examined that yet"
    return f"the scheduler's own visit at {failed.at:%Y-%m-%d %H:%M:%S} UTC found: {', '.join(failed.why)}"
