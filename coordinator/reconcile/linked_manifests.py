"""Find manifests that a repository has only by the link of a blob, and add them to the table.

Distribution looks for a manifest among a repository's revisions and then among its layers, also when it checks the
children of an index: version 2.1.0 linked manifests there (registry/storage/registry.go). So it accepts an index whose
children were uploaded as blobs, and serves all that they list; and a tag may point to such a manifest.
A manifest that an index or a tag of the repository names in this way is held as if it had been pushed, until both links
are gone (resolve.py). Other such manifests do not matter: no client got an answer that they were accepted.

Route: the worker, after a batch with indexes -> `ChildAdder.add_children`; a reconcile -> `find_linked_manifests`
(compare.py)
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
from coordinator.storage.manifests import read_stored_manifest
from coordinator.storage.port import ObjectStore
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item

log = structlog.get_logger()

LOOKUPS_AT_ONCE = 8
#: Blobs that a worker remembers as no manifests.
OTHERS_LIMIT = 100_000

#: A manifest that a repository may have.
Named = tuple[RepositoryName, Digest]


class ChildAdder:
    """Adds the children of new indexes to the table. Safe to use from several threads."""

    def __init__(self, connections: Connections, store: ObjectStore, margin: timedelta) -> None:
        self._connections = connections
        self._store = store
        self._margin = margin
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="layered")
        #: Blobs whose bytes are no manifest. Without them each push of a build cache would read all its blobs again.
        self._others: set[Digest] = set()

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def add_children(self, indexes: Sequence[Named]) -> int:
        """Add holdings of the children that the indexes' repositories have by the link of a blob; return how many.

        Raises UnavailableError, after it has perhaps added some: a reconcile finds the others.
        """
        taken = 0
        while indexes:
            with self._connections.use() as connection:
                children = table.read_unheld_children(connection, indexes)
            asked = [child for child in children if child.digest not in self._others]
            found = find_linked_manifests(self._store, self._lookups, asked, self._others)
            if len(self._others) > OTHERS_LIMIT:
                self._others.clear()
            pods = {child.repository: child.pod_id for child in children}
            items = [Item(0, 0, pods[fact.repository], fact, None) for fact in found]
            if items:
                with self._connections.use() as connection:
                    BatchApplier(connection, self._margin).apply_stored(items)
                log.info("manifests are held by links of blobs", manifests=len(items))
            taken += len(items)
            # Children may be indexes; digests allow no circle, so this ends.
            indexes = [(fact.repository, fact.digest) for fact in found]
        return taken


def find_linked_manifests(
    store: ObjectStore, lookups: Executor, named: Iterable[Named | Child], others: set[Digest] | None = None
) -> list[ManifestPushed]:
    """Return those of these that are manifests which their repositories link as blobs; raises UnavailableError.

    One without bytes, or with other bytes than its digest's, may be a manifest: it is returned as one that is kept by
    links. Those whose bytes were read and are no manifest are added to `others`.
    A child without any link, not known as a manifest, is returned if its bytes are a manifest: the registry accepted
    the index while it had the child.
    """
    found = lookups.map(lambda each: _find_linked_manifest(store, each, others), dict.fromkeys(named))
    return [fact for fact in found if fact is not None]


def _find_linked_manifest(
    store: ObjectStore, named: Named | Child, others: set[Digest] | None
) -> ManifestPushed | None:
    if isinstance(named, Child):
        _, repository, digest, implied = named
        needed = not implied
    else:
        (repository, digest), needed = named, False
    link = store.head(layer_link_key(repository, digest))
    if link is None and not needed:
        return None
    stored = read_stored_manifest(store, digest)
    if not stored.could_be:
        # A blob that is too large was not read, so its bytes are not known.
        if others is not None and stored.size is not None:
            others.add(digest)
        return None
    if link is not None:
        return stored.fill(ManifestPushed(repository, digest, link.modified_at, None, None))
    if stored.content is None:
        return None
    return stored.fill(ManifestPushed(repository, digest, EARLIEST, None, None, linked=False))
