"""Find which repositories a dead letter concerns, from its payload. Not here: what follows (domain/dead_letters.py)."""

from collections.abc import Iterable
from typing import Final

import msgspec

from coordinator.domain.dead_letters import REPOSITORIES_LIMIT
from coordinator.domain.names import RepositoryName, parse_repository
from coordinator.errors import InvalidNameError

#: A payload with more commas has more JSON values than any manifest; reading it may cost 30 times its size.
COMMAS_LIMIT: Final = 400_000

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Rename(msgspec.Struct, rename={"from_": "from"}):
    from_: str
    to: str


class _Target(msgspec.Struct):
    repository: str
    rename: _Rename | None = None


class _Event(msgspec.Struct):
    action: str
    target: _Target


class _Envelope(msgspec.Struct):
    events: list[_Event]


class _RecordRename(msgspec.Struct):
    source: str
    destination: str


class _Record(msgspec.Struct):
    action: str
    repository: str
    rename: _RecordRename | None = None


_decoders = [msgspec.json.Decoder(kind) for kind in (_Envelope, _Event, _Record)]


def repositories_in(payload: bytes) -> list[RepositoryName] | None:
    """Return the repositories that a payload concerns, sorted; None if that is not known.

    The payload is a complete envelope, event, or record of registry.events. Every event in it must be understood: an
    action that Baleen does not know may concern other repositories than the one it names.
    """
    if payload.count(b",") > COMMAS_LIMIT:
        return None
    found: set[RepositoryName] = set()
    try:
        for name in _names_in(payload):
            found.add(parse_repository(name))
            if len(found) > REPOSITORIES_LIMIT:
                return None
    except (InvalidNameError, _UnknownError):
        return None
    return sorted(found)


class _UnknownError(Exception):
    """It is not known which repositories a payload concerns."""


def _names_in(payload: bytes) -> Iterable[str]:
    for reader in _decoders:
        try:
            read = reader.decode(payload)
        except _UNREADABLE:
            continue
        match read:
            case _Envelope(events):
                for event in events:
                    yield from _names_in_event(
                        event.action, event.target.repository, _renamed_names(event.target.rename)
                    )
            case _Event(action, target):
                yield from _names_in_event(action, target.repository, _renamed_names(target.rename))
            case _Record(action, repository, rename):
                yield from _names_in_event(action, repository, _renamed_names(rename))
        return
    raise _UnknownError


def _renamed_names(rename: _Rename | _RecordRename | None) -> tuple[str, ...]:
    match rename:
        case _Rename(before, after) | _RecordRename(before, after):
            return before, after
    return ()


def _names_in_event(action: str, repository: str, renamed: tuple[str, ...]) -> Iterable[str]:
    if action not in {"push", "mount", "delete", "pull", "rename"} or (action == "rename" and not renamed):
        raise _UnknownError
    yield repository
    if action == "rename":
        yield from renamed
