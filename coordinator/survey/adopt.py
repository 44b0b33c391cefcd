"""Move a pod's own registry store to the shared layer: copy missing blobs, then write the links.

Route: `read_stores` both stores -> adopt_plan.plan -> `execute_plan` -> the caller requests a reconcile of the pod

Nothing at the source is written or deleted. Nothing in the shared layer is replaced, except a tag that the source has
moved since. A second run does what the first left undone: a linked blob is hashed again only if something that is not
linked yet needs it. Its link may have been written without a check, or its bytes overwritten since.

Bytes. A blob counts as adopted when its bytes were hashed to its digest. A copy is made so that wrong bytes are never
at a digest's key, where a registry could link them: streamed bytes are hashed on their way, and the upload is aborted
if they are wrong; for a copy within the service the source is hashed first, and then just those bytes (by their ETag)
are copied. If the shared layer has the blob already, the source's bytes are hashed all the same, since only a source
that has the bytes may have the link; the shared layer's are hashed too, since the source may be deleted after this. A
blob that differs stays as it is in both, is reported, and nothing is linked to it.

Order. For each repository: its blobs; a layer's link as soon as its blob is there; links of manifests when everything
that they list and that the source stores is there, children first; tags last. So however the run ends, no link of ours
is without its blob.

Against garbage collection (see the design's states). GC may hide an unreferenced blob of the shared layer at any time,
so also between our look-up and our link, and purges it no sooner than a quarantine after that. Links first would not
help: a hide looks up only links of removed referrers, and a link does not count before the table has it. So:
  1. After all links are written, every blob is looked up once more. One that was hidden before this gives 404 and is
     copied again: that is another version, which no purge of an earlier hide deletes.
  2. So a hidden blob was hidden after that look-up, and is not purged before a quarantine has passed since.
  3. A reconcile that begins after the links were written adds the references to the table: that restores hidden blobs,
     and keeps the others. It has to end before a quarantine has passed since the look-up; the caller requests it at
     once, and it is an error if that fails.
  4. Until then the source still has everything. Keep it until the reconcile is done.
Not here: the plan (adopt_plan.py), the reconcile (reconcile/reconcile.py), printing (commands/adopt.py).
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from coordinator.domain.names import Digest, format_digest
from coordinator.errors import BaleenError, ConflictError, UnavailableError
from coordinator.storage.layout import REPOSITORIES, blob_key
from coordinator.storage.port import ObjectNotFoundError, ObjectReader, ObjectStore
from coordinator.survey.adopt_plan import (
    AdoptionInput,
    Figures,
    Plan,
    Remark,
    RepositoryPlan,
    Revision,
    TagWrite,
    Why,
    find_needed_blobs,
    select_owned,
)
from coordinator.survey.tree import (
    Item,
    Link,
    map_in_threads,
    read_all_manifests,
    read_links,
    read_sizes,
    read_tag_target,
)

#: Blobs and links that are processed at once.
THREADS = 8
#: Attempts of the last look-up of all blobs, if some were gone each time.
CHECK_ROUNDS = 3

OnProgress = Callable[[Figures], None]


class Trust(NamedTuple):
    """Stores whose bytes are trusted to match their digests, without hashing."""

    #: Only for a source that is the operator's own: another one may claim to have blobs that it has not.
    source: bool = False
    shared: bool = False


NO_TRUST = Trust()


class AdoptionResult(NamedTuple):
    figures: Figures
    #: Those of the plan, and those of the run.
    remarks: Sequence[Remark]
    #: Blobs that were gone at the last look-up, and were copied once more.
    copied_again: int = 0


class _RefusedError(BaleenError):
    """A blob's bytes do not match its digest, or are gone."""


def read_stores(
    source: ObjectReader,
    shared: ObjectReader,
    prefixes: Collection[str],
    pool: Executor,
    *,
    only_owned: bool = False,
    report: Callable[[str], None] = lambda what: None,
) -> AdoptionInput:
    """Read everything that the plan needs. Raises ConflictError if the source has repositories of other pods."""
    report("listing the source's links")
    links = read_links(source, [REPOSITORIES], pool)
    ours = select_owned(links, prefixes, only_owned=only_owned)
    links = {name: links[name] for name in ours}
    report("listing the source's blobs")
    sizes = read_sizes(source)
    report("reading the source's manifests")
    links, manifests = read_all_manifests(source, links, sizes.keys(), pool)
    report("listing the pod's links in the shared layer")
    there = read_links(shared, [f"{REPOSITORIES}{prefix}/" for prefix in prefixes], pool)
    report("looking for the blobs in the shared layer")
    needed = sorted({digest for each in links.values() for digest in find_needed_blobs(each, manifests, sizes.keys())})
    heads = map_in_threads(pool, lambda digest: shared.head(blob_key(digest)), needed)
    return AdoptionInput(
        links=links,
        sizes=sizes,
        manifests=manifests,
        shared_links={name: there[name] for name in ours if name in there},
        shared_sizes={digest: head.size for digest, head in zip(needed, heads, strict=True) if head is not None},
    )


def execute_plan(
    plan: Plan,
    source: ObjectReader,
    shared: ObjectStore,
    pool: Executor,
    *,
    trust: Trust = NO_TRUST,
    progress: OnProgress = lambda figures: None,
) -> AdoptionResult:
    """Do what the plan says. Raises UnavailableError if a store does not answer; what is done stays done."""
    return _Adoption(plan, source, shared, pool, trust, progress).run()


class _Adoption:
    def __init__(
        self, plan: Plan, source: ObjectReader, shared: ObjectStore, pool: Executor, trust: Trust, progress: OnProgress
    ) -> None:
        self._plan = plan
        self._source = source
        self._shared = shared
        self._pool = pool
        self._trust = trust
        self._progress = progress
        #: Guards everything below.
        self._lock = threading.Lock()
        self._done = plan.figures._replace(
            copied_blobs=0, copied_bytes=0, layer_links=0, revision_links=0, tag_links=0, repositories=0
        )
        self._remarks = list(plan.remarks)
        self._refused: dict[Digest, str] = {}
        #: Blobs that need no more hashing: at first those that have their links, and on which no new link relies.
        self._verified = set(plan.needed).difference(blob.digest for each in plan.repositories for blob in each.blobs)
        self._copied_again = 0
        self._is_checking_again = False
        #: Whether the service copies between the two stores; None until it was tried.
        self._by_service: bool | None = None

    def run(self) -> AdoptionResult:
        for each in self._plan.repositories:
            self._adopt_repository(each)
            self._add_counts(repositories=1)
        self._check_blobs_again()
        return AdoptionResult(self._done, self._remarks, self._copied_again)

    def _adopt_repository(self, each: RepositoryPlan) -> None:
        name = each.repository
        links = {link.digest: link for link in each.layers if link.digest is not None}
        digests = dict.fromkeys([*(blob.digest for blob in each.blobs), *links])
        self._for_all(lambda digest: self._adopt_layer(name, digest, links.get(digest)), digests)
        left_out: set[Digest] = set()
        for wave in _split_waves(each.revisions):
            self._for_all(lambda revision: self._adopt_revision(name, revision, left_out), wave)
        moved = {tag.link.tag: tag for tag in each.tags}
        history: dict[str | None, list[Link]] = {tag: [] for tag in moved}
        for link in each.history:
            history.setdefault(link.tag, []).append(link)
        self._for_all(lambda tag: self._adopt_tag(name, moved.get(tag), history[tag], left_out), history)

    def _adopt_layer(self, name: str, digest: Digest, link: Link | None) -> None:
        if not self._bring_blob(digest):
            self._add_remark(Why.REFUSED, name, format_digest(digest), self._refused[digest])
        elif link is not None:
            self._write_link(link, digest)
            self._add_counts(layer_links=1)

    def _adopt_revision(self, name: str, revision: Revision, left_out: set[Digest]) -> None:
        bad = [each for each in revision.needs if each in self._refused or each in left_out]
        if bad or not self._bring_blob(revision.digest):
            with self._lock:
                left_out.add(revision.digest)
            if bad:
                what = f"it lists {format_digest(bad[0])}"
                self._add_remark(Why.LEFT_OUT, name, format_digest(revision.digest), what)
            return
        self._write_link(revision.link, revision.digest)
        self._add_counts(revision_links=1)

    def _adopt_tag(self, name: str, tag: TagWrite | None, history: Sequence[Link], left_out: set[Digest]) -> None:
        """Write a tag's history and then, if `tag` is given, where it points now; nothing if the tag changed since."""
        if tag is not None:
            label = tag.link.tag or ""
            if tag.digest in left_out:
                self._add_remark(Why.LEFT_OUT, name, label, f"{format_digest(tag.digest)} is not adopted")
                return
            if (now := read_tag_target(self._shared, tag.link)) not in {tag.there, tag.digest}:
                where = "nowhere" if now is None else f"to {format_digest(now)}"
                self._add_remark(
                    Why.TAG_KEPT, name, label, f"it changed meanwhile: in the shared layer it points {where}"
                )
                return
        for link in history:
            if link.digest is not None and link.digest not in left_out:
                self._write_link(link, link.digest)
                self._add_counts(tag_links=1)
        if tag is not None:
            self._write_link(tag.link, tag.digest)
            self._add_counts(tag_links=1)

    def _write_link(self, link: Link, digest: Digest) -> None:
        self._shared.put(link.key, format_digest(digest).encode())

    def _bring_blob(self, digest: Digest) -> bool:
        """Copy the blob to the shared layer if it is missing, and verify its bytes; return False if it is refused."""
        if digest in self._refused:
            return False
        key, size = blob_key(digest), self._plan.needed[digest]
        known = self._shared.head(key)
        try:
            if known is None:
                self._copy_blob(digest, key, size)
                known = self._shared.head(key)
                if known is None:
                    raise UnavailableError(
                        f"{format_digest(digest)} is gone from the shared layer just after it was copied. Find out "
                        "what deletes there, and run this again."
                    )
            elif known.size == size and digest not in self._verified:
                self._verify_bytes(digest, key)
            _compare_sizes(size, known.size)
        except _RefusedError as error:
            with self._lock:
                self._refused[digest] = str(error)
            return False
        with self._lock:
            self._verified.add(digest)
        return True

    def _copy_blob(self, digest: Digest, key: str, size: int) -> None:
        try:
            if self._by_service is False or not self._copy_by_service(digest, key):
                with self._source.open(key) as opened:
                    self._shared.put_chunks(key, _verify_chunks(digest, opened.chunks), opened.size)
        except ObjectNotFoundError as error:
            raise _RefusedError("the source no longer has it") from error
        except ConflictError as error:
            raise _RefusedError("its bytes in the source changed while they were copied") from error
        with self._lock:
            if self._is_checking_again:
                self._copied_again += 1
                return
        self._add_counts(copied_blobs=1, copied_bytes=size)

    def _copy_by_service(self, digest: Digest, key: str) -> bool:
        etag = None
        if not self._trust.source:
            with self._source.open(key) as opened:
                etag = opened.etag
                if etag is None:
                    return False  # without an ETag, other bytes than the hashed ones may be copied
                for _ in _verify_chunks(digest, opened.chunks):
                    pass
        self._by_service = self._shared.copy_from(self._source, key, key, etag=etag)
        return self._by_service

    def _verify_bytes(self, digest: Digest, key: str) -> None:
        """Compare the bytes of a blob with its digest, in both stores."""
        stores = (
            (self._source, self._trust.source, "in the source"),
            (self._shared, self._trust.shared, "in the shared layer"),
        )
        for store, trusted, where in stores:
            if trusted:
                continue
            try:
                with store.open(key) as opened:
                    for _ in _verify_chunks(digest, opened.chunks, where):
                        pass
            except ObjectNotFoundError as error:
                raise _RefusedError(f"it is no longer {where}") from error

    def _check_blobs_again(self) -> None:
        """Look up every blob once more after the links were written; see "Against garbage collection" above."""
        self._is_checking_again = True
        wanted = [digest for digest in self._plan.needed if digest not in self._refused]
        for _ in range(CHECK_ROUNDS):
            heads = map_in_threads(self._pool, lambda digest: self._shared.head(blob_key(digest)), wanted)
            gone = [digest for digest, head in zip(wanted, heads, strict=True) if head is None]
            if not gone:
                return
            self._for_all(self._bring_blob_again, gone)
        raise BaleenError(
            f"{len(gone)} blobs are gone from the shared layer each time after they were copied. Find out what deletes "
            "there, and run this again."
        )

    def _bring_blob_again(self, digest: Digest) -> None:
        if not self._bring_blob(digest):
            raise BaleenError(
                f"{format_digest(digest)} is linked and gone from the shared layer, and cannot be copied again: "
                f"{self._refused[digest]}. Restore its bytes before the pod uses the shared layer."
            )

    def _for_all(self, do: Callable[[Item], None], items: Iterable[Item]) -> None:
        for _ in map_in_threads(self._pool, do, items):
            pass

    def _add_counts(self, **more: int) -> None:
        with self._lock:
            self._done = self._done._replace(**{name: getattr(self._done, name) + more[name] for name in more})
            done = self._done
        self._progress(done)

    def _add_remark(self, why: Why, name: str, what: str, detail: str) -> None:
        with self._lock:
            self._remarks.append(Remark(why, name, what, detail))


def _verify_chunks(digest: Digest, chunks: Iterator[bytes], where: str = "in the source") -> Iterator[bytes]:
    """Give the chunks as they are; raise _RefusedError at their end if they do not match the digest."""
    seen = hashlib.sha256()
    for chunk in chunks:
        seen.update(chunk)
        yield chunk
    actual = Digest(seen.digest())
    if actual != digest:
        raise _RefusedError(f"its bytes {where} have the digest {format_digest(actual)}")


def _compare_sizes(size: int, there: int) -> None:
    if size != there:
        raise _RefusedError(f"the source stores {size} bytes, the shared layer {there}")


def _split_waves(revisions: Sequence[Revision]) -> Iterator[Sequence[Revision]]:
    """Split the manifests, children first, into waves in which none lists another: a wave can be linked in parallel."""
    wave: dict[Digest, Revision] = {}
    for revision in revisions:
        if not wave.keys().isdisjoint(revision.needs):
            yield list(wave.values())
            wave = {}
        wave[revision.digest] = revision
    if wave:
        yield list(wave.values())
