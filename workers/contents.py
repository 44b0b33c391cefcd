"""What manifests list, when no event said it: read from their bytes in shared storage.

A registry without `includereferences` announces a manifest by its digest alone. Its bytes are in `blobs/` before the
event, so they can be read.
Not here: reading them (coordinator/storage/manifests.py), storing it (coordinator/db/run.py).
"""

from collections.abc import Iterable, Iterator, Mapping

from coordinator.db.batch import Item, Slice
from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestContent, ManifestKind
from coordinator.storage.manifests import Content
from workers.interpret import Chunk, dead_letter


def unsaid(slices: Iterable[Slice]) -> set[Digest]:
    """The manifests of which a push does not say what they list. What another pod says of them is only its word."""
    return {push.digest for push in _pushes(slices) if push.content is None}


def said(slices: Iterable[Slice]) -> set[Digest]:
    """The manifests of which a push says what they list."""
    return {push.digest for push in _pushes(slices) if push.content is not None}


def unsay(slices: Iterable[Slice], unread: Mapping[Digest, set[int]]) -> list[Slice]:
    """Leave out what is said of manifests that another pod holds unread: for that one it is only somebody's word."""

    def left(item: Item) -> Item:
        fact = item.fact
        if not isinstance(fact, ManifestPushed) or not unread.get(fact.digest, set()) - {item.pod_id}:
            return item
        return item._replace(fact=fact._replace(content=None))

    return [piece._replace(items=[left(item) for item in piece.items]) for piece in slices]


def indexes(slices: Iterable[Slice]) -> list[tuple[RepositoryName, Digest]]:
    """What was pushed and is an index, or may be one."""
    return [
        (push.repository, push.digest)
        for push in _pushes(slices)
        if push.content is None or push.content.kind is ManifestKind.INDEX
    ]


def _pushes(slices: Iterable[Slice]) -> Iterator[ManifestPushed]:
    return (item.fact for piece in slices for item in piece.items if isinstance(item.fact, ManifestPushed))


def fill(piece: Slice, chunk: Chunk, found: Mapping[Digest, Content], pods: Mapping[int, str]) -> Slice:
    """Put what was read into the facts. Where it could not be, the holding stands and a dead letter goes with it."""
    records = {record.offset: record for record in chunk.records}

    def filled(item: Item) -> Item:
        fact = item.fact
        if not isinstance(fact, ManifestPushed) or fact.content is not None or fact.digest not in found:
            return item
        content = found[fact.digest]
        if isinstance(content, ManifestContent):
            return item._replace(fact=fact._replace(content=content, read=True))
        record, pod = records[item.offset], pods[item.pod_id]
        return item._replace(dead_letter=dead_letter(record, pod, "unreadable-manifest", content))

    return piece._replace(items=[filled(item) for item in piece.items])
