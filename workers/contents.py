"""Read what manifests list from their bytes in shared storage, when no event lists it.

A registry without `includereferences` reports a manifest by its digest alone, and ingest leaves out references that it
could not use. A manifest's bytes are in `blobs/` before its event comes, so they can be read. Where the bytes do not
name everything that the manifest needs, it is kept by links (coordinator/reconcile/link_keeper.py).
Not here: reading them (coordinator/storage/manifests.py), storing it (coordinator/table/digest_facts.py).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import PARENTS, ManifestContent
from coordinator.storage.manifests import StoredManifest
from coordinator.table.batch import Item, Reports, Slice


def find_without_references(slices: Iterable[Slice]) -> set[Digest]:
    """Return pushed manifests whose event lists no references. What another pod lists for them is only its report."""
    return {push.digest for push in _pushed_manifests(slices) if push.content is None}


def find_with_references(slices: Iterable[Slice]) -> set[Digest]:
    """Return pushed manifests whose event lists their references."""
    return {push.digest for push in _pushed_manifests(slices) if push.content is not None}


def drop_unread(slices: Iterable[Slice], unread: Mapping[Digest, set[int]]) -> list[Slice]:
    """Drop the listed references of manifests that another pod holds unread: for that pod they are only a report."""

    def drop(item: Item) -> Item:
        fact = item.fact
        if not isinstance(fact, ManifestPushed) or not unread.get(fact.digest, set()) - {item.pod_id}:
            return item
        return item._replace(fact=fact._replace(content=None))

    return [piece._replace(items=[drop(item) for item in piece.items]) for piece in slices]


def find_indexes(slices: Iterable[Slice]) -> list[tuple[RepositoryName, Digest]]:
    """Return pushed manifests that are, or may be, an index."""
    return [
        (push.repository, push.digest)
        for push in _pushed_manifests(slices)
        if push.content is None or push.content.kind in PARENTS
    ]


def find_reports(slices: Iterable[Slice], wanted: Collection[Digest]) -> Reports:
    """Return what pods report in these slices about these manifests."""
    found: dict[Digest, list[tuple[int, ManifestContent]]] = {}
    for piece in slices:
        for item in piece.items:
            fact = item.fact
            if (
                isinstance(fact, ManifestPushed)
                and fact.digest in wanted
                and fact.content is not None
                and not fact.read
            ):
                found.setdefault(fact.digest, []).append((item.pod_id, fact.content))
    return found


def _pushed_manifests(slices: Iterable[Slice]) -> Iterator[ManifestPushed]:
    return (item.fact for piece in slices for item in piece.items if isinstance(item.fact, ManifestPushed))


def fill_references(piece: Slice, found: Mapping[Digest, StoredManifest]) -> Slice:
    """Fill the facts with the references that were read; a manifest whose bytes do not name all is kept by links."""

    def fill_item(item: Item) -> Item:
        fact = item.fact
        if not isinstance(fact, ManifestPushed) or fact.content is not None or fact.digest not in found:
            return item
        return item._replace(fact=found[fact.digest].fill(fact))

    return piece._replace(items=[fill_item(item) for item in piece.items])
