"""Whether a pod that is to be forgotten has anything in storage that keeps blobs there.

It is asked of a pod whose table holds nothing, and of which events may have been lost: what storage does not have
either was not in them. Layer links alone keep nothing in a pod whose manifests do that (mode `manifest`), and what
Baleen itself has made there (domain/own.py) is nobody's.
Not here: when it is asked, and forgetting (pods/table.py).
"""

from collections.abc import Collection, Iterator, Sequence

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.own import PROBE_REPOSITORY, PROBE_TAG, is_scratch
from coordinator.domain.pods import PodMode
from coordinator.errors import ConflictError
from coordinator.reconcile.scan import links
from coordinator.storage.layout import BASE, link_key, repository_prefix
from coordinator.storage.port import ObjectInfo, ObjectReader

#: A hundred pages of a listing: seconds.
KEYS_LIMIT = 100_000


def holds_anything(
    store: ObjectReader,
    prefixes: Sequence[RepositoryName],
    mode: PodMode,
    limit: int = KEYS_LIMIT,
    *,
    image: Collection[Digest] = (),
) -> bool:
    """Return whether there is a link that counts; raises UnavailableError, and ConflictError beyond `limit` keys.

    `image` is what probes ask for, and what that lists.
    """
    store.check()
    counting = frozenset(LinkKind) if mode is PodMode.LINK else {LinkKind.REVISION}
    tags: list[RepositoryName] = []
    found = links(
        _listed(store, prefixes, limit, image),
        layers_after=None,
        tell=lambda _keys, _links: None,
        tagged=lambda repository, _: tags.append(repository),
    )
    # A tag may point to a manifest that is linked as a layer (layered.py).
    return any(each.folder.kind in counting for each in found) or bool(tags)


def is_stored(store: ObjectReader, repository: RepositoryName) -> bool:
    """Return whether storage has anything of a repository, whoever owns it; not of those below its name.

    Raises UnavailableError, and ConflictError where nothing of any registry is in this bucket and root: what is absent
    there proves nothing.
    """
    # No part of a repository's name begins so, and each folder that a registry makes in one does.
    if store.list(f"{repository_prefix(repository)}_", limit=1):
        return True
    if not store.list(f"{BASE}/", limit=1):
        raise ConflictError(
            f"The object store has nothing below {BASE}/, so that nothing can be known of {repository}: check "
            "BALEEN_S3_BUCKET and BALEEN_S3_ROOT."
        )
    return False


def _listed(
    store: ObjectReader, prefixes: Sequence[RepositoryName], limit: int, image: Collection[Digest]
) -> Iterator[ObjectInfo]:
    """List what is below these prefixes, but for what Baleen has made."""
    count = 0
    for prefix in prefixes:
        beginning = repository_prefix(prefix)
        probes = RepositoryName(f"{prefix}/{PROBE_REPOSITORY}")
        image_links = {link_key(probes, kind, digest) for kind in LinkKind for digest in image}
        tag = f"{repository_prefix(probes)}_manifests/tags/{PROBE_TAG}/"
        for entry in store.walk(beginning):
            count += 1
            if count > limit:
                raise ConflictError("Too much is stored for the pod to be looked through: reconcile it first.")
            name, _, rest = entry.key.removeprefix(beginning).partition("/")
            if is_scratch(name) and rest.startswith("_"):
                continue
            if not entry.key.startswith(tag) and entry.key not in image_links:
                yield entry
