"""Read a registry's store into plain data: its links, the sizes of its blobs, the references of its manifests.

Everything is kept in memory, some hundred bytes per link and per blob: this is for one pod's store, not for the shared
layer. Other keys are skipped.
Not here: what is done with it (adopt_plan.py, adopt.py).
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from enum import Enum
from itertools import islice
from typing import NamedTuple, TypeVar

from coordinator.domain.names import Digest, RepositoryName, format_digest, parse_digest
from coordinator.domain.references import (
    MANIFEST_BYTES_LIMIT,
    MalformedManifestError,
    ManifestKind,
    is_manifest,
    parse_manifest,
)
from coordinator.errors import InvalidNameError, NotFoundError, UnavailableError, UsageError
from coordinator.storage.layout import BASE, BLOBS, REPOSITORIES, blob_key, parse_blob_key, repository_prefix
from coordinator.storage.port import ObjectNotFoundError, ObjectReader

#: A link has 71 bytes; a larger object is no link.
LINK_BYTES_LIMIT = 1024
#: Items that are submitted to threads at once, so that a million items are not a million futures.
ITEMS_AT_ONCE = 1000

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Kind(Enum):
    LAYER = "_layers/sha256"
    REVISION = "_manifests/revisions/sha256"
    TAG = "current"
    HISTORY = "index/sha256"


class Link(NamedTuple):
    """A link, by its key. `tag` is only set for links of tags, `digest` for all but a tag's current one."""

    kind: Kind
    repository: RepositoryName
    digest: Digest | None = None
    tag: str | None = None

    @property
    def key(self) -> str:
        base = repository_prefix(self.repository)
        if self.kind in {Kind.TAG, Kind.HISTORY}:
            base += f"_manifests/tags/{self.tag}/"
        return f"{base}{self.kind.value}/{'' if self.digest is None else f'{self.digest.hex()}/'}link"


class Links(NamedTuple):
    """The links of one repository."""

    layers: frozenset[Digest] = frozenset()
    revisions: frozenset[Digest] = frozenset()
    #: Where each tag points; None if its link cannot be read.
    tags: Mapping[str, Digest | None] = {}
    #: Where each tag points or has pointed.
    history: frozenset[tuple[str, Digest]] = frozenset()


class Manifest(NamedTuple):
    """A stored manifest: its references, or a sentence about why they are not known."""

    references: tuple[Digest, ...] = ()
    #: Why Baleen cannot read the bytes, though they match the digest.
    unread: str | None = None
    #: Why the bytes do not match the digest.
    corrupt: str | None = None
    #: It lists manifests.
    is_index: bool = False
    #: As far as is known, a registry could serve the bytes as a manifest.
    is_one: bool = True


def require_tree(store: ObjectReader, url: str) -> None:
    """Raise NotFoundError if the store has no registry; the message says where one may be."""
    store.check()
    if store.list(f"{BASE}/", limit=1):
        return
    try:
        near = {entry.key.partition(f"/{BASE}/")[0] for entry in store.list("") if f"/{BASE}/" in entry.key}
    except UnavailableError:
        near = set()
    hint = f"Name the folder that contains {BASE}."
    if near:
        hint = f"Did you mean {url.rstrip('/')}/{min(near)}?"
    elif url.rstrip("/").endswith(("/docker", "/docker/registry", f"/{BASE}")):
        hint = f"Name the folder that contains `docker`: {url[: url.rindex('/docker')] or '/'}."
    raise NotFoundError(
        f"{url} has no registry: there is nothing below {BASE}/, where blobs/ and repositories/ should be. {hint}"
    )


def parse_link(key: str) -> Link | None:
    """Parse the key of a link; return None for another key. The repository's name is not checked."""
    if not key.startswith(REPOSITORIES) or not key.endswith("/link"):
        return None
    *parts, _ = key.removeprefix(REPOSITORIES).split("/")
    match parts:
        case [*name, "_layers", "sha256", digest] if name:
            return _make_link(Kind.LAYER, name, digest)
        case [*name, "_manifests", "revisions", "sha256", digest] if name:
            return _make_link(Kind.REVISION, name, digest)
        case [*name, "_manifests", "tags", tag, "index", "sha256", digest] if name:
            return _make_link(Kind.HISTORY, name, digest, tag)
        case [*name, "_manifests", "tags", tag, "current"] if name:
            return Link(Kind.TAG, RepositoryName("/".join(name)), tag=tag)
    return None


def _make_link(kind: Kind, name: list[str], digest: str, tag: str | None = None) -> Link | None:
    try:
        return Link(kind, RepositoryName("/".join(name)), parse_digest(f"sha256:{digest}"), tag)
    except InvalidNameError:
        return None


def read_links(store: ObjectReader, prefixes: Iterable[str], pool: Executor) -> dict[RepositoryName, Links]:
    """Return the links of every repository whose keys begin with one of the prefixes."""
    found: dict[RepositoryName, dict[Kind, set[Link]]] = {}
    for prefix in prefixes:
        for entry in store.walk(prefix):
            if (link := parse_link(entry.key)) is not None:
                found.setdefault(link.repository, {kind: set() for kind in Kind})[link.kind].add(link)
    tags = [link for kinds in found.values() for link in sorted(kinds[Kind.TAG], key=lambda link: link.key)]
    targets = dict(zip(tags, map_in_threads(pool, lambda link: read_tag_target(store, link), tags), strict=True))
    return {
        repository: Links(
            layers=frozenset(link.digest for link in kinds[Kind.LAYER] if link.digest),
            revisions=frozenset(link.digest for link in kinds[Kind.REVISION] if link.digest),
            tags={link.tag: targets[link] for link in kinds[Kind.TAG] if link.tag},
            history=frozenset((link.tag, link.digest) for link in kinds[Kind.HISTORY] if link.tag and link.digest),
        )
        for repository, kinds in found.items()
    }


def read_tag_target(store: ObjectReader, link: Link) -> Digest | None:
    """Return where a tag's link points; None if it does not exist or cannot be read."""
    try:
        return parse_digest(store.get(link.key, limit=LINK_BYTES_LIMIT).decode().strip())
    except (ObjectNotFoundError, UsageError, UnicodeDecodeError):
        return None


def read_sizes(store: ObjectReader) -> dict[Digest, int]:
    """Return the size of every stored blob."""
    entries = ((parse_blob_key(entry.key), entry.size) for entry in store.walk(BLOBS))
    return {digest: size for digest, size in entries if digest is not None}


def read_manifests(store: ObjectReader, digests: Sequence[Digest], pool: Executor) -> dict[Digest, Manifest]:
    """Read these manifests; those that are not stored are left out."""
    read = map_in_threads(pool, lambda digest: read_manifest(store, digest), digests)
    return {digest: manifest for digest, manifest in zip(digests, read, strict=True) if manifest is not None}


def read_manifest(store: ObjectReader, digest: Digest) -> Manifest | None:
    try:
        body = store.get(blob_key(digest), limit=MANIFEST_BYTES_LIMIT)
    except ObjectNotFoundError:
        return None
    except UsageError as error:
        return Manifest(unread=str(error), is_one=False)
    actual = Digest(hashlib.sha256(body).digest())
    if actual != digest:
        return Manifest(corrupt=f"its bytes have the digest {format_digest(actual)}")
    try:
        content = parse_manifest(body)
    except MalformedManifestError as error:
        return Manifest(unread=str(error), is_one=is_manifest(body))
    listed = tuple(reference.digest for reference in content.references)
    return Manifest(listed, is_index=content.kind is ManifestKind.INDEX)


def read_all_manifests(
    store: ObjectReader, links: Mapping[RepositoryName, Links], sizes: Collection[Digest], pool: Executor
) -> tuple[dict[RepositoryName, Links], dict[Digest, Manifest]]:
    """Read the manifests of all repositories; return them, and the links with every manifest among the revisions.

    An index or a tag may name a manifest that is linked only as a blob (reconcile/linked_manifests.py): it is added.
    """
    held = dict(links)
    manifests: dict[Digest, Manifest] = {}
    checked: set[Digest] = set()
    while True:
        named = {repository: _linked_as_blobs(each, manifests) for repository, each in held.items()}
        wanted = {digest for name in held for digest in held[name].revisions | named[name]} - checked
        manifests |= read_manifests(store, sorted(wanted.intersection(sizes)), pool)
        checked |= wanted
        found = {
            name: {each for each in digests if each in manifests and manifests[each].is_one}
            for name, digests in named.items()
        }
        held = {name: each._replace(revisions=each.revisions | found[name]) for name, each in held.items()}
        if not wanted and not any(found.values()):
            revisions = {digest for each in held.values() for digest in each.revisions}
            return held, {digest: manifest for digest, manifest in manifests.items() if digest in revisions}


def _linked_as_blobs(links: Links, manifests: Mapping[Digest, Manifest]) -> set[Digest]:
    """Return digests that a repository's tags, their history, or its indexes name, and that it links only as blobs."""
    named = {digest for digest in links.tags.values() if digest is not None}
    named.update(digest for _, digest in links.history)
    for digest in links.revisions:
        if digest in manifests and manifests[digest].is_index:
            named.update(manifests[digest].references)
    return (named & links.layers) - links.revisions


def map_in_threads(
    pool: Executor, do: Callable[[Item], Outcome], items: Iterable[Item], at_once: int = ITEMS_AT_ONCE
) -> Iterator[Outcome]:
    """Call `do` for each item in the pool's threads, and give the results in order; an error ends it."""
    waiting = iter(items)
    while batch := list(islice(waiting, at_once)):
        yield from pool.map(do, batch)
