"""The key tree of distribution, below the root that pods share.

    docker/registry/v2/
      blobs/sha256/<2 hex>/<hex>/data                                   layers, configs and manifests alike
      repositories/<name>/_layers/sha256/<hex>/link                     the repository links this blob
      repositories/<name>/_manifests/revisions/sha256/<hex>/link        the repository holds this manifest
      repositories/<name>/_manifests/tags/<tag>/current/link
      repositories/<name>/_manifests/tags/<tag>/index/sha256/<hex>/link
      repositories/<name>/_uploads/<uuid>/…

A link object's content is `sha256:<hex>`.
"""

from coordinator.domain.names import Digest, RepositoryName

BASE = "docker/registry/v2"
BLOBS = f"{BASE}/blobs/sha256/"


def blob_key(digest: Digest) -> str:
    hexadecimal = digest.hex()
    return f"{BLOBS}{hexadecimal[:2]}/{hexadecimal}/data"


def repository_prefix(repository: RepositoryName) -> str:
    return f"{BASE}/repositories/{repository}/"


def layer_link_key(repository: RepositoryName, digest: Digest) -> str:
    return f"{repository_prefix(repository)}_layers/sha256/{digest.hex()}/link"


def revisions_prefix(repository: RepositoryName) -> str:
    return f"{repository_prefix(repository)}_manifests/revisions/sha256/"


def revision_link_key(repository: RepositoryName, digest: Digest) -> str:
    return f"{revisions_prefix(repository)}{digest.hex()}/link"
