"""Manifests that a repository has by the link of a blob alone.

Distribution looks for a manifest among a repository's revisions and then among its layers, also when it checks the
children of an index: its version 2.1.0 had linked manifests there (registry/storage/registry.go). So it accepts an
index whose children were uploaded as blobs, and serves all that they list; and a tag may point to such a manifest.
Whatever an index or a tag of the repository names so is held as if it had been pushed, until both links are gone
(settle.py). Others that are linked so nobody has named: no client was told that they were accepted.

Route: the worker, after a batch that brought indexes -> `Layered.take_up`; a reconcile -> `manifests` (compare.py)
Not here: which children are not held (reconcile/table.py).
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta

import structlog

from coordinator.db.arrays import EARLIEST
from coordinator.db.connection import Connections
from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest, RepositoryName
from coordinator.reconcile import table
from coordinator.reconcile.table import Child
from coordinator.storage.layout import layer_link_key
from coordinator.storage.manifests import read
from coordinator.storage.port import ObjectStore
from coordinator.table.apply import BatchApply
from coordinator.table.batch import Item

log = structlog.get_logger()

LOOKUPS_AT_ONCE = 8
#: Of so many blobs a worker remembers that they are no manifests.
OTHERS_LIMIT = 100_000

#: A manifest that a repository may have.
Named = tuple[RepositoryName, Digest]


class Layered:
    """Takes up the children of new indexes. Safe to use from several threads."""

    def __init__(self, connections: Connections, store: ObjectStore, margin: timedelta) -> None:
        self._connections = connections
        self._store = store
        self._margin = margin
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="layered")
        #: Blobs whose bytes are no manifest, and never will be: else each push of a build's cache would read them all.
        self._others: set[Digest] = set()

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def take_up(self, indexes: Sequence[Named]) -> int:
        """Let their repositories hold the children that they have by the link of a blob; return how many.

        Raises UnavailableError, with some perhaps done: a reconcile finds the others.
        """
        taken = 0
        while indexes:
            with self._connections.use() as connection:
                children = table.unheld_children(connection, indexes)
            asked = [child for child in children if child.digest not in self._others]
            found = manifests(self._store, self._lookups, asked, self._others)
            if len(self._others) > OTHERS_LIMIT:
                self._others.clear()
            pods = {child.repository: child.pod_id for child in children}
            items = [Item(0, 0, pods[fact.repository], fact, None) for fact in found]
            if items:
                with self._connections.use() as connection:
                    BatchApply(connection, self._margin).apply_found(items)
                log.info("manifests are held by links of blobs", manifests=len(items))
            taken += len(items)
            # Children may be indexes; hashes allow no circle.
            indexes = [(fact.repository, fact.digest) for fact in found]
        return taken


def manifests(
    store: ObjectStore, lookups: Executor, named: Iterable[Named | Child], others: set[Digest] | None = None
) -> list[ManifestPushed]:
    """Return, of these, the manifests that their repositories link as blobs; raises UnavailableError.

    One whose bytes are not there, or are others, may be a manifest: it is given as one that is kept by links. To
    `others` those are added whose bytes were read and are none.
    A child of which there is no link at all, and that nobody has said to be a manifest, is given if its bytes are one:
    the registry accepted the index while it had the child.
    """
    found = lookups.map(lambda each: _look(store, each, others), dict.fromkeys(named))
    return [fact for fact in found if fact is not None]


def _look(store: ObjectStore, named: Named | Child, others: set[Digest] | None) -> ManifestPushed | None:
    if isinstance(named, Child):
        _, repository, digest, implied = named
        needed = not implied
    else:
        (repository, digest), needed = named, False
    link = store.head(layer_link_key(repository, digest))
    if link is None and not needed:
        return None
    stored = read(store, digest)
    if not stored.could_be:
        # Of one that is too large nobody has compared the bytes with the digest.
        if others is not None and stored.size is not None:
            others.add(digest)
        return None
    if link is not None:
        return stored.fill(ManifestPushed(repository, digest, link.modified_at, None, None))
    if stored.content is None:
        return None
    return stored.fill(ManifestPushed(repository, digest, EARLIEST, None, None, linked=False))
