"""Parse mount requests, and list the reasons why a mount is not made.

OCI distribution-spec 1.1, "Mounting a blob from another repository". A mount never fails a push: for each reason, the
client gets the target pod's own answer to a plain upload.
Not here: rights (domain/access.py), whether the source has the blob (coordinator/mounts).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from coordinator.domain.names import Digest, RepositoryName, parse_digest, parse_repository
from coordinator.errors import InvalidNameError

#: How many repositories are searched for a mount that names no source.
SOURCES_LIMIT = 20


class MountOutcome(StrEnum):
    """How a mount request ended."""

    MOUNTED = "mounted"
    #: It was forwarded, and the pod answered it as a plain upload.
    FORWARDED = "forwarded"


class Reason(StrEnum):
    """Why a mount was not made."""

    #: The request has no `mount` parameter.
    NOT_ASKED = "not-asked"
    NOT_A_DIGEST = "not-a-digest"
    NOT_A_REPOSITORY = "not-a-repository"
    #: No pod owns the target, so the upload cannot be forwarded either.
    UNKNOWN_TARGET = "unknown-target"
    #: The target's registry sends no events: only a listing shows what is linked there.
    UNMANAGED = "unmanaged"
    #: No pod owns the source.
    UNKNOWN_SOURCE = "unknown-source"
    #: No source is named, and the token may pull none that has it.
    NO_SOURCE = "no-source"
    #: The token does not permit it, is not valid, or is missing.
    NO_RIGHT = "no-right"
    #: The source has no such blob.
    NOT_THERE = "not-there"
    #: Its bytes are not served to registries: GC has hidden it or is about to, or they are missing.
    NOT_SERVED = "not-served"
    #: The source has its bytes in a store of its own, and the target links those in the shared one.
    NOT_SHARED = "not-shared"
    #: Database, store or registry did not answer in time.
    UNAVAILABLE = "unavailable"
    #: The limit of concurrent mounts is reached.
    BUSY = "busy"
    #: Too large to be sent to another store while a client waits.
    TOO_LARGE = "too-large"


class NotMountedError(Exception):
    """A mount is not made; the message is for the log."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason = reason


class MountRequest(NamedTuple):
    """A parsed mount request."""

    repository: RepositoryName
    digest: Digest
    #: None: any that the client may pull from.
    source: RepositoryName | None


def parse_mount(repository: RepositoryName, parameters: Mapping[str, Sequence[str]]) -> MountRequest:
    """Parse the parameters of the request; raises NotMountedError. If one is repeated, the first counts."""
    mount = _first_value(parameters, "mount")
    if not mount:
        raise NotMountedError(Reason.NOT_ASKED)
    source = _first_value(parameters, "from")
    try:
        digest = parse_digest(mount)
    except InvalidNameError as error:
        raise NotMountedError(Reason.NOT_A_DIGEST) from error
    try:
        return MountRequest(repository, digest, parse_repository(source) if source else None)
    except InvalidNameError as error:
        raise NotMountedError(Reason.NOT_A_REPOSITORY) from error


def _first_value(parameters: Mapping[str, Sequence[str]], name: str) -> str | None:
    return next(iter(parameters.get(name, ())), None)
