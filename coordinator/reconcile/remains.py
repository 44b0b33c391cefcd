"""Whether a pod that is to be forgotten has anything in storage that keeps blobs there.

It is asked of a pod whose table holds nothing, and of which events may have been lost: what storage does not have
either was not in them. Layer links alone keep nothing in a pod whose manifests do that (mode `manifest`).
Not here: when it is asked, and forgetting (db/pods.py).
"""

from collections.abc import Iterator, Sequence

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import RepositoryName
from coordinator.domain.pods import PodMode
from coordinator.errors import ConflictError
from coordinator.reconcile.scan import links
from coordinator.storage.layout import repository_prefix
from coordinator.storage.port import ObjectInfo, ObjectReader

#: A hundred pages of a listing: seconds.
KEYS_LIMIT = 100_000


def holds_anything(
    store: ObjectReader, prefixes: Sequence[RepositoryName], mode: PodMode, limit: int = KEYS_LIMIT
) -> bool:
    """Return whether there is a link that counts; raises UnavailableError, and ConflictError beyond `limit` keys."""
    store.check()
    counting = frozenset(LinkKind) if mode is PodMode.LINK else {LinkKind.REVISION}
    found = links(_listed(store, prefixes, limit), layers_after=None, tell=lambda _keys, _links: None)
    return any(each.folder.kind in counting for each in found)


def _listed(store: ObjectReader, prefixes: Sequence[RepositoryName], limit: int) -> Iterator[ObjectInfo]:
    count = 0
    for prefix in prefixes:
        for entry in store.walk(repository_prefix(prefix)):
            count += 1
            if count > limit:
                raise ConflictError("Too much is stored for the pod to be looked through: reconcile it first.")
            yield entry
