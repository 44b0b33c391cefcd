"""The data of a batch of facts, and of its result. No behaviour (see apply.py)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from coordinator.domain.facts import Fact
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestContent
from coordinator.errors import BaleenError


class DeadLetterFound(NamedTuple):
    """A dead letter that is not in the table yet."""

    pod: str
    reason: str
    detail: str
    #: Unix time in milliseconds.
    received_at_ms: int
    payload: str
    payload_bytes: int
    content_type: str
    #: What it is about; None where that is not known.
    repositories: Sequence[RepositoryName] | None = None


class DeadLetterLimits(NamedTuple):
    """The limits of the open dead letters of one pod: their number, and the bytes of their payloads."""

    number: int = 1000
    bytes: int = 64 * 1024 * 1024


#: A registry process: its pod's id, and its `source.instanceID`.
ProcessKey = tuple[int, str]


class Echo(NamedTuple):
    """An event that carries a probe's nonce: all earlier events of the process are before this record."""

    instance_id: str
    #: 32 hexadecimal digits.
    nonce: str
    #: Which partitions got a copy, as far as the record says: the first so many of registry.events, and this one of
    #: registry.dead-letters.
    partitions: int = 0
    dead_letters_partition: int | None = None


class Item(NamedTuple):
    """One Kafka record: a fact of a pod, a dead letter, an echo, or (all None) something that changes nothing."""

    offset: int
    #: Of the Kafka record, in milliseconds.
    timestamp_ms: int
    pod_id: int
    fact: Fact | None
    dead_letter: DeadLetterFound | None
    echo: Echo | None = None


#: What pods reported about the contents of each manifest: ids of pods, and the contents.
Reports = Mapping[Digest, Sequence[tuple[int, ManifestContent]]]


class Slice(NamedTuple):
    """Consecutive records of one partition: offsets first_offset <= offset < next_offset."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    #: Of the record at next_offset - 1.
    fingerprint: int
    items: list[Item]
    #: Every process that sent one of its records, and possibly others.
    processes: frozenset[ProcessKey] = frozenset()


class ApplyResult(NamedTuple):
    """What a batch changed; the numbers are rows."""

    records: int = 0
    holdings_added: int = 0
    holdings_removed: int = 0
    links_added: int = 0
    links_removed: int = 0
    removals_doubtful: int = 0
    removals_overtaken: int = 0
    dead_letters: int = 0
    #: How many of these became gaps, since the pod had too many.
    dead_letters_not_kept: int = 0
    echoes: int = 0
    echoes_unknown: int = 0
    #: Reports of what a manifest lists that its bytes contradict.
    false_reports: int = 0
    #: Manifests about which reports differ: their bytes must be read.
    disputed: frozenset[Digest] = frozenset()


def add_results(left: ApplyResult, right: ApplyResult) -> ApplyResult:
    disputed = left.disputed | right.disputed
    numbers = zip(left[:-1], right[:-1], strict=True)
    return ApplyResult(*(a + b for a, b in numbers), disputed=disputed)  # type: ignore[misc, arg-type]


class OutOfStepError(BaleenError):
    """The slice does not begin at the partition's progress: another worker has moved it, or records are gone.

    `expected` is the partition's next_offset, or None if it has no progress yet.
    """

    def __init__(self, piece: Slice, expected: int | None) -> None:
        super().__init__(
            f"Partition {piece.partition} of {piece.topic} is applied up to {expected}, not {piece.first_offset}."
        )
        self.piece = piece
        self.expected = expected


class NotServedError(BaleenError):
    """The blob is not served to registries, so a mount of it would be a link to nothing."""

    def __init__(self, state: BlobState) -> None:
        super().__init__(f"The blob is {state.name.lower()}.")
        self.state = state


class StateChangedError(BaleenError):
    """Another writer changed rows that this batch had read. The batch is repeated from its beginning."""
