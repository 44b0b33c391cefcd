"""Layer links that garbage collection deletes, and gives back where somebody relied on one meanwhile.

A link of a purged blob leads nowhere, until the blob is pushed again through *any* repository: then it counts again,
and a manifest may be accepted that relies on it. That can happen between the last look and the delete:

    1. the blob has no bytes, by a look; the delete of the old link is permitted
    2. a client pushes the blob through another repository
    3. a client of this one is told that it has the blob, and its manifest is accepted
    4. the delete lands: the manifest is there, the bytes are there, and no link leads to them

So each such delete is written down first (gc_unlinks), and the link is put back if its blob turns out to be needed, or
to have bytes. It is forgotten only once nobody can have relied on it: the delete's bound has passed, so it landed or
never will; then R, so that every request has ended that had read the link before; and then the blob is still purged
and has no bytes. Had a manifest been accepted that relies on it, there would be some, since only Baleen deletes them.
Who puts back: workers, all the time, what the table says is needed (`give_back`); each collection, by a look
(`settle`). A link that is put back too much gives a repository what it had before, and is a leak of 71 bytes. Not
here: when collection looks for them, and the machinery of a run (run.py, sweep.py).
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
from coordinator.leftovers.sweep import PAGE, Batch, Item, Sweep
from coordinator.leftovers.table import Unlink
from coordinator.storage.layout import blob_key, layer_link_key
from coordinator.storage.port import DELETE_LIMIT, ObjectStore, Permit, Target

log = structlog.get_logger()

#: Deletes of links that are watched at once: workers look at all of them again and again.
OPEN_LIMIT = 50_000


class Links:
    """Decides about links, by the page: what of them is deleted goes into a batch (`allow`, `look_again`)."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        with sweep.connections.use() as connection:
            self._room = OPEN_LIMIT - table.count_unlinks(connection)

    @property
    def full(self) -> bool:
        """Whether there may be more, which is left to the next run: once these are over."""
        return self._room <= 0

    def decide(self, page: Sequence[tuple[RepositoryName, Digest]], batch: Batch) -> None:
        """Take those links that lead to what was purged long ago, and are older than that."""
        if self.full:
            return
        before = self._sweep.before(self._sweep.ages.links)
        with self._sweep.connections.use() as connection:
            prefixes = set(table.linked_prefixes(connection))
            purged = table.gone(connection, {digest for _, digest in page})
        wanted = [
            (repository, digest)
            for repository, digest in dict.fromkeys(page)
            if digest in purged and purged[digest] <= before and not prefixes.isdisjoint(prefixes_of(repository))
        ]
        for item in self._sweep.pool.map(lambda link: self._look(link[0], link[1], purged[link[1]]), wanted):
            if item is not None and not self.full:
                self._room -= 1
                batch.add(item)

    def _look(self, repository: RepositoryName, digest: Digest, purged_at: datetime.datetime) -> Item | None:
        """Look at a link and its blob; None if it stays."""
        key = layer_link_key(repository, digest)
        states = self._sweep.store.versions(key)
        if not states or states[0].is_marker:
            return None
        # The store's clock against the database's: they differ by less than a request may take.
        if any(each.modified_at + self._sweep.facts.times.request_bound > purged_at for each in states):
            return None
        if any(not each.is_marker for each in self._sweep.store.versions(blob_key(digest))):
            return None
        # All of them: below the newest an older one would be the link again. Of more than one request may delete the
        # oldest that are known: the link stays as it is, and the next run takes more.
        doomed = states[-DELETE_LIMIT:]
        targets = [Target(key, each.version) for each in doomed]
        things = sum(each.latest for each in doomed)
        return Item(key, targets, things, sum(each.size or 0 for each in doomed), about=(repository, digest))

    @contextmanager
    def allow(self, items: Sequence[Item]) -> Iterator[Permit]:
        job, before = self._sweep.work.job, self._sweep.before(self._sweep.ages.links)
        with self._sweep.connections.use() as connection:
            unlinks = table.unlink(connection, job, [item.about for item in items])
        yield self._sweep.asking(lambda connection: table.permit_unlink(connection, job, unlinks, before))

    def look_again(self, items: Sequence[Item]) -> None:
        """Give links back at once whose blobs have bytes again; the others are looked at later, too (`settle`)."""
        heads = self._sweep.pool.map(lambda item: self._sweep.store.head(blob_key(item.about[1])), items)
        for item, head in zip(items, heads, strict=True):
            if head is not None:
                put_back(self._sweep.store, *item.about)


def give_back(connections: Connections, store: ObjectStore) -> int:
    """Put back links of blobs that are needed again, by the table; return how many.

    Raises UnavailableError, with all of it done that could be.
    """

    def given_back(found: Unlink) -> bool:
        put_back(store, found.repository, found.digest)
        return True

    with connections.use() as connection:
        found = table.open_unlinks(connection, 0, PAGE, needed=True)
    over, refused = _those_over(store, found, given_back)
    if over:
        with connections.use() as connection:
            table.close_unlinks(connection, over)
    if refused is not None:
        raise refused
    return len(over)


def settle(connections: Connections, store: ObjectStore, job: Job, bound: timedelta) -> int:
    """Look at every link that may have been relied on: put it back, forget it, or leave it; return how many are left.

    `bound`: how long after its permit a delete, or a request that read the link before, may still be under way.
    Raises UnavailableError, with all of it done that could be.
    """
    after = left = 0
    failed: UnavailableError | None = None
    while True:
        with connections.use() as connection:
            found = table.open_unlinks(connection, after, PAGE)
        if not found:
            if failed is not None:
                raise failed
            return left
        after = found[-1].id
        # The table, and with it the time, was asked first, and the bytes are last.
        over, refused = _those_over(store, found, lambda each: _is_over(store, each, job, bound))
        failed = failed or refused
        with connections.use() as connection:
            table.close_unlinks(connection, over)
        left += len(found) - len(over)


def _those_over(
    store: ObjectStore, found: Sequence[Unlink], is_over: Callable[[Unlink], bool]
) -> tuple[list[int], UnavailableError | None]:
    """Return which are over, and what the store said of one that it refused: while it answers, others do not wait."""
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


def _is_over(store: ObjectStore, found: Unlink, job: Job, bound: timedelta) -> bool:
    if found.needed or store.head(blob_key(found.digest)) is not None:
        put_back(store, found.repository, found.digest)
        return True
    if found.permitted_at is None:
        # Of a job that has it no more, it will not be permitted either.
        return (found.run_id, found.taken) != (job.id, job.taken)
    return found.permitted_at + bound < found.now


def put_back(store: ObjectStore, repository: RepositoryName, digest: Digest) -> None:
    """Write a link anew, also one that is there: it may be the one of which a delete is under way."""
    store.put(layer_link_key(repository, digest), format_digest(digest).encode())
    log.info("a link is given back", repository=repository, digest=format_digest(digest))
