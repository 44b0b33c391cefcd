"""The notification envelope of distribution, as registries send it.

Source: distribution's "Work with notifications" and captured envelopes of 2.8.3; GitLab's registry adds
`actor.user_type`, `actor.user`, `meta`, and the action `rename` with `target.rename`.
Lenient: unknown fields are ignored, and fields that Baleen does not need may be absent. Each event of an
envelope is decoded separately, so that a malformed one does not affect the others.
Not here: what an event means (coordinator/ingest/normalise.py).
"""

import datetime as dt
from typing import Annotated, Any

import msgspec
from msgspec import Meta

#: Content types of distribution 2.x and 3.x. Both carry the same shape.
CONTENT_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.events.v1+json",
        "application/vnd.docker.distribution.events.v2+json",
    }
)


#: A raw JSON value that is decoded separately, because a client may have chosen it.
RawJson = msgspec.Raw


def _null() -> msgspec.Raw:
    return msgspec.Raw(b"null")


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    media_type: str = ""
    #: In bytes.
    size: RawJson = msgspec.field(default_factory=_null)


class Rename(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """GitLab: `type` is `name` (the last component of the path changed) or `namespace` (the part before it changed).

    With either, all repositories below it move too.
    """

    type: str
    from_: str
    to: str


class Target(msgspec.Struct, frozen=True, rename="camel"):
    """The subject of an event. A delete has only a digest or a tag, or neither (the whole repository)."""

    repository: str
    media_type: str | None = None
    digest: str | None = None
    size: RawJson = msgspec.field(default_factory=_null)
    #: What 2.x also calls `size`; some writers send only this one.
    length: RawJson = msgspec.field(default_factory=_null)
    url: str | None = None
    tag: str | None = None
    from_repository: str | None = None
    #: Descriptors, or null.
    references: RawJson = msgspec.field(default_factory=_null)
    rename: Rename | None = None


class Request(msgspec.Struct, frozen=True):
    id: str = ""
    addr: str = ""
    host: str = ""
    method: str = ""
    useragent: str = ""


class Actor(msgspec.Struct, frozen=True):
    name: str = ""
    user_type: str = ""


class Source(msgspec.Struct, frozen=True, rename={"instance_id": "instanceID"}):
    addr: str = ""
    #: New at every start of a registry process.
    instance_id: str = ""


class Event(msgspec.Struct, frozen=True):
    id: str
    #: With a zone; coordinator/ingest/normalise.py refuses one without.
    timestamp: Annotated[dt.datetime, Meta(extra_json_schema={"format": "date-time"})]
    action: str
    target: Target
    request: Request = Request()
    actor: Actor = Actor()
    source: Source = Source()
    meta: Any = None


class Envelope(msgspec.Struct, frozen=True):
    #: Distribution sends exactly one event per envelope; the format allows more, in order.
    events: list[msgspec.Raw]
