"""Keep all links of a repository for manifests whose bytes do not say everything that they need.

A registry accepts a manifest only if everything that the manifest references is linked in the same repository
(distribution: `_layers` and `_manifests/revisions`). So everything that such a manifest can need is among the links
that its repository had when it was accepted. All of these are kept; no operator has to decide anything.

Which manifests these are. Bytes with the manifest's digest say what it needs: its list or, if that is not certain,
every digest that they name (domain/references.py). Three cases are left to the links:
- a digest of another algorithm: distribution stores the blob under its sha256 and writes the link
  `_layers/<algorithm>/<hex>/link`, whose content is that sha256. Only what these links name is kept, if all exist;
- bytes of a form that no registry known to us accepts;
- no bytes, too many, or others than those of the digest: references that were reported count, too.

Why no link is missed. The links were written before the manifest was accepted, and its event, or a reconcile that
found it, came after that. The holding is `links_pending` from the transaction that adds it, and the listing begins
after that. If a client has removed a link in between, the registry does not serve it for this manifest either; it is
kept all the same if an event reported it (kept.keep_known_links). A holding that was pushed again while its links were
listed stays pending. While any holding is pending, its pod blocks GC, from before the watermark passes its event: the
argument is that of any reference, with "applied" read as "kept".

While a store does not answer, holdings stay pending. A repository of a million links is listed in pages, each added in
a transaction of its own, beside the workers' batches.
Bytes below `blobs/` of other algorithms do not matter here: Baleen never deletes them.
Not here: SQL (table/kept_by_links.py), what bytes say (storage/manifests.py).
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from itertools import islice

import structlog

from coordinator.db.connection import Connections
from coordinator.domain.facts import BlobLinked, ManifestRead
from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName, format_digest
from coordinator.errors import UnavailableError
from coordinator.reconcile.links import Links, PodLinks
from coordinator.storage.layout import (
    layers_folder,
    link_folder,
    other_link_key,
    parse_layer_link,
    parse_link_name,
)
from coordinator.storage.manifests import StoredManifest
from coordinator.storage.port import ObjectInfo
from coordinator.table import kept_by_links
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item, Reports

log = structlog.get_logger()

#: Manifests that are read together, and links that one transaction adds.
READ_BATCH = 64
LINK_BATCH = 500
#: Holdings of one repository that one pass takes.
HOLDINGS_LIMIT = 10_000
#: If manifests name more digests of other algorithms, all links of their repository are kept.
OTHERS_LIMIT = 64
#: Manifests that are read after one batch; reconciles read the others.
DISPUTED_LIMIT = 1000


class LinkKeeper:
    """Reads manifests, and keeps links. Safe to use from several threads."""

    def __init__(self, connections: Connections, links: Links, margin: timedelta) -> None:
        self._connections = connections
        self._links = links
        self._margin = margin
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make calls that are under way end soon: what is done stays done, and the rest stays pending."""
        self._stopped.set()

    def _check_not_stopped(self) -> None:
        if self._stopped.is_set():
            raise UnavailableError("The process is stopping: the next one keeps the links.")

    def close(self) -> None:
        self.stop()

    def read_disputed(self, disputed: Collection[Digest], reports: Reports) -> None:
        """Read manifests whose reports differ: their bytes decide. Raises UnavailableError."""
        found = self._read_manifests(list(islice(disputed, DISPUTED_LIMIT)))
        self._apply_manifests(found, reports)
        log.info("reports of manifests' references differ: their bytes decide", manifests=len(found))

    def round(self) -> int:
        """Read unread manifests, and keep links for pending holdings; return how many holdings are no longer pending.

        Raises UnavailableError, after it has perhaps done some of it.
        """
        after = 0
        while True:
            self._check_not_stopped()
            with self._connections.use() as connection:
                unread = kept_by_links.read_unread_manifests(connection, after, READ_BATCH)
            if not unread:
                break
            self._apply_manifests(self._read_manifests([digest for _, digest in unread]))
            after = unread[-1][0]
        with self._connections.use() as connection:
            repositories = kept_by_links.read_pending_repositories(connection)
        return sum(self._keep_links(repository, pending=True) for repository in repositories)

    def refresh_links(self, pod_id: int) -> None:
        """Keep links for all such holdings of a pod again, and release links that are no longer needed.

        The caller has read the pod's manifests. Raises UnavailableError.
        """
        with self._connections.use() as connection:
            repositories = kept_by_links.read_repositories_by_links(connection, pod_id)
        for repository in repositories:
            self._keep_links(repository, pending=False)
        with self._connections.use() as connection:
            released = kept_by_links.release_links(connection, pod_id)
        if released:
            log.info("links are no longer kept", links=released)

    def _read_manifests(self, wanted: Sequence[Digest]) -> dict[Digest, StoredManifest]:
        """Read manifests where a pod that holds them keeps their bytes."""
        with self._connections.use() as connection:
            held = kept_by_links.read_holders(connection, wanted)
        found: dict[Digest, StoredManifest] = {}
        for pod, named in held.items():
            found |= self._links.of(pod.kind, pod.name).read_manifests(named)
        nobodys = [(RepositoryName(""), digest) for digest in wanted if digest not in found]
        return found | self._links.bucket.read_manifests(nobodys)

    def _apply_manifests(self, found: dict[Digest, StoredManifest], reports: Reports | None = None) -> None:
        for digest, stored in found.items():
            if stored.corrupt:
                log.error("a manifest's bytes have another digest", manifest=format_digest(digest))
        items = [
            Item(0, 0, 0, ManifestRead(digest, stored.size, stored.content, stored.by_links), None)
            for digest, stored in found.items()
        ]
        if items:
            with self._connections.use() as connection:
                BatchApplier(connection, self._margin).apply_stored(items, reports)

    def _keep_links(self, repository_id: int, *, pending: bool) -> int:
        """Count the links of one repository for its manifests whose bytes do not say all that they need.

        Return the number of holdings that are done.
        """
        with self._connections.use() as connection:
            found = kept_by_links.read_holdings(connection, repository_id, HOLDINGS_LIMIT, pending=pending)
        if not found:
            return 0
        repository, pod = found[0].repository, found[0].pod
        links = self._links.of(pod.kind, pod.name)
        named: dict[Digest, ObjectInfo] = {}
        others: dict[str, None] = {}
        whole = False
        for start in range(0, len(found), READ_BATCH):
            self._check_not_stopped()
            stored = links.read_manifests(
                [(repository, holding.digest) for holding in found[start : start + READ_BATCH]]
            )
            self._apply_manifests(stored)
            for each in stored.values():
                if not each.by_links:
                    continue
                if each.content is None or not each.complete or len(others) + len(each.others) > OTHERS_LIMIT:
                    whole = True
                else:
                    others |= dict.fromkeys(each.others)
        if not whole:
            targets = links.read_targets([other_link_key(repository, other) for other in others])
            named = dict(each for each in targets if each is not None)
            whole = None in targets
        if whole:
            with self._connections.use() as connection:
                kept_by_links.keep_known_links(connection, repository_id)
            self._add_links(repository, pod.id, self._list_links(links, repository))
        else:
            self._add_links(repository, pod.id, iter(named.items()))
        with self._connections.use() as connection:
            ended = kept_by_links.mark_holdings_listed(connection, found)
        log.info("links are kept for manifests", repository=repository, manifests=len(found), all=whole)
        return ended

    def _add_links(self, repository: RepositoryName, pod: int, links: Iterator[tuple[Digest, ObjectInfo]]) -> None:
        while batch := dict(islice(links, LINK_BATCH)):
            self._check_not_stopped()
            items = [
                Item(0, 0, pod, BlobLinked(repository, digest, link.modified_at, None), None)
                for digest, link in batch.items()
            ]
            with self._connections.use() as connection:
                BatchApplier(connection, self._margin).apply_kept_links(repository, items)

    def _list_links(self, links: PodLinks, repository: RepositoryName) -> Iterator[tuple[Digest, ObjectInfo]]:
        """Give everything that a repository links: layers, by any algorithm, and manifests."""
        waiting: list[str] = []
        for entry in links.walk(layers_folder(repository)):
            if (layer := parse_layer_link(entry.key)) is not None:
                yield layer[1], entry
            elif entry.key.endswith("/link"):
                waiting.append(entry.key)
            if len(waiting) == LINK_BATCH:
                yield from filter(None, links.read_targets(waiting))
                waiting.clear()
        yield from filter(None, links.read_targets(waiting))
        folder = link_folder(repository, LinkKind.REVISION)
        for entry in links.walk(folder):
            if (digest := parse_link_name(entry.key[len(folder) :])) is not None:
                yield digest, entry
