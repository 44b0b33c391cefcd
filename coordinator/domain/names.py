"""Parse and format the names of the OCI distribution specification, once, where they enter Baleen.

Inside Baleen a digest is its 32 raw bytes: half the size of the hex form in memory and in the table.
Not here: which pod owns a repository (see `owner_of` in pods.py).
"""

import re
from typing import NewType

from coordinator.errors import InvalidNameError

Digest = NewType("Digest", bytes)
RepositoryName = NewType("RepositoryName", str)
PodName = NewType("PodName", str)

#: A digest is sha256 only: it is the one algorithm that registries store under in practice.
DIGEST_BYTES = 32
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_POD = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

#: Many registries limit repository names to this (OCI distribution specification, "Pulling manifests").
REPOSITORY_NAME_LIMIT = 255


def parse_digest(text: str) -> Digest:
    """Return the 32 bytes of `sha256:<64 hex>`; raises InvalidNameError for anything else."""
    # An ordinary event has eleven of these. Formatting it again is a faster check than a regular expression.
    try:
        digest = bytes.fromhex(text[7:])
    except ValueError:
        digest = b""
    if len(digest) == DIGEST_BYTES and text == "sha256:" + digest.hex():
        return Digest(digest)
    raise InvalidNameError(f"{text[:100]!r} is not a digest: write sha256: and 64 lower-case hex digits.")


def format_digest(digest: Digest) -> str:
    return f"sha256:{digest.hex()}"


def parse_repository(text: str) -> RepositoryName:
    """Return a repository name as clients write it, such as `team/app`, without a host."""
    if len(text) > REPOSITORY_NAME_LIMIT or _REPOSITORY.fullmatch(text) is None:
        raise InvalidNameError(
            f"{text[:100]!r} is not a repository name: use lower-case path components, such as team/app."
        )
    return RepositoryName(text)


def parse_pod(text: str) -> PodName:
    """Return a pod's name: a DNS label, so that it can stand in URLs, keys and host names."""
    if _POD.fullmatch(text) is None:
        raise InvalidNameError(
            f"{text[:100]!r} is not a pod name: use up to 63 lower-case letters, digits and inner hyphens."
        )
    return PodName(text)
