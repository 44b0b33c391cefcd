"""Where a registry's tree is, as an operator names it: `s3://bucket/root` or `file:///directory`.

The root is the folder that holds `docker/registry/v2`. An S3 location is meant literally, as S3's own tools do; a file
location is a URL, so `%20` is a space in it.
Not here: opening it (coordinator/compose/store.py).
"""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from coordinator.errors import UsageError

_HINT = "write s3://bucket/root or file:///directory, the folder that holds docker/registry/v2"


class S3Location(NamedTuple):
    bucket: str
    #: Without slashes at its ends; may be empty.
    root: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.root}".rstrip("/")


class FileLocation(NamedTuple):
    directory: Path

    @property
    def url(self) -> str:
        return f"file://{self.directory}"


Location = S3Location | FileLocation


def parse_location(text: str) -> Location:
    """Read a location; raises UsageError, without repeating what may be a secret."""
    scheme, found, rest = text.partition("://")
    place, slash, path = rest.partition("/")
    if not found or scheme not in {"s3", "file"}:
        raise UsageError(f"{text[:100]!r} is not a location: {_HINT}.")
    if "@" in place:
        raise UsageError(f"A location carries no credentials, set them in the environment: {_HINT}.")
    if scheme == "s3":
        if not place:
            raise UsageError(f"{text[:100]!r} names no bucket: {_HINT}.")
        return S3Location(place, path.strip("/"))
    if place not in {"", "localhost"}:
        raise UsageError(f"{text[:100]!r} names a file of another machine: {_HINT}.")
    directory = unquote(f"/{path}")
    if "\0" in directory or not slash:
        raise UsageError(f"{text[:100]!r} names no directory: {_HINT}.")
    return FileLocation(Path(directory))
