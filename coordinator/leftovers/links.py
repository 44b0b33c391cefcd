"""Delete layer links of purged blobs, and write a link back if a push relied on it meanwhile.

Why 71 bytes are worth it: each reconcile lists all links of its pod, and links without blobs would make it slower for
ever. As long as such a link exists, a later push of the blob to another repository lets clients of this one read it.

A link of a purged blob leads nowhere, until the blob is pushed again through *any* repository: then the link counts
again, and a registry may accept a manifest that relies on it. That can happen between the last check and the delete:

    1. a look-up finds no bytes of the blob; the delete of the old link is permitted
    2. a client pushes the blob through another repository
    3. the registry answers a client of this repository that it has the blob, and accepts its manifest
    4. the delete lands: the manifest is there, the bytes are there, and no link leads to them

So each such delete is first written to gc_unlinks, and the link is written back if its blob turns out to be needed, or
to have bytes. The row is deleted only once no client can have relied on the link: the delete's bound has passed, so it
landed or never will; then R has passed, so every request that had read the link has ended; and the blob is still purged
without bytes. Had a manifest that relies on the link been accepted, there would be bytes, since only Baleen deletes
them.
Links are written back by workers, all the time, if the table says that they are needed (`write_needed_links_back`); and
by each collection, after a look-up in storage (`resolve_links`). A link that is written back needlessly gives a
repository what it had before, and costs 71 bytes.
Not here: when collection looks for links, and the machinery of a run (run.py, sweep.py).
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.domain.pods import prefixes_of
from coordinator.errors import UnavailableError
from coordinator.jobs.table import Job
from coordinator.leftovers import table
from coordinator.leftovers.sweep import PAGE_SIZE, Batch, Item, Sweep
from coordinator.leftovers.table import Unlink
from coordinator.storage.layout import blob_key, layer_link_key
from coordinator.storage.port import ObjectStore, Permit, Target

log = structlog.get_logger()


class LinkDeleter:
    """Decides which links are deleted, page by page, and adds them to a batch (`allow`, `check_again`)."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        with sweep.connections.use() as connection:
            self._room = sweep.sizes.watched_links - table.count_unlinks(connection)

    @property
    def is_full(self) -> bool:
        """Whether as many links are watched as may be: the next run takes the others, once these are resolved."""
        return self._room <= 0

    def decide_page(self, page: Sequence[tuple[RepositoryName, Digest]], batch: Batch) -> None:
        """Add the links of blobs that were purged long ago, if they are older than the purge."""
        if self.is_full:
            return
        before = self._sweep.cut_off(self._sweep.ages.links)
        with self._sweep.connections.use() as connection:
            prefixes = set(table.read_manifest_prefixes(connection))
            purged = table.read_purge_times(connection, {digest for _, digest in page})
        wanted = [
            (repository, digest)
            for repository, digest in dict.fromkeys(page)
            if digest in purged and purged[digest] <= before and not prefixes.isdisjoint(prefixes_of(repository))
        ]
        for item in self._sweep.pool.map(lambda link: self._check_link(link[0], link[1], purged[link[1]]), wanted):
            if item is not None and not self.is_full:
                self._room -= 1
                batch.add(item)

    def _check_link(self, repository: RepositoryName, digest: Digest, purged_at: datetime.datetime) -> Item | None:
        """Check a link and its blob in storage; return the item to delete, None if the link stays."""
        key = layer_link_key(repository, digest)
        states = self._sweep.store.list_versions(key)
        if not states or states[0].is_marker:
            return None
        # The store's clock and the database's differ by less than the bound of a request.
        if any(each.modified_at + self._sweep.facts.times.request_bound > purged_at for each in states):
            return None
        if any(not each.is_marker for each in self._sweep.store.list_versions(blob_key(digest))):
            return None
        # Delete all versions: without the newest, an older one would be the link again. If there are more than one
        # request may delete, delete the oldest: the link stays as it is, and the next run takes more.
        to_delete = states[-self._sweep.sizes.deletes :]
        targets = [Target(key, each.version) for each in to_delete]
        things = sum(each.latest for each in to_delete)
        return Item(key, targets, things, sum(each.size or 0 for each in to_delete), about=(repository, digest))

    @contextmanager
    def allow(self, items: Sequence[Item]) -> Iterator[Permit]:
        job, before = self._sweep.work.job, self._sweep.cut_off(self._sweep.ages.links)
        with self._sweep.connections.use() as connection:
            unlinks = table.record_unlinks(connection, job, [item.about for item in items])
        yield self._sweep.make_permit(lambda connection: table.permit_unlink(connection, job, unlinks, before))

    def check_again(self, items: Sequence[Item]) -> None:
        """Write back at once the links of blobs that have bytes again; later checks follow (`resolve_links`)."""
        heads = self._sweep.pool.map(lambda item: self._sweep.store.head(blob_key(item.about[1])), items)
        for item, head in zip(items, heads, strict=True):
            if head is not None:
                write_link_back(self._sweep.store, *item.about)


def write_needed_links_back(connections: Connections, store: ObjectStore) -> int:
    """Write back links of blobs that the table says are needed again; return how many.

    Raises UnavailableError, after it has done all that it could.
    """

    def given_back(found: Unlink) -> bool:
        write_link_back(store, found.repository, found.digest)
        return True

    with connections.use() as connection:
        found = table.read_open_unlinks(connection, 0, PAGE_SIZE, needed=True)
    over, refused = _find_resolved(store, found, given_back)
    if over:
        with connections.use() as connection:
            table.delete_unlinks(connection, over)
    if refused is not None:
        raise refused
    return len(over)


def resolve_links(connections: Connections, store: ObjectStore, job: Job, bound: timedelta) -> int:
    """Check every deleted link: write it back, forget it, or leave it for later; return how many are left.

    `bound`: how long after its permit a delete, or a request that read the link before, may still be under way.
    Raises UnavailableError, after it has done all that it could.
    """
    after = left = 0
    failed: UnavailableError | None = None
    while True:
        with connections.use() as connection:
            found = table.read_open_unlinks(connection, after, PAGE_SIZE)
        if not found:
            if failed is not None:
                raise failed
            return left
        after = found[-1].id
        # The order matters: the table and the time were read first, the bytes are checked last.
        over, refused = _find_resolved(store, found, lambda each: _is_resolved(store, each, job, bound))
        failed = failed or refused
        with connections.use() as connection:
            table.delete_unlinks(connection, over)
        left += len(found) - len(over)


def _find_resolved(
    store: ObjectStore, found: Sequence[Unlink], is_over: Callable[[Unlink], bool]
) -> tuple[list[int], UnavailableError | None]:
    """Return the ids that are resolved, and the error of one that failed: the others go on while the store answers."""
    over: list[int] = []
    refused = None
    for each in found:
        try:
            if is_over(each):
                over.append(each.id)
        except UnavailableError as error:
            store.check()
            refused = error
    return over, refused


def _is_resolved(store: ObjectStore, found: Unlink, job: Job, bound: timedelta) -> bool:
    if found.needed or store.head(blob_key(found.digest)) is not None:
        write_link_back(store, found.repository, found.digest)
        return True
    if found.permitted_at is None:
        # If its job has lost the lease, it will never be permitted.
        return (found.run_id, found.taken) != (job.id, job.taken)
    return found.permitted_at + bound < found.now


def write_link_back(store: ObjectStore, repository: RepositoryName, digest: Digest) -> None:
    """Write a link again, also if it exists: a delete of it may be under way."""
    store.put(layer_link_key(repository, digest), format_digest(digest).encode())
    log.info("link was written back", repository=repository, digest=format_digest(digest))
