"""What a mount asks for, and why one is not made: then the client uploads, as if it had asked for nothing.

OCI distribution-spec 1.1, "Mounting a blob from another repository". A mount never fails a push, so every reason ends
in the target pod's own answer to a plain upload.
Not here: who may (domain/access.py), whether the source has the blob (coordinator/mounts).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from coordinator.domain.names import Digest, RepositoryName, parse_digest, parse_repository
from coordinator.errors import InvalidNameError

#: Repositories that are looked into for a mount that names no source.
SOURCES_LIMIT = 20


class Outcome(StrEnum):
    """What became of a request."""

    MOUNTED = "mounted"
    #: The pod answered it as a plain upload.
    HANDED_ON = "handed-on"


class Reason(StrEnum):
    """Why a mount was not made."""

    #: There was no `mount`.
    NOT_ASKED = "not-asked"
    NOT_A_DIGEST = "not-a-digest"
    NOT_A_REPOSITORY = "not-a-repository"
    #: No pod owns the target: nobody can be asked for an upload either.
    UNKNOWN_TARGET = "unknown-target"
    #: The target's registry sends no events: what is linked there is known by listing it alone.
    UNMANAGED = "unmanaged"
    #: No pod owns the source.
    UNKNOWN_SOURCE = "unknown-source"
    #: No source is named, and the token may pull none that has it.
    NO_SOURCE = "no-source"
    #: The token may not, or there is none, or it is not good.
    NO_RIGHT = "no-right"
    #: The source has no such blob.
    NOT_THERE = "not-there"
    #: Registries are not served its bytes: collection has hidden it, or is about to, or it has lost them.
    NOT_SERVED = "not-served"
    #: The source keeps its bytes in a store of its own, and the target links what is in the shared one.
    NOT_SHARED = "not-shared"
    #: Database, store or registry did not answer in time.
    UNAVAILABLE = "unavailable"
    #: As many mounts are under way as may be.
    BUSY = "busy"
    #: Too large to be sent to another store while a client waits.
    TOO_LARGE = "too-large"


class NotMountedError(Exception):
    """A mount is not made; the message is for the log."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason = reason


class Wanted(NamedTuple):
    """A mount as it was asked for."""

    repository: RepositoryName
    digest: Digest
    #: None: any that the client may pull from.
    source: RepositoryName | None


def parse(repository: RepositoryName, parameters: Mapping[str, Sequence[str]]) -> Wanted:
    """Read the parameters of the request; raises NotMountedError. Of one that is given twice the first counts."""
    mount = _first(parameters, "mount")
    if not mount:
        raise NotMountedError(Reason.NOT_ASKED)
    source = _first(parameters, "from")
    try:
        digest = parse_digest(mount)
    except InvalidNameError as error:
        raise NotMountedError(Reason.NOT_A_DIGEST) from error
    try:
        return Wanted(repository, digest, parse_repository(source) if source else None)
    except InvalidNameError as error:
        raise NotMountedError(Reason.NOT_A_REPOSITORY) from error


def _first(parameters: Mapping[str, Sequence[str]], name: str) -> str | None:
    return next(iter(parameters.get(name, ())), None)
