"""What an event says about the table, as facts.

Events are hints about a registry's state; a fact is the part of one that can change who references what.
Not here: JSON (schemas/), what a fact does to the table (fold.py).
"""

from datetime import datetime
from typing import NamedTuple

from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestContent


class ManifestPushed(NamedTuple):
    """The repository holds the manifest. `content` is None while nobody has said what it lists.

    `read`: the content is that of the manifest's own bytes, and not a pod's report.
    `linked`: the repository has a link of it. Without one, it is what a held index lists (table/implied.py).
    `by_links`: it can need what its repository links, since its bytes do not say all that it needs.
    """

    repository: RepositoryName
    digest: Digest
    at: datetime
    size: int | None
    content: ManifestContent | None
    read: bool = False
    linked: bool = True
    by_links: bool = False


class ManifestRead(NamedTuple):
    """The bytes of a known manifest were read, or cannot be (`content` is None); who holds it stays as it is."""

    digest: Digest
    size: int | None
    content: ManifestContent | None
    by_links: bool = False


class BlobLinked(NamedTuple):
    """The repository links the blob directly: an upload or a mount."""

    repository: RepositoryName
    digest: Digest
    at: datetime
    size: int | None


class Removed(NamedTuple):
    """The repository no longer has this digest. A manifest and a blob look the same here."""

    repository: RepositoryName
    digest: Digest
    at: datetime
    #: Whichever of the two it has it as, it has neither any more.
    entirely: bool = False


class RepositoryRemoved(NamedTuple):
    """The repository no longer has anything."""

    repository: RepositoryName
    at: datetime


class RepositoryRenamed(NamedTuple):
    """All that `repository` has is now under `destination`; with `below`, repositories under it move too."""

    repository: RepositoryName
    destination: RepositoryName
    below: bool
    at: datetime


Fact = ManifestPushed | ManifestRead | BlobLinked | Removed | RepositoryRemoved | RepositoryRenamed
