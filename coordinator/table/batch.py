"""A batch of facts as the worker hands it to the database, and what came of it. Data only (see apply.py)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from coordinator.domain.facts import Fact
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestContent
from coordinator.errors import BaleenError


class DeadLetterFound(NamedTuple):
    """A dead letter on its way into the table."""

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


class LetterLimits(NamedTuple):
    """How many open dead letters of one pod are kept, and bytes of their payloads."""

    letters: int = 1000
    bytes: int = 64 * 1024 * 1024


#: A registry process: its pod's id, and its `source.instanceID`.
Process = tuple[int, str]


class Echo(NamedTuple):
    """A probe that came back in a process's event: what it said before stands before this record."""

    instance_id: str
    #: 32 hexadecimal digits.
    nonce: str
    #: Where the same stands, as far as the record says: partitions of registry.events, of registry.dead-letters.
    partitions: int = 0
    letters_partition: int | None = None


class Item(NamedTuple):
    """One Kafka record: a fact of a pod, a dead letter, an echo, or (all None) something that changes nothing."""

    offset: int
    #: Of the Kafka record, in milliseconds.
    timestamp_ms: int
    pod_id: int
    fact: Fact | None
    dead_letter: DeadLetterFound | None
    echo: Echo | None = None


#: What pods reported that each manifest lists: ids of pods, and what they said.
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
    #: Every process that a record of it is of; it may be of others too.
    processes: frozenset[Process] = frozenset()


class Applied(NamedTuple):
    """What a batch changed; the numbers are rows."""

    records: int = 0
    holdings_added: int = 0
    holdings_removed: int = 0
    links_added: int = 0
    links_removed: int = 0
    removals_doubtful: int = 0
    removals_overtaken: int = 0
    dead_letters: int = 0
    #: Of these, how many are gaps instead: the pod had too many.
    dead_letters_not_kept: int = 0
    echoes: int = 0
    echoes_unknown: int = 0
    #: Reports of what a manifest lists that its bytes contradict.
    false_reports: int = 0
    #: Manifests about which reports differ: their bytes are to be read.
    disputed: frozenset[Digest] = frozenset()


def total(left: Applied, right: Applied) -> Applied:
    disputed = left.disputed | right.disputed
    numbers = zip(left[:-1], right[:-1], strict=True)
    return Applied(*(a + b for a, b in numbers), disputed=disputed)  # type: ignore[misc, arg-type]


class OutOfStepError(BaleenError):
    """The slice does not begin where the partition's progress stands: another worker was here, or records are gone.

    `expected` is the partition's next_offset, or None when its progress was never begun.
    """

    def __init__(self, piece: Slice, expected: int | None) -> None:
        super().__init__(
            f"Partition {piece.partition} of {piece.topic} stands at {expected}, not at {piece.first_offset}."
        )
        self.piece = piece
        self.expected = expected


class NotServedError(BaleenError):
    """Registries are not served the blob, so that a mount of it would be a link to nothing."""

    def __init__(self, state: BlobState) -> None:
        super().__init__(f"The blob is {state.name.lower()}.")
        self.state = state


class StateChangedError(BaleenError):
    """Another writer changed rows that this batch had read. The batch is repeated from its beginning."""
