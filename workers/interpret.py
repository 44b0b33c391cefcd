"""Decode Kafka records into the facts, dead letters and echoes that the database applies.

Route: processor.py -> `Interpreter.slices(chunks)` -> `BatchApplier`. A record of registry.events becomes a fact, one
of registry.dead-letters a row of that table, a watermark in either an echo. A record that cannot be understood becomes
a dead letter itself. Nothing is skipped: every offset of a chunk is in its slice.
Ingest has checked most of this already, but a pod may produce to the topic itself.
Not here: what a fact does (coordinator/domain/fold.py), manifests' contents (contents.py).
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import starmap
from typing import Literal, NamedTuple, Protocol

import msgspec

from coordinator.domain.facts import (
    BlobLinked,
    Fact,
    ManifestPushed,
    Removed,
    RepositoryRemoved,
    RepositoryRenamed,
)
from coordinator.domain.names import Digest, PodName, RepositoryName, parse_digest, parse_pod, parse_repository
from coordinator.domain.pods import owner_of
from coordinator.domain.references import (
    BLOB_MEDIA_TYPE,
    MANIFEST_KINDS,
    REFERENCES_LIMIT,
    ManifestContent,
    Reference,
)
from coordinator.errors import BaleenError, InvalidNameError
from coordinator.ingest.dead_letters import repositories_in
from coordinator.ingest.normalise import EARLIEST, ID_LIMIT, LATEST
from coordinator.kafka.log import fingerprint_of
from coordinator.kafka.topics import DEAD_LETTERS
from coordinator.pods.directory import Directory
from coordinator.table.batch import DeadLetterFound, Echo, Item, ProcessKey, Slice
from schemas.records import (
    RECORD_CONTENT_TYPE,
    Bytes,
    DeadLetter,
    PodText,
    RegistryWatermark,
    RenameRecord,
    Timestamp,
)

#: What msgspec raises on malformed bytes.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_EARLIEST_MS, _LATEST_MS = (round(bound.timestamp() * 1000) for bound in (EARLIEST, LATEST))


class KafkaRecord(Protocol):
    """The part of aiokafka's ConsumerRecord that Baleen uses."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Chunk(NamedTuple):
    """Records that one fetch brought for a partition."""

    topic: str
    partition: int
    records: Sequence[KafkaRecord]


class _Descriptor(msgspec.Struct, frozen=True, gc=False):
    digest: str
    size: Bytes | None = None


class _Event(msgspec.Struct, frozen=True, gc=False):
    """The fields of RegistryEvent that are facts.

    Decoded without that schema's patterns: as regular expressions they would take four fifths of the time, and each
    name is parsed here anyway.
    """

    action: Literal["push", "mount", "delete", "rename"]
    pod: str
    repository: str
    timestamp: Timestamp
    digest: str | None = None
    media_type: str | None = None
    size: Bytes | None = None
    tag: str | None = None
    references: list[_Descriptor] | None = None
    rename: RenameRecord | None = None
    process: str = ""


class _Sender(msgspec.Struct):
    pod: PodText = ""


class _Action(msgspec.Struct):
    action: str = ""


_sender_decoder = msgspec.json.Decoder(_Sender)
_action_decoder = msgspec.json.Decoder(_Action)
_watermark_decoder = msgspec.json.Decoder(RegistryWatermark)


class _NotUnderstoodError(BaleenError):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Interpreter:
    """Decodes chunks against one snapshot of the pods; created for each batch."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._events = msgspec.json.Decoder(_Event)
        self._dead_letters = msgspec.json.Decoder(DeadLetter)
        #: (pod, repository, process) checked in this chunk, with the pod's id.
        self._checked: dict[tuple[str, str, str], int] = {}
        #: The processes that sent records of this chunk.
        self._processes: set[ProcessKey] = set()

    def interpret(self, chunk: Chunk) -> Slice:
        """Interpret a chunk. Offsets between its records, left by compaction or transactions, have no record."""
        read = self._interpret_dead_letter if chunk.topic == DEAD_LETTERS else self._interpret_event
        last = chunk.records[-1]
        self._checked, self._processes = {}, set()
        items = [read(record) for record in chunk.records]
        return Slice(
            chunk.topic,
            chunk.partition,
            chunk.records[0].offset,
            last.offset + 1,
            fingerprint_of(last.timestamp, last.key, last.value),
            items,
            frozenset(self._processes),
        )

    def _interpret_dead_letter(self, record: KafkaRecord) -> Item:
        try:
            dead_letter = self._dead_letters.decode(record.value or b"")
            _check_time(dead_letter.received_at)
        except _UNREADABLE as error:
            if _is_watermark(record):
                return self._interpret_echo(record)
            return _make_dead_item(record, "malformed", f"A dead letter that cannot be read: {error}.")
        found = DeadLetterFound(
            dead_letter.pod,
            dead_letter.reason,
            make_storable(dead_letter.detail),
            int(dead_letter.received_at.timestamp() * 1000),
            make_storable(dead_letter.payload),
            dead_letter.payload_bytes,
            make_storable(dead_letter.content_type),
            _repositories_of(dead_letter),
        )
        return Item(record.offset, record.timestamp, 0, None, found)

    def _interpret_event(self, record: KafkaRecord) -> Item:
        try:
            event = self._events.decode(record.value or b"")
            _check_time(event.timestamp)
            pod_id = self._checked.get((event.pod, event.repository, event.process)) or self._check_event(event)
            return Item(record.offset, record.timestamp, pod_id, self._make_fact(event), None)
        except _UNREADABLE as error:
            # The action distinguishes a watermark from an event, so that only watermarks are decoded twice.
            if _is_watermark(record):
                return self._interpret_echo(record)
            return _make_dead_item(record, "malformed", f"Not a registry.event record: {error}.")
        except _NotUnderstoodError as error:
            return _make_dead_item(record, error.reason, str(error))
        except BaleenError as error:
            return _make_dead_item(record, "invalid-name", str(error))

    def _check_event(self, event: _Event) -> int:
        pod = self._directory.pods.get(PodName(event.pod))
        repository = parse_repository(event.repository)
        if pod is None or owner_of(repository, self._directory.owners) != event.pod:
            raise _NotUnderstoodError("not-owned", f"Pod {event.pod} does not own repository {repository}.")
        if event.process:
            self._processes.add((pod, _check_process(event.process)))
        self._checked[event.pod, event.repository, event.process] = pod
        return pod

    def _interpret_echo(self, record: KafkaRecord) -> Item:
        try:
            watermark = _watermark_decoder.decode(record.value or b"")
            process = _check_process(watermark.process)
        except (*_UNREADABLE, _NotUnderstoodError) as error:
            return _make_dead_item(record, "malformed", f"Not a registry.watermark record: {error}.")
        # A removed pod has no probes.
        pod = self._directory.pods.get(PodName(watermark.pod), 0)
        if pod:
            self._processes.add((pod, process))
        echo = Echo(watermark.process, watermark.nonce, watermark.partitions or 0, watermark.dead_letters_partition)
        return Item(record.offset, record.timestamp, pod, None, None, echo)

    def _make_fact(self, event: _Event) -> Fact | None:
        repository = RepositoryName(event.repository)
        if event.action == "rename":
            return self._make_rename(event)
        if event.action == "delete":
            if event.digest is not None:
                return Removed(repository, parse_digest(event.digest), event.timestamp)
            return None if event.tag is not None else RepositoryRemoved(repository, event.timestamp)
        if event.digest is None:
            raise _NotUnderstoodError("malformed", f"A {event.action} without a digest.")
        digest = parse_digest(event.digest)
        if event.action == "mount" or event.media_type == BLOB_MEDIA_TYPE:
            return BlobLinked(repository, digest, event.timestamp, event.size)
        return ManifestPushed(repository, digest, event.timestamp, event.size, _make_content(event))

    def _make_rename(self, event: _Event) -> Fact:
        rename = event.rename
        if rename is None:
            raise _NotUnderstoodError("malformed", "A rename that does not say from what to what.")
        # The event's key has the repository's old name.
        source, destination = parse_repository(rename.source), parse_repository(rename.destination)
        if any(owner_of(name, self._directory.owners) != event.pod for name in (source, destination)):
            raise _NotUnderstoodError("not-owned", f"Pod {event.pod} does not own {source} and {destination}.")
        # Both types: GitLab's registry moves all that is below the repository in one transaction, whichever part of
        # its name is another (registry/handlers/repositories.go, executeRenameOperation).
        return RepositoryRenamed(source, destination, below=True, at=event.timestamp)


def _make_content(event: _Event) -> ManifestContent | None:
    kind = MANIFEST_KINDS.get(event.media_type or "")
    # As at ingest: an empty list looks like `includereferences` switched off, and a list of another kind or too long is
    # not used. Then the manifest's bytes are read.
    if kind is None or not event.references or len(event.references) > REFERENCES_LIMIT:
        return None
    sizes: dict[Digest, int | None] = {}
    for entry in event.references:
        sizes.setdefault(parse_digest(entry.digest), entry.size)
    return ManifestContent(kind, tuple(starmap(Reference, sizes.items())))


def _check_time(at: datetime) -> None:
    """Refuse a time that PostgreSQL stores and Python cannot read again."""
    if not EARLIEST <= at < LATEST:
        raise ValueError("its time is not of our time")


def _is_watermark(record: KafkaRecord) -> bool:
    try:
        return _action_decoder.decode(record.value or b"").action == "watermark"
    except _UNREADABLE:
        return False


def _check_process(instance_id: str) -> str:
    if len(instance_id) > ID_LIMIT or make_storable(instance_id) != instance_id:
        raise _NotUnderstoodError("malformed", "The name of the registry process is too long or holds NUL.")
    return instance_id


def pod_of(record: KafkaRecord) -> str:
    """Return the pod that an unusable record names, else the pod of its key (`pod/repository`), else ""."""
    try:
        named = _sender_decoder.decode(record.value or b"").pod
    except _UNREADABLE:
        named = ""
    if named:
        return named
    try:
        return parse_pod((record.key or b"").partition(b"/")[0].decode())
    except (UnicodeDecodeError, InvalidNameError):
        return ""


def make_storable(text: str) -> str:
    """Replace what PostgreSQL's text cannot hold: NUL and half a surrogate pair."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")


def make_dead_letter(record: KafkaRecord, pod: str, reason: str, detail: str) -> DeadLetterFound:
    """A dead letter whose payload is the record itself, so that it can be retried as it is."""
    value = record.value or b""
    payload = make_storable(value.decode(errors="replace"))
    # The producer sets a record's time, perhaps in another unit.
    received_at_ms = min(max(record.timestamp, _EARLIEST_MS), _LATEST_MS)
    return DeadLetterFound(
        make_storable(pod),
        reason,
        make_storable(detail),
        received_at_ms,
        payload,
        len(value),
        RECORD_CONTENT_TYPE,
        repositories_in(value),
    )


def _repositories_of(dead_letter: DeadLetter) -> Sequence[RepositoryName] | None:
    """Return the repositories that a dead letter concerns, from ingest or from its payload if that is complete."""
    try:
        if dead_letter.repositories is not None:
            return sorted({parse_repository(name) for name in dead_letter.repositories})
    except InvalidNameError:
        return None
    payload = dead_letter.payload.encode()
    return repositories_in(payload) if len(payload) == dead_letter.payload_bytes else None


def _make_dead_item(record: KafkaRecord, reason: str, detail: str) -> Item:
    return Item(record.offset, record.timestamp, 0, None, make_dead_letter(record, pod_of(record), reason, detail))
