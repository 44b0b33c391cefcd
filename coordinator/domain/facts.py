"""Define facts: the parts of an event that can change which repository references which blob.

Not here: JSON (schemas/), what a fact does to the table (fold.py).
"""

from datetime import datetime
from typing import NamedTuple

from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestContent


class ManifestPushed(NamedTuple):
    """The repository holds the manifest. `content` is None while it is not known what the manifest lists.

    `read`: the content comes from the manifest's own bytes, not from a pod's report.
    `linked`: the repository has a link to it. If not, an index that the repository holds lists it (table/implied.py).
    `by_links`: its bytes do not say all that it needs, so it may need anything that its repository links.
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
    """The bytes of a known manifest were read, or cannot be (`content` is None); its holdings do not change."""

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
    """The repository no longer has this digest. It may be a manifest or a blob."""

    repository: RepositoryName
    digest: Digest
    at: datetime
    #: The repository has the digest neither as a manifest nor as a blob.
    entirely: bool = False


class RepositoryRemoved(NamedTuple):
    """The repository is empty."""

    repository: RepositoryName
    at: datetime


class RepositoryRenamed(NamedTuple):
    """Everything in `repository` moved to `destination`; with `below`, repositories under it moved, too."""

    repository: RepositoryName
    destination: RepositoryName
    below: bool
    at: datetime


Fact = ManifestPushed | ManifestRead | BlobLinked | Removed | RepositoryRemoved | RepositoryRenamed
