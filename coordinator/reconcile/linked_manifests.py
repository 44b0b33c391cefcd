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
from datetime import timedelta

import structlog

from coordinator.db.arrays import EARLIEST
from coordinator.db.connection import Connections
from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest
from coordinator.reconcile import table
from coordinator.reconcile.links import Named, PodLinks
from coordinator.reconcile.table import Child
from coordinator.storage.layout import layer_link_key
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item

log = structlog.get_logger()

#: Blobs that a worker remembers as no manifests.
OTHERS_LIMIT = 100_000


class ChildAdder:
    """Adds the children of new indexes to the table. Safe to use from several threads."""

    def __init__(self, connections: Connections, links: PodLinks, margin: timedelta) -> None:
        """`links`: those in the shared bucket, where such manifests are."""
        self._connections = connections
        self._links = links
        self._margin = margin
        #: Blobs whose bytes are no manifest. Without them each push of a build cache would read all its blobs again.
        self._others: set[Digest] = set()

    def add_children(self, indexes: Sequence[Named]) -> int:
        """Add holdings of the children that the indexes' repositories have by the link of a blob; return how many.

        Raises UnavailableError, after it has perhaps added some: a reconcile finds the others.
        """
        taken = 0
        while indexes:
            with self._connections.use() as connection:
                children = table.read_unheld_children(connection, indexes)
            asked = [child for child in children if child.digest not in self._others]
            found = find_linked_manifests(self._links, asked, self._others)
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
    links: PodLinks, named: Iterable[Named | Child], others: set[Digest] | None = None
) -> list[ManifestPushed]:
    """Return those of these that are manifests which their repositories link as blobs; raises UnavailableError.

    One without bytes, or with other bytes than its digest's, may be a manifest: it is returned as one that is kept by
    links. Those whose bytes were read and are no manifest are added to `others`.
    A child without any link, not known as a manifest, is returned if its bytes are a manifest: the registry accepted
    the index while it had the child.
    """
    asked = [(*_name(each), each) for each in dict.fromkeys(named)]
    found = links.find([layer_link_key(repository, digest) for repository, digest, _ in asked])
    read = [
        (repository, digest, link)
        for (repository, digest, each), link in zip(asked, found, strict=True)
        if link is not None or (isinstance(each, Child) and not each.implied)
    ]
    stored = links.read_manifests([(repository, digest) for repository, digest, _ in read])
    facts: list[ManifestPushed] = []
    for repository, digest, link in read:
        manifest = stored[digest]
        if not manifest.could_be:
            # A blob that is too large was not read, so its bytes are not known.
            if others is not None and manifest.size is not None:
                others.add(digest)
        elif link is not None:
            facts.append(manifest.fill(ManifestPushed(repository, digest, link.modified_at, None, None)))
        elif manifest.content is not None:
            facts.append(manifest.fill(ManifestPushed(repository, digest, EARLIEST, None, None, linked=False)))
    return facts


def _name(named: Named | Child) -> Named:
    return (named.repository, named.digest) if isinstance(named, Child) else named
