"""The key layout of distribution, below the root that pods share.

    docker/registry/v2/
      blobs/sha256/<2 hex>/<hex>/data                                   layers, configs and manifests alike
      repositories/<name>/_layers/sha256/<hex>/link                     the repository links this blob
      repositories/<name>/_layers/<algorithm>/<hex>/link                the same blob under another algorithm's digest
      repositories/<name>/_manifests/revisions/sha256/<hex>/link        the repository holds this manifest
      repositories/<name>/_manifests/tags/<tag>/current/link
      repositories/<name>/_manifests/tags/<tag>/index/sha256/<hex>/link
      repositories/<name>/_uploads/<uuid>/…

A link object's content is `sha256:<hex>`, also below another algorithm, except that a mount by another algorithm
writes that digest. Baleen adds `quarantine/<hex>/<hide id>`: hidden bytes, in a bucket without versions; and
`collected-by.json` with a copy, `collected-by.copy.json`: which database collects garbage there (gc/mark.py).
"""

from typing import NamedTuple

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import DIGEST_BYTES, Digest, RepositoryName, parse_repository
from coordinator.errors import InvalidNameError

BASE = "docker/registry/v2"
BLOBS = f"{BASE}/blobs/sha256/"
REPOSITORIES = f"{BASE}/repositories/"
#: Where a GitLab registry says whether it has a database; registries of the other sort then refuse to start.
LOCK_FILES = "docker/registry/lockfiles/"
QUARANTINE = "quarantine/"
MARK, MARK_COPY = "collected-by.json", "collected-by.copy.json"


#: The folder of a repository's links, for each kind.
LINK_FOLDERS = {LinkKind.REVISION: "_manifests/revisions/sha256/", LinkKind.LAYER: "_layers/sha256/"}
#: Where it keeps tags, and below each of them what it has pointed to.
TAGS, _HISTORY = "_manifests/tags/", "/index/sha256/"
#: Its folders of pending uploads, and of links to layers.
UPLOADS, LAYERS = "_uploads/", "_layers/"
#: What holds links to manifests, and tags.
MANIFESTS = "_manifests/"
#: What follows such a folder: 64 hex digits and the object's name.
_LINK_NAME = "/link"
_HEX = 2 * DIGEST_BYTES
#: Where the digest begins in the key of a blob, and what follows it.
_BLOB_DIGEST, _DATA = len(BLOBS) + len("00/"), len("/data")
LINK_LENGTH = _HEX + len(_LINK_NAME)
#: There is one of them: of a root whose GitLab registry has a database, or of one whose has none.
DATABASE_LOCK = f"{LOCK_FILES}database-in-use"
FILESYSTEM_LOCK = f"{LOCK_FILES}filesystem-in-use"


class LinkFolder(NamedTuple):
    repository: RepositoryName
    kind: LinkKind


def blob_key(digest: Digest) -> str:
    hexadecimal = digest.hex()
    return f"{BLOBS}{hexadecimal[:2]}/{hexadecimal}/data"


def parse_blob_key(key: str) -> Digest | None:
    """Return the digest of the blob whose bytes are under this key, or None if it is not such a key."""
    hexadecimal = key[_BLOB_DIGEST:-_DATA]
    try:
        digest = Digest(bytes.fromhex(hexadecimal))
    except ValueError:
        return None
    # Building the key again from the digest verifies all parts at once.
    return digest if len(digest) == DIGEST_BYTES and blob_key(digest) == key else None


def quarantine_key(digest: Digest, hide: int) -> str:
    """The key of the copy that one hide makes; no later hide or upload uses it."""
    return f"{quarantine_prefix(digest)}{hide}"


def quarantine_prefix(digest: Digest) -> str:
    """The prefix of the keys of all copies of a blob."""
    return f"{QUARANTINE}{digest.hex()}/"


def parse_quarantine_key(key: str) -> tuple[Digest, int] | None:
    """Return the digest and the hide of a copy, or None if it is not such a key."""
    hexadecimal, _, number = key.removeprefix(QUARANTINE).partition("/")
    try:
        found = Digest(bytes.fromhex(hexadecimal)), int(number)
    except ValueError:
        return None
    return found if quarantine_key(*found) == key else None


def repository_prefix(repository: RepositoryName) -> str:
    return f"{REPOSITORIES}{repository}/"


def link_folder(repository: RepositoryName, kind: LinkKind) -> str:
    return repository_prefix(repository) + LINK_FOLDERS[kind]


def link_key(repository: RepositoryName, kind: LinkKind, digest: Digest) -> str:
    return f"{link_folder(repository, kind)}{digest.hex()}{_LINK_NAME}"


def layer_link_key(repository: RepositoryName, digest: Digest) -> str:
    return link_key(repository, LinkKind.LAYER, digest)


def revision_link_key(repository: RepositoryName, digest: Digest) -> str:
    return link_key(repository, LinkKind.REVISION, digest)


def layers_folder(repository: RepositoryName) -> str:
    """The prefix of the keys of all links to layers, of any algorithm."""
    return repository_prefix(repository) + LAYERS


def link_folders(repository: RepositoryName) -> tuple[str, str]:
    """The prefixes of the keys of all links of a repository: to manifests (with its tags), and to layers."""
    return f"{repository_prefix(repository)}{MANIFESTS}", layers_folder(repository)


def is_link(key: str) -> bool:
    """Whether this is the key of a link, of any kind and algorithm, in any repository."""
    folder = _find_own_folder(key)
    return bool(folder) and key.endswith(_LINK_NAME) and key.startswith((MANIFESTS, LAYERS), folder)


def other_link_key(repository: RepositoryName, digest: str) -> str:
    """The key of the link to a layer by a digest of any algorithm, as it is written."""
    algorithm, _, encoded = digest.partition(":")
    return f"{layers_folder(repository)}{algorithm}/{encoded}{_LINK_NAME}"


def parse_upload_session(key: str) -> str | None:
    """Return the prefix of all keys of the upload session that a key belongs to, or None if it belongs to none."""
    # A tag's name may be `_uploads`, too.
    begin = _find_own_folder(key)
    end = key.find("/", begin + len(UPLOADS)) + 1
    return key[:end] if begin and end and key.startswith(UPLOADS, begin) else None


def parse_layer_link(key: str) -> tuple[RepositoryName, Digest] | None:
    """Return the repository and the digest of a layer's link, or None if it is not such a key."""
    found = parse_link_folder(key)
    if found is None or found[1].kind is not LinkKind.LAYER:
        return None
    digest = parse_link_name(key[len(found[0]) :])
    return None if digest is None else (found[1].repository, digest)


def parse_link_folder(key: str) -> tuple[str, LinkFolder] | None:
    """Return the key up to its digest, and the kind of folder; None if the key is not a link below a folder."""
    begin = _find_own_folder(key)
    for kind, folder in LINK_FOLDERS.items():
        if begin and key.startswith(folder, begin):
            repository = _repository_before(key, begin)
            return None if repository is None else (key[: begin + len(folder)], LinkFolder(repository, kind))
    return None


def parse_tags_folder(key: str) -> tuple[str, RepositoryName] | None:
    """Return the key up to the tag, and the repository; None if the key is not below a repository's tags."""
    begin = _find_own_folder(key)
    if not begin or not key.startswith(TAGS, begin):
        return None
    repository = _repository_before(key, begin)
    return None if repository is None else (key[: begin + len(TAGS)], repository)


def _find_own_folder(key: str) -> int:
    """Return where a repository's own folder begins in a key: no component of its name begins with an underscore.

    0 if the key is in no repository.
    """
    return key.find("/_", len(REPOSITORIES)) + 1 if key.startswith(REPOSITORIES) else 0


def _repository_before(key: str, folder: int) -> RepositoryName | None:
    try:
        return parse_repository(key[len(REPOSITORIES) : folder - 1])
    except InvalidNameError:
        return None


def parse_history(name: str) -> Digest | None:
    """Return the digest that a tag points to or has pointed to, from the key's rest below the tags; else None."""
    _, found, link = name.partition(_HISTORY)
    return parse_link_name(link) if found else None


def parse_link_name(name: str) -> Digest | None:
    """Return the digest of a link from the key's rest below its folder, or None if it is not a link."""
    hexadecimal = name[:_HEX]
    if name[_HEX:] != _LINK_NAME:
        return None
    try:
        digest = bytes.fromhex(hexadecimal)
    except ValueError:
        return None
    return Digest(digest) if digest.hex() == hexadecimal else None
