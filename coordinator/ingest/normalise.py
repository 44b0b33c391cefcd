"""Decide the outcome of each event that a registry posts: accepted, reported, dropped or dead-lettered.

Route: `normalise_body(body, origin)` -> outcomes in the order of the envelope -> EventProducer.publish.
Values that a client chooses (sizes, media types, references, a User-Agent) never make an event a dead letter.
Invariants: every event of an envelope has exactly one outcome, except that an accepted push with a probe's nonce also
reports; an envelope that cannot be read has one dead letter; no input from a registry raises; an accepted event
validates against the published schema; a pull is never a dead letter.
Not here: who sent it (service.py), what an accepted event does to the table (the reference processor).
"""

import datetime as dt
import re
from collections.abc import Collection, Sequence
from typing import Final, Literal, NamedTuple, cast

import msgspec

from coordinator.domain.names import RepositoryName, parse_digest, parse_repository
from coordinator.domain.pods import prefixes_of
from coordinator.domain.references import BLOB_MEDIA_TYPE, MANIFEST_KINDS, REFERENCES_LIMIT
from coordinator.errors import InvalidNameError
from coordinator.ingest.dead_letters import COMMAS_LIMIT, repositories_in
from coordinator.ingest.delays import Delay, parse_delay
from coordinator.ingest.slim import count_values
from schemas.envelope import CONTENT_TYPES, Descriptor, Envelope, Event, Rename, Target
from schemas.records import (
    DeadLetter,
    ReferenceRecord,
    Refusal,
    RegistryEvent,
    RegistryWatermark,
    RenameRecord,
)

#: How much of the sent payload a dead letter keeps.
PAYLOAD_LIMIT: Final = 64 * 1024
#: Registries send one event per envelope; each dead letter costs memory beyond its own bytes.
EVENTS_LIMIT: Final = 10_000
#: The longest id, or name of a process.
ID_LIMIT: Final = 255
SIZE_LIMIT: Final = 2**63 - 1
#: Only the last probes in one envelope report: each becomes a record in every partition.
REPORTS_LIMIT: Final = 8
#: In the User-Agent of a probe (coordinator/pods/prober.py): its nonce.
PROBE_AGENT: Final = re.compile(r"\bbaleen-probe/([0-9a-f]{32})(?![0-9A-Za-z])")
EARLIEST: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
LATEST: Final = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)

#: What msgspec raises on malformed bytes; UnicodeDecodeError is a ValueError.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_envelope = msgspec.json.Decoder(Envelope)
_event = msgspec.json.Decoder(Event)
_descriptors = msgspec.json.Decoder(list[Descriptor] | None)
#: A digest by another algorithm than sha256.
_OTHER_DIGEST: Final = re.compile(r"(?!sha256:)[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[A-Za-z0-9=_-]{32,}")
_LINKED: Final = frozenset({"push", "mount", "delete"})


class _Action(msgspec.Struct):
    action: str = ""


_action = msgspec.json.Decoder(_Action)


class _Referring(msgspec.Struct, gc=False):
    references: msgspec.Raw = msgspec.Raw(b"null")


class _Targeted(msgspec.Struct, gc=False):
    target: _Referring


class _Targets(msgspec.Struct):
    events: list[_Targeted]


_targets = msgspec.json.Decoder(_Targets)


class Accepted(NamedTuple):
    """Goes to registry.events; `hold`: the delay that a doctor may have asked for."""

    event: RegistryEvent
    delay: Delay | None = None


class Reported(NamedTuple):
    """The echo of a probe: goes to every partition, after all other outcomes of the envelope.

    Its nonce may be made up: probes.py verifies it before anything is written.
    """

    record: RegistryWatermark


class Dropped(NamedTuple):
    """An event that Baleen does not need."""

    #: `unknown-probe`: its nonce is of no probe of the pod, or was reported already (probes.py).
    reason: Literal["pull", "unknown-probe", "other-algorithm"]


class DeadLettered(NamedTuple):
    """Goes to registry.dead-letters."""

    dead_letter: DeadLetter


Outcome = Accepted | Reported | Dropped | DeadLettered


class Origin(NamedTuple):
    """The authenticated sender of a body, and its time of arrival."""

    pod: str
    prefixes: Collection[str]
    received_at: dt.datetime
    content_type: str = ""


class _RefusedError(Exception):
    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.reason: Refusal = reason
        self.detail = detail


def normalise_body(body: bytes, origin: Origin) -> list[Outcome]:
    """Return the outcome of each event in a body, in order."""
    if base_type(origin.content_type) not in CONTENT_TYPES:
        wanted = " or ".join(sorted(CONTENT_TYPES))
        detail = f"The content type is {origin.content_type[:100]!r}, and a notification's is {wanted}."
        return [DeadLettered(make_dead_letter(origin, "content-type", detail, body, about=repositories_in(body)))]
    return _normalise(body, origin)


def retry_dead_letter(dead_letter: DeadLetter, prefixes: Collection[str]) -> list[Outcome]:
    """Return the outcomes of a dead letter's payload under the present rules and prefixes.

    A payload that was cut cannot be read again, and stays a dead letter. A probe in it is too old to report anything.
    """
    body = dead_letter.payload.encode()
    if dead_letter.payload_bytes != len(body):
        return [DeadLettered(dead_letter)]
    origin = Origin(dead_letter.pod, prefixes, dead_letter.received_at, dead_letter.content_type)
    whole = dead_letter.reason == "content-type" or _is_envelope(body)
    outcomes = normalise_body(body, origin) if whole else _event_outcomes(body, origin)
    return [outcome for outcome in outcomes if not isinstance(outcome, Reported)] or [Dropped("pull")]


def make_dead_letter(
    origin: Origin,
    reason: Refusal,
    detail: str,
    sent: bytes,
    size: int | None = None,
    *,
    about: Sequence[RepositoryName] | None = None,
) -> DeadLetter:
    """Make a dead letter of what was sent, or of its beginning; then `size` is the length of the whole.

    `about`: the repositories that it concerns, None if not known.
    """
    text = _clean(bytes(sent[:PAYLOAD_LIMIT]).decode("utf-8", "replace"))
    return DeadLetter(
        pod=origin.pod,
        reason=reason,
        detail=_clean(detail)[:500],
        received_at=origin.received_at,
        # Replacement characters are longer than what they replace.
        payload=text.encode()[:PAYLOAD_LIMIT].decode("utf-8", "ignore"),
        payload_bytes=len(sent) if size is None else size,
        content_type=_clean(origin.content_type)[:ID_LIMIT],
        repositories=None if about is None else list(about),
    )


def _is_envelope(body: bytes) -> bool:
    try:
        _envelope.decode(body)
    except _UNREADABLE:
        return False
    return True


def base_type(media_type: str) -> str:
    """A media type without its parameters, in lower case."""
    return media_type.partition(";")[0].strip().lower()


def _normalise(body: bytes, origin: Origin) -> list[Outcome]:
    # Commas in strings are cheap, and a client may put any number into its User-Agent. References are cheap, too.
    if body.count(b",") > COMMAS_LIMIT and _count_values_beside_references(body) > COMMAS_LIMIT:
        detail = f"The envelope holds more than {COMMAS_LIMIT} values."
        return [DeadLettered(make_dead_letter(origin, "oversized", detail, body))]
    try:
        events = _envelope.decode(body).events
    except _UNREADABLE as error:
        detail = f"The envelope cannot be read: {error}."
        return [DeadLettered(make_dead_letter(origin, "malformed", detail, body))]
    if len(events) > EVENTS_LIMIT:
        detail = f"The envelope holds more than {EVENTS_LIMIT} events."
        return [DeadLettered(make_dead_letter(origin, "oversized", detail, body))]
    found = [_event_outcomes(bytes(memoryview(raw)), origin) for raw in events]
    reporting = [at for at, outcomes in enumerate(found) if isinstance(outcomes[-1], Reported)]
    for at in reporting[:-REPORTS_LIMIT]:
        found[at] = found[at][:-1] or [Dropped("pull")]
    return [outcome for outcomes in found for outcome in outcomes]


def _count_values_beside_references(body: bytes) -> int:
    """Count an envelope's values outside references: the references of one manifest may have a million URLs."""
    all_of_them = count_values(body)
    if all_of_them <= COMMAS_LIMIT:
        return all_of_them
    try:
        events = _targets.decode(body).events
    except _UNREADABLE:
        return all_of_them
    return all_of_them - sum(count_values(bytes(memoryview(each.target.references))) for each in events)


def _event_outcomes(raw: bytes, origin: Origin) -> list[Outcome]:
    """Return an event's outcome; after a push of the prober also its report."""
    try:
        return _decide_outcomes(raw, origin)
    except _RefusedError as refused:
        about = repositories_in(raw)
        return [
            DeadLettered(
                make_dead_letter(origin, refused.reason, refused.detail, _without_references(raw), about=about)
            )
        ]


def _without_references(raw: bytes) -> bytes:
    """Remove the references from an event that is too long to keep: a retry reads them from storage."""
    if len(raw) <= PAYLOAD_LIMIT or raw.count(b",") > COMMAS_LIMIT:
        return raw
    try:
        event = msgspec.json.decode(raw)
        del event["target"]["references"]
    except (*_UNREADABLE, KeyError, TypeError):
        return raw
    return msgspec.json.encode(event)


def _decide_outcomes(raw: bytes, origin: Origin) -> list[Outcome]:
    try:
        event = _event.decode(raw)
    except _UNREADABLE as error:
        if _is_pull(raw):
            return [Dropped("pull")]
        raise _RefusedError("malformed", f"The event cannot be read: {error}.") from error
    if event.action == "pull":
        return [_probe_report(event, origin) or Dropped("pull")]
    if event.action not in {"push", "mount", "delete", "rename"}:
        raise _RefusedError("unknown-action", f"The action {event.action[:100]!r} is not known.")
    _check_form(event)
    try:
        repository = _parse_owned_repository(event.target.repository, origin)
        if event.action in _LINKED and _is_by_another_algorithm(event.target):
            return [Dropped("other-algorithm")]
        digest = _parse_digest(event.target.digest) if event.target.digest else None
        media_type, references = _content_to_record(event)
        rename = _parse_rename(event.target.rename, origin) if event.action == "rename" else None
    except InvalidNameError as error:
        raise _RefusedError("invalid-name", str(error)) from error
    target = event.target
    accepted = Accepted(
        RegistryEvent(
            id=event.id,
            action=cast('Literal["push", "mount", "delete", "rename"]', event.action),
            pod=origin.pod,
            repository=repository,
            timestamp=event.timestamp.astimezone(dt.UTC),
            digest=digest,
            media_type=media_type,
            size=_parse_size(target.length) if _parse_size(target.size) is None else _parse_size(target.size),
            tag=None if target.tag is None else _clean(target.tag)[:ID_LIMIT] or None,
            references=references,
            from_repository=_parse_source_repository(target.from_repository),
            rename=rename,
            process=event.source.instance_id,
            actor=_clean(event.actor.name)[:ID_LIMIT],
            request_id=_clean(event.request.id)[:ID_LIMIT],
        ),
        parse_delay(event.request.useragent, repository),
    )
    # A push that is dead-lettered reports nothing; the next probe will.
    report = _probe_report(event, origin) if event.action == "push" else None
    return [accepted] if report is None else [accepted, report]


def _is_pull(raw: bytes) -> bool:
    try:
        return _action.decode(raw).action == "pull"
    except _UNREADABLE:
        return False


def _probe_report(event: Event, origin: Origin) -> Reported | None:
    """Return what an event reports: nothing, unless it is a probe's and names its registry process."""
    source, probe = event.source.instance_id, PROBE_AGENT.search(event.request.useragent)
    if probe is None or not source or len(source) > ID_LIMIT or "\0" in source:
        return None
    return Reported(RegistryWatermark(action="watermark", pod=origin.pod, process=source, nonce=probe[1]))


def _check_form(event: Event) -> None:
    """Refuse an event as malformed if no registry can mean it."""
    target = event.target
    for name, value in (("id", event.id), ("instanceID", event.source.instance_id)):
        if len(value) > ID_LIMIT or "\0" in value:
            raise _RefusedError("malformed", f"The event's {name} is too long or holds NUL.")
    if not event.id:
        raise _RefusedError("malformed", "The event has no id.")
    if event.timestamp.tzinfo is None or not EARLIEST <= event.timestamp < LATEST:
        raise _RefusedError("malformed", "The event's timestamp has no time zone, or is implausible.")
    if not target.repository:
        raise _RefusedError("malformed", "The event names no repository.")
    if event.action in {"push", "mount"} and not target.digest:
        raise _RefusedError("malformed", f"The {event.action} has no digest.")
    if event.action == "delete" and "" in {target.digest, target.tag} and not (target.digest or target.tag):
        # Only absence may mean the whole repository: an empty name is an error of the sender.
        raise _RefusedError("malformed", "The delete names an empty digest or tag.")


def _parse_size(raw: msgspec.Raw) -> int | None:
    """Return a size in bytes; None if it is negative, absurd or no number, as if it was not sent."""
    text = bytes(raw)
    size = int(text) if text.isdigit() and len(text) < 20 else None
    return size if size is not None and size <= SIZE_LIMIT else None


def _is_by_another_algorithm(target: Target) -> bool:
    """Whether the event concerns a link by a digest of another algorithm.

    Distribution reports an upload by its sha256, whatever digest the client named, but mounts and deletes by the
    client's digest. A mount by another digest makes a link that no registry follows, and a delete by one does not
    remove the link by sha256: the bytes are kept, or a reconcile finds the leftovers.
    """
    return target.media_type in {None, "", BLOB_MEDIA_TYPE} and _OTHER_DIGEST.fullmatch(target.digest or "") is not None


def _content_to_record(event: Event) -> tuple[str | None, list[ReferenceRecord] | None]:
    """Return the media type and references to record; only a push describes its content."""
    target = event.target
    if event.action != "push":
        return _clean(target.media_type or "")[:ID_LIMIT] or None, None
    media_type = base_type(target.media_type or "")
    if media_type == BLOB_MEDIA_TYPE:
        return media_type, None
    if media_type not in MANIFEST_KINDS:
        # An unknown kind: the manifest's bytes and the repository's links say what it needs.
        return _clean(media_type)[:ID_LIMIT] or None, None
    return media_type, _parse_references(target.references)


def _parse_references(raw: msgspec.Raw) -> list[ReferenceRecord] | None:
    """Return the references that the event lists; None if they have to be read from the manifest's bytes.

    An empty list looks like a registry that does not list references. A list that cannot be used as it is is left out
    as a whole: a client chooses it, and the bytes are in storage.
    """
    try:
        descriptors = _descriptors.decode(raw)
        if not descriptors or len(descriptors) > REFERENCES_LIMIT:
            return None
        return [
            ReferenceRecord(
                digest=_parse_digest(descriptor.digest),
                size=_parse_size(descriptor.size),
                media_type=_clean(descriptor.media_type)[:ID_LIMIT],
            )
            for descriptor in descriptors
        ]
    except (*_UNREADABLE, InvalidNameError):
        return None


def _parse_rename(rename: Rename | None, origin: Origin) -> RenameRecord:
    if rename is None or rename.type not in {"name", "namespace"}:
        raise _RefusedError("malformed", "The rename does not name its source and destination.")
    return RenameRecord(
        type=cast('Literal["name", "namespace"]', rename.type),
        source=_parse_owned_repository(rename.from_, origin),
        destination=_parse_owned_repository(rename.to, origin),
    )


def _parse_digest(text: str) -> str:
    parse_digest(text)
    return text


def _parse_owned_repository(text: str, origin: Origin) -> RepositoryName:
    repository = parse_repository(text)
    if not any(prefix in origin.prefixes for prefix in prefixes_of(repository)):
        raise _RefusedError("not-owned", f"Pod {origin.pod} does not own the repository {repository!r}.")
    return repository


def _parse_source_repository(text: str | None) -> RepositoryName | None:
    """Return the source of a mount, which is only informative; None if it is not a valid name."""
    try:
        return parse_repository(text) if text else None
    except InvalidNameError:
        return None


def _clean(text: str) -> str:
    # PostgreSQL's text holds every character but NUL.
    return text.replace("\0", "\ufffd")
