"""Check whether a pod that is to be removed still has links in storage that keep blobs.

It is checked for a pod without holdings in the table whose events may have been lost: if storage has nothing either,
they reported nothing that counts. Layer links alone keep nothing in a pod of mode `manifest`, and neither does what
Baleen itself made there (domain/own.py).
Not here: when it is checked, and forgetting (pods/table.py).
"""

from collections.abc import Collection, Iterator, Sequence

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.own import PROBE_REPOSITORY, PROBE_TAG, is_scratch
from coordinator.domain.pods import PodMode
from coordinator.errors import ConflictError
from coordinator.reconcile.scan import find_links
from coordinator.storage.layout import BASE, link_key, repository_prefix
from coordinator.storage.port import ObjectInfo, ObjectReader

#: A hundred pages of a listing, which take seconds.
KEYS_LIMIT = 100_000


def has_any_link(
    store: ObjectReader,
    prefixes: Sequence[RepositoryName],
    mode: PodMode,
    limit: int = KEYS_LIMIT,
    *,
    image: Collection[Digest] = (),
) -> bool:
    """Return whether there is a link that counts; raises UnavailableError, and ConflictError beyond `limit` keys.

    `image`: the digests of the probes' image, its manifest and what that lists.
    """
    store.check()
    counting = frozenset(LinkKind) if mode is PodMode.LINK else {LinkKind.REVISION}
    tags: list[RepositoryName] = []
    found = find_links(
        _list_objects(store, prefixes, limit, image),
        layers_after=None,
        on_progress=lambda _keys, _links: None,
        tagged=lambda repository, _: tags.append(repository),
    )
    # A tag may point to a manifest that is linked as a layer (linked_manifests.py).
    return any(each.folder.kind in counting for each in found) or bool(tags)


def is_stored(store: ObjectReader, repository: RepositoryName) -> bool:
    """Return whether storage has anything of a repository, of any pod; repositories below its name do not count.

    Raises UnavailableError, and ConflictError if this bucket and root have nothing of any registry: an absence there
    proves nothing.
    """
    # Each folder that a registry makes in a repository begins with `_`, and no part of a repository's name does.
    if store.list(f"{repository_prefix(repository)}_", limit=1):
        return True
    if not store.list(f"{BASE}/", limit=1):
        raise ConflictError(
            f"The object store has nothing below {BASE}/, which proves nothing about repository {repository}. Check "
            "BALEEN_S3_BUCKET and BALEEN_S3_ROOT."
        )
    return False


def _list_objects(
    store: ObjectReader, prefixes: Sequence[RepositoryName], limit: int, image: Collection[Digest]
) -> Iterator[ObjectInfo]:
    """List everything below these prefixes, except what Baleen made."""
    count = 0
    for prefix in prefixes:
        beginning = repository_prefix(prefix)
        probes = RepositoryName(f"{prefix}/{PROBE_REPOSITORY}")
        image_links = {link_key(probes, kind, digest) for kind in LinkKind for digest in image}
        tag = f"{repository_prefix(probes)}_manifests/tags/{PROBE_TAG}/"
        for entry in store.walk(beginning):
            count += 1
            if count > limit:
                raise ConflictError(f"The pod has over {limit} objects, too many to check here: reconcile it first.")
            name, _, rest = entry.key.removeprefix(beginning).partition("/")
            if is_scratch(name) and rest.startswith("_"):
                continue
            if not entry.key.startswith(tag) and entry.key not in image_links:
                yield entry
