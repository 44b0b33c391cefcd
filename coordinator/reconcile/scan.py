"""Find the links in a listing.

In every order of listing, a repository's links of one kind come one after another. Between them come tags, uploads,
and objects of no registry, which are skipped. This runs for every key of a pod, so it does little.
Pure: the listing is given. Not here: which keys are listed (plan.py), what the links mean (compare.py).
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName
from coordinator.storage.layout import (
    LINK_LENGTH,
    LinkFolder,
    parse_history,
    parse_link_folder,
    parse_link_name,
    parse_tags_folder,
)
from coordinator.storage.port import ObjectInfo

#: Keys between two calls of `on_progress`.
PROGRESS_EVERY = 1000


class ListedLink(NamedTuple):
    """A link object."""

    folder: LinkFolder
    digest: Digest
    modified_at: datetime


def find_links(
    objects: Iterable[ObjectInfo],
    *,
    layers_after: datetime | None,
    on_progress: Callable[[int, int], None],
    tagged: Callable[[RepositoryName, Digest], None] = lambda _repository, _digest: None,
    progress_every: int = PROGRESS_EVERY,
) -> Iterator[ListedLink]:
    """Give the links among objects; layer links only if they are younger than `layers_after`, unless that is None.

    `tagged` gets each digest that a tag points to or has pointed to. `on_progress` gets now and then the number of
    keys, and of links among them, since the last call.
    """
    beginning, folder, skip = "", None, None
    tags, repository = "", None
    keys = links = 0
    for key, _, modified_at in objects:
        keys += 1
        if keys == progress_every:
            on_progress(keys, links)
            keys = links = 0
        if folder is None or not key.startswith(beginning):
            parsed = parse_link_folder(key)
            if parsed is None:
                folder = None
                if not (tags and key.startswith(tags)):
                    tags, repository = parse_tags_folder(key) or ("", None)
                if repository is not None and (digest := parse_history(key[len(tags) :])) is not None:
                    tagged(repository, digest)
                continue
            beginning, folder = parsed
            skip = layers_after if folder.kind is LinkKind.LAYER else None
        if len(key) != len(beginning) + LINK_LENGTH:
            continue
        if skip is not None and modified_at < skip:
            links += 1
            continue
        digest = parse_link_name(key[len(beginning) :])
        if digest is not None:
            links += 1
            yield ListedLink(folder, digest, modified_at)
    on_progress(keys, links)
