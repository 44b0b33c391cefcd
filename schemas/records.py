"""Kafka records that Baleen writes: JSON, with the schema's name and version in the header `schema`.

| topic                  | record             | key             |
|------------------------|--------------------|-----------------|
| registry.events        | RegistryEvent      | pod/repository  |
|                        | RegistryWatermark  | none            |
| registry.dead-letters  | DeadLetter         | pod             |
|                        | RegistryWatermark  | pod             |
| blob.lifecycle         | BlobLifecycle      | digest          |

A RegistryWatermark is in every partition of registry.events, and in the pod's partition of registry.dead-letters. Its
`action` distinguishes it from the other records there.

Strict: every written record validates against the published JSON Schema. A pod that produces to registry.events
with its own Kafka credentials writes RegistryEvent too. A reader ignores unknown fields, so a field may be added
without a new version; a field's meaning never changes.
"""

import datetime as dt
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

DigestText = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
RepositoryText = Annotated[str, Meta(min_length=1, max_length=255)]
PodText = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Timestamp = Annotated[dt.datetime, Meta(tz=True)]
#: The upper bound is that of the table's 64-bit column.
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]

SCHEMA_HEADER = "schema"


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A record names its schema and version; the name goes into the Kafka header."""


class ReferenceRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    digest: DigestText
    size: Bytes | None = None
    media_type: str = ""


class RenameRecord(msgspec.Struct, frozen=True):
    """A rename of the repository `source`, if it exists, and of all repositories below `source/`, for either `type`.

    Type `name`: the last component of the name changed. Type `namespace`: the part before it changed.
    """

    type: Literal["name", "namespace"]
    source: RepositoryText
    destination: RepositoryText


class RegistryEvent(Record, frozen=True):
    """What a registry reports about one of its repositories. Pulls are not recorded.

    A delete with neither digest nor tag is of the whole repository; one with a tag changes no reference.
    """

    id: str
    action: Literal["push", "mount", "delete", "rename"]
    pod: PodText
    repository: RepositoryText
    #: By the registry's clock. Orders only the events of one registry process.
    timestamp: Timestamp
    digest: DigestText | None = None
    media_type: str | None = None
    #: Bytes of the blob or manifest itself.
    size: Bytes | None = None
    tag: str | None = None
    #: What a pushed manifest lists, in its order; None if the registry did not report it.
    references: list[ReferenceRecord] | None = None
    from_repository: str | None = None
    rename: RenameRecord | None = None
    #: The registry process: its `source.instanceID`.
    process: str = ""
    actor: str = ""
    request_id: str = ""


class RegistryWatermark(Record, frozen=True):
    """Every event that a registry process sent before it echoed this nonce is before this record.

    So in this partition the process has reported up to the time when that probe was sent.
    """

    action: Literal["watermark"]
    pod: PodText
    #: The registry process: its `source.instanceID`.
    process: Annotated[str, Meta(min_length=1, max_length=255)]
    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
    #: How many partitions registry.events had: this record is in each of them.
    partitions: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    #: The pod's partition of registry.dead-letters: this record is there too.
    dead_letters_partition: Annotated[int, Meta(ge=0, le=10_000)] | None = None


#: Why ingest dead-letters something; a worker has two more reasons.
Refusal = Literal[
    "content-type",
    "oversized",
    "malformed",
    "unknown-action",
    "unknown-media-type",
    "not-owned",
    "invalid-name",
]


class DeadLetter(Record, frozen=True):
    """Something that a pod sent and Baleen could not understand. GC is blocked for the pod until it is resolved."""

    pod: PodText
    reason: Literal[Refusal, "unreadable-manifest", "unappliable"]
    #: One sentence for a person.
    detail: str
    received_at: Timestamp
    #: What was sent, as text; cut at 64 KiB, then `payload_bytes` says how long it was.
    payload: str
    payload_bytes: Bytes
    content_type: str = ""
    #: The repositories that it concerns; None if not known.
    repositories: Annotated[list[RepositoryText], Meta(max_length=100)] | None = None


class BlobLifecycle(Record, frozen=True):
    """One change of a blob's state."""

    #: Unique for each change. Later changes of one blob have greater ids.
    id: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    digest: DigestText
    change: Literal["live", "unreferenced", "hidden", "restored", "purged", "missing"]
    #: By the database's clock.
    at: Timestamp
    reference_count: Annotated[int, Meta(ge=0)]
    link_count: Annotated[int, Meta(ge=0)]


#: Schema name and version of each record: the value of the Kafka header, and the name of the published file.
SCHEMAS: dict[type[Record], str] = {
    RegistryEvent: "registry.event/1",
    RegistryWatermark: "registry.watermark/1",
    DeadLetter: "registry.dead-letter/1",
    BlobLifecycle: "blob.lifecycle/1",
}


#: The content type of a dead letter whose payload is a record of registry.events instead of a posted body.
RECORD_CONTENT_TYPE = f"application/json; schema={SCHEMAS[RegistryEvent]}"


def headers_of(record: Record) -> list[tuple[str, bytes]]:
    """Kafka headers of a record."""
    return [(SCHEMA_HEADER, SCHEMAS[type(record)].encode())]


def partition_key_of(event: RegistryEvent) -> bytes:
    """The partition key: everything about one repository is in one partition, in order."""
    return f"{event.pod}/{event.repository}".encode()
