"""Count what deduplication would save in existing registry stores, from a listing of their keys alone.

Route: roots -> list (one thread for each root's blobs/ and one for its repositories/) -> spill -> count -> Survey

A key takes DISK_BYTES_PER_KEY on disk, and hardly any memory: a link becomes (root and kind, digest, repository), a
stored blob (root, digest, size), each in the bucket of its digest's first byte. Counting takes one bucket after the
other. So memory does not depend on the number of keys or their order, except for the distinct digests of one bucket, a
256th of all, and for the positions of chunks, a thousandth of what is on disk.

A repository is identified by 64 bits of a hash of its root and name. Among a million repositories two have the same
hash with a probability of 3 in 100 million; then the number of repositories is one too small, and no other figure is
wrong.

Figures: *logical* sums a blob's size over the repositories that link it, as a layer or as a manifest, once for each.
*Stored* sums everything stored under `blobs/`. *Shared layer* is what one store for all roots would have. A link to a
blob that its root does not store has no size: it is reported, and adds nothing.
Not here: contents of links and manifests, which are not read; tags and uploads, which are no links to blobs.
"""

import heapq
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from coordinator.domain.names import Digest, format_digest
from coordinator.errors import UsageError
from coordinator.storage.layout import BASE, BLOBS, REPOSITORIES
from coordinator.storage.port import ObjectInfo, ObjectReader
from coordinator.survey.spill import BUCKETS, CHUNK_BYTES, Spill, Writer
from coordinator.survey.tree import require_tree

#: For a link or a blob, with its share of the repositories' records.
DISK_BYTES_PER_KEY = 52
ROOTS_LIMIT = 1000
LISTINGS_AT_ONCE = 8
#: Keys between two checks whether to stop, and between two calls of `OnProgress`.
BLOCK = 1000
TOP = 20
EXAMPLES = 5

_BLOBS = f"{BASE}/blobs/"
_LAYERS = "/_layers/sha256/"
_REVISIONS = "/_manifests/revisions/sha256/"
_TAGS = "/_manifests/tags/"
_UPLOADS = "/_uploads/"
#: `<64 hex digits>/link` at the end of a key.
_LINK_CHARACTERS = 69
_BLOB_CHARACTERS = len(BLOBS) + len("aa/") + 64 + len("/data")

# Records. The first field is twice the root's number, and one more for a revision's link.
_LINK_BYTES = 2 + 32 + 8
_HEAD_OF_LINK = struct.Struct("<34s8x")
_LINK = struct.Struct("<34s8s")
_BLOB = struct.Struct("<34sQ")
_REPOSITORY = struct.Struct("<2s8s")

OnProgress = Callable[[int], None]
#: What a listing gives for an object.
Entry = TypeVar("Entry")


class Root(NamedTuple):
    """A registry's store, and its name in the report."""

    url: str
    store: ObjectReader


@dataclass
class RootFigures:
    """Figures of one root. Blobs are stored blobs; bytes are their sizes."""

    url: str
    #: Repositories that link anything.
    repositories: int = 0
    #: Pairs of a repository and a blob that it links.
    links: int = 0
    blobs: int = 0
    stored_bytes: int = 0
    logical_bytes: int = 0
    #: Stored, and linked by one repository of this root only.
    unique_bytes: int = 0
    #: Stored, and linked by several repositories of this root.
    shared_bytes: int = 0
    #: Stored, and linked by none of this root.
    unlinked_blobs: int = 0
    unlinked_bytes: int = 0
    #: Stored, and stored by another root too.
    cross_root_bytes: int = 0
    #: Distinct blobs that are linked and not stored, and the links to them.
    missing_blobs: int = 0
    missing_links: int = 0
    #: Keys that no registry writes.
    odd_keys: int = 0


class SharedBlob(NamedTuple):
    """A blob that several repositories link, or several roots store."""

    digest: str
    size: int
    repositories: int
    roots: int


class Survey(NamedTuple):
    roots: Sequence[RootFigures]
    keys: int
    repositories: int
    #: Distinct digests that are stored.
    blobs: int
    logical_bytes: int
    stored_bytes: int
    #: Each digest once over all roots.
    shared_layer_bytes: int
    #: Of stored digests that only one repository of all roots links.
    unique_bytes: int
    #: Of digests that more than one root stores.
    cross_root_bytes: int
    cross_root_blobs: int
    #: Digests that roots store with different sizes: at least one of the copies is damaged.
    conflicting_blobs: int
    largest_shared: Sequence[SharedBlob]
    #: Examples of digests that are linked and not stored, and of keys that no registry writes, with their roots.
    missing_examples: Sequence[tuple[str, str]]
    odd_examples: Sequence[tuple[str, str]]
    disk_bytes: int

    @property
    def saving_bytes(self) -> int:
        return self.stored_bytes - self.shared_layer_bytes


def survey_roots(
    roots: Sequence[Root],
    *,
    top: int = TOP,
    directory: Path | None = None,
    progress: OnProgress = lambda keys: None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Survey:
    """List all roots and count. Several threads call `progress` with the number of keys listed so far.

    Raises NotFoundError if a root has no registry, UnavailableError if one cannot be listed to its end: partial figures
    would be too small.
    """
    if not 0 < len(roots) <= ROOTS_LIMIT or len({root.url for root in roots}) != len(roots):
        raise UsageError(f"Name 1 to {ROOTS_LIMIT} roots, each once.")
    for root in roots:
        require_tree(root.store, root.url)
    with ExitStack() as stack:
        links, blobs, repositories = (
            stack.enter_context(Spill(size, directory, chunk_bytes))
            for size in (_LINK_BYTES, _BLOB.size, _REPOSITORY.size)
        )
        listings: list[_Listing[Any]] = [
            *(_Links(number, root, links, repositories) for number, root in enumerate(roots)),
            *(_Blobs(number, root, blobs) for number, root in enumerate(roots)),
        ]
        _run_listings(listings, progress)
        count = _BucketCounts(roots, top)
        for bucket in range(BUCKETS):
            count.add_repositories(repositories, bucket)
            count.add_bucket(links, blobs, bucket)
        for listing in listings:
            count.figures[listing.number].odd_keys += listing.odd
            count.odd_examples += [(roots[listing.number].url, key) for key in listing.odd_examples]
        disk = sum(each.bytes for each in (links, blobs, repositories))
    return count.result(sum(listing.keys for listing in listings), disk)


class _Listing(Generic[Entry]):
    """One subtree of a root that is being listed into a spill. Subclasses parse the keys."""

    def __init__(self, number: int, root: Root, *spills: Spill) -> None:
        self.number = number
        self.root = root
        self._spills = spills
        self.keys = 0
        self.odd = 0
        self.odd_examples: list[str] = []

    def run(self, stop: threading.Event, listed: Callable[[], None]) -> None:
        writers = [Writer(spill) for spill in self._spills]
        entries = self.entries(self.root.store)
        while (block := list(islice(entries, BLOCK))) and not stop.is_set():
            self.add(block, *writers)
            self.keys += len(block)
            listed()
        for writer in writers:
            writer.close()

    def entries(self, store: ObjectReader) -> Iterator[Entry]:
        raise NotImplementedError

    def add(self, block: Iterable[Entry], *writers: Writer) -> None:
        raise NotImplementedError

    def note_odd(self, key: str) -> None:
        self.odd += 1
        if len(self.odd_examples) < EXAMPLES:
            self.odd_examples.append(key)


class _Links(_Listing[str]):
    _name, _id = "", b""

    def entries(self, store: ObjectReader) -> Iterator[str]:
        # Sizes are not needed: all links have the same, and nearly all keys are links.
        return store.walk_keys(REPOSITORIES)

    def add(self, block: Iterable[str], *writers: Writer) -> None:
        links, repositories = writers
        # This runs for every key, so as much as possible is done before the loop.
        as_layer, as_revision = (struct.pack("<H", 2 * self.number + kind) for kind in (0, 1))
        buffers, full, flush = links.buffers, links.full, links.flush
        name, repository, fromhex, start = self._name, self._id, bytes.fromhex, len(REPOSITORIES)
        layers, layers_length, revisions, revisions_length = _LAYERS, len(_LAYERS), _REVISIONS, len(_REVISIONS)
        for key in block:
            before, hexadecimal = key[start:-_LINK_CHARACTERS], key[-_LINK_CHARACTERS:-5]
            if before[-layers_length:] == layers:
                found, head = before[:-layers_length], as_layer
            elif before[-revisions_length:] == revisions:
                found, head = before[:-revisions_length], as_revision
            else:
                self._note_other(key)
                continue
            try:
                digest = fromhex(hexadecimal)
            except ValueError:
                digest = b""
            if digest.hex() != hexadecimal or not found or key[-5:] != "/link":
                self._note_other(key)
                continue
            if found != name:
                name, repository = found, self._begin_repository(found, repositories)
            bucket = digest[0]
            buffer = buffers[bucket]
            buffer += head + digest + repository
            if len(buffer) >= full:
                flush(bucket)
        self._name, self._id = name, repository

    def _begin_repository(self, name: str, repositories: Writer) -> bytes:
        """Record a repository, and return its id; a listing by names does so about once for each."""
        number = struct.pack("<H", self.number)
        repository = blake2b(name.encode(errors="surrogatepass"), digest_size=8, key=number).digest()
        bucket = repository[0]
        buffer = repositories.buffers[bucket]
        buffer += number + repository
        if len(buffer) >= repositories.full:
            repositories.flush(bucket)
        return repository

    def _note_other(self, key: str) -> None:
        if not (_UPLOADS in key or (_TAGS in key and key.endswith("/link"))):
            self.note_odd(key)


class _Blobs(_Listing[ObjectInfo]):
    def entries(self, store: ObjectReader) -> Iterator[ObjectInfo]:
        return store.walk(_BLOBS)

    def add(self, block: Iterable[ObjectInfo], *writers: Writer) -> None:
        (blobs,) = writers
        buffers, full, flush = blobs.buffers, blobs.full, blobs.flush
        head, pack, start = struct.pack("<H", 2 * self.number), struct.Struct("<Q").pack, len(BLOBS)
        for key, size, _ in block:
            hexadecimal = key[start + 3 : -5]
            try:
                digest = bytes.fromhex(hexadecimal)
            except ValueError:
                digest = b""
            if (
                len(key) != _BLOB_CHARACTERS
                or digest.hex() != hexadecimal
                or key[start : start + 3] != f"{hexadecimal[:2]}/"
                or key[-5:] != "/data"
                or key[:start] != BLOBS
            ):
                self.note_odd(key)
                continue
            bucket = digest[0]
            buffer = buffers[bucket]
            buffer += head + digest + pack(size)
            if len(buffer) >= full:
                flush(bucket)


def _run_listings(listings: Sequence[_Listing[Any]], progress: OnProgress) -> None:
    """Run all listings, some at a time; the first error ends the others, and is raised."""
    stop = threading.Event()

    def listed() -> None:
        progress(sum(listing.keys for listing in listings))

    with ThreadPoolExecutor(min(LISTINGS_AT_ONCE, len(listings)), thread_name_prefix="survey") as pool:
        running: list[Future[None]] = [pool.submit(listing.run, stop, listed) for listing in listings]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for each in running:
                each.cancel()
        for each in done:
            each.result()


class _BucketCounts:
    """Adds up one bucket after the other."""

    def __init__(self, roots: Sequence[Root], top: int) -> None:
        self._roots = roots
        self._top = top
        self.figures = [RootFigures(root.url) for root in roots]
        self._largest: list[tuple[int, bytes, int, int]] = []
        self._blobs = self._layer = self._unique = self._cross = self._cross_blobs = self._conflicting = 0
        self._missing: list[tuple[str, str]] = []
        self.odd_examples: list[tuple[str, str]] = []

    def add_repositories(self, repositories: Spill, bucket: int) -> None:
        distinct = set(_unpack_records(_REPOSITORY, repositories.read(bucket)))
        for number, many in Counter(map(itemgetter(0), distinct)).items():
            self.figures[_root_number(number)].repositories += many

    def add_bucket(self, links: Spill, blobs: Spill, bucket: int) -> None:
        stored: dict[bytes, int] = dict(_unpack_records(_BLOB, blobs.read(bucket)))
        linked = _count_linking_repositories(links, bucket)
        for head, many in linked.items():
            tally = self.figures[_root_number(head) // 2]
            size = stored.get(head)
            tally.links += many
            if size is None:
                tally.missing_blobs += 1
                tally.missing_links += many
                if len(self._missing) < EXAMPLES:
                    self._missing.append((self._roots[_root_number(head) // 2].url, format_digest(Digest(head[2:]))))
                continue
            tally.logical_bytes += many * size
            if many == 1:
                tally.unique_bytes += size
            else:
                tally.shared_bytes += size
        #: By digest: the roots that store it, and its size there.
        copies: dict[bytes, list[tuple[int, int]]] = {}
        for head, size in stored.items():
            number = _root_number(head) // 2
            tally = self.figures[number]
            tally.blobs += 1
            tally.stored_bytes += size
            if head not in linked:
                tally.unlinked_blobs += 1
                tally.unlinked_bytes += size
            copies.setdefault(head[2:], []).append((number, size))
        repositories: Counter[bytes] = Counter()
        for head, many in linked.items():
            repositories[head[2:]] += many
        for digest, where in copies.items():
            self._add_blob(digest, where, repositories[digest])

    def _add_blob(self, digest: bytes, where: list[tuple[int, int]], repositories: int) -> None:
        size = max(each for _, each in where)
        self._blobs += 1
        self._layer += size
        if repositories == 1:
            self._unique += size
        if len(where) > 1:
            self._cross += size
            self._cross_blobs += 1
            self._conflicting += min(each for _, each in where) != size
            for number, own in where:
                self.figures[number].cross_root_bytes += own
        if repositories > 1 or len(where) > 1:
            heapq.heappush(self._largest, (size, digest, repositories, len(where)))
            if len(self._largest) > self._top:
                heapq.heappop(self._largest)

    def result(self, keys: int, disk: int) -> Survey:
        return Survey(
            roots=self.figures,
            keys=keys,
            repositories=sum(each.repositories for each in self.figures),
            blobs=self._blobs,
            logical_bytes=sum(each.logical_bytes for each in self.figures),
            stored_bytes=sum(each.stored_bytes for each in self.figures),
            shared_layer_bytes=self._layer,
            unique_bytes=self._unique,
            cross_root_bytes=self._cross,
            cross_root_blobs=self._cross_blobs,
            conflicting_blobs=self._conflicting,
            largest_shared=[
                SharedBlob(format_digest(Digest(digest)), size, repositories, roots)
                for size, digest, repositories, roots in sorted(self._largest, reverse=True)
            ],
            missing_examples=self._missing,
            odd_examples=self.odd_examples[:EXAMPLES],
            disk_bytes=disk,
        )


def _unpack_records(kind: struct.Struct, chunks: Iterator[bytes]) -> Iterator[tuple[Any, ...]]:
    return chain.from_iterable(map(kind.iter_unpack, chunks))


def _count_linking_repositories(links: Spill, bucket: int) -> Counter[bytes]:
    """Count the repositories that link each blob of a bucket, by its root and digest.

    Every link is listed once, so links are counted instead of repositories, which may be millions for one blob. Only
    if a digest is linked both as a layer and as a manifest are its repositories compared.
    """
    heads = Counter(chain.from_iterable(_unpack_records(_HEAD_OF_LINK, links.read(bucket))))
    both = {head for head in heads if not head[0] & 1 and _as_revision(head) in heads}
    linking: dict[bytes, set[bytes]] = {head: set() for head in both}
    if both:
        for head, repository in _unpack_records(_LINK, links.read(bucket)):
            if (plain := _as_layer(head)) in both:
                linking[plain].add(repository)
    found: Counter[bytes] = Counter()
    for head, many in heads.items():
        if (plain := _as_layer(head)) not in both:
            found[plain] = many
    found.update({head: len(repositories) for head, repositories in linking.items()})
    return found


def _as_layer(head: bytes) -> bytes:
    return head if not head[0] & 1 else bytes((head[0] - 1,)) + head[1:]


def _as_revision(head: bytes) -> bytes:
    return bytes((head[0] | 1,)) + head[1:]


def _root_number(head: bytes) -> int:
    return int.from_bytes(head[:2], "little")
