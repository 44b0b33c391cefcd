"""Which keys are listed, and which of them are links."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.merge import LinkKind
from coordinator.domain.names import Digest, RepositoryName
from coordinator.reconcile import plan, scan
from coordinator.storage.layout import REPOSITORIES, layer_link_key, link_key, repository_prefix, revision_link_key
from coordinator.storage.port import ObjectInfo
from tests.storage.memory import MemoryObjectStore

NOW = datetime(2026, 11, 24, tzinfo=UTC)
HEX = "ab" * 32
DIGEST = Digest(bytes.fromhex(HEX))


def name(text: str) -> RepositoryName:
    return RepositoryName(text)


def scanned(
    keys: Iterable[str], layers_after: datetime | None = None, **more: Any
) -> tuple[list[tuple[str, str, bytes]], int, int]:
    """(repository, kind, digest) of each link, and how many keys and links were counted."""
    counts = [0, 0]

    def on_progress(keys: int, links: int) -> None:
        counts[0] += keys
        counts[1] += links

    found = scan.find_links(
        [ObjectInfo(key, 71, NOW) for key in keys], layers_after=layers_after, on_progress=on_progress, **more
    )
    return [(each.folder.repository, each.folder.kind.name, each.digest) for each in found], counts[0], counts[1]


def test_links_among_everything_else() -> None:
    """Links of revisions, layers and tags are found; uploads, blobs and other keys are not."""
    base = repository_prefix(name("team/app"))
    keys = [
        layer_link_key(name("team/app"), DIGEST),
        f"{base}_layers/sha256/{HEX}/data",
        f"{base}_layers/sha256/{HEX.upper()}/link",
        f"{base}_layers/sha256/{HEX[:-1]}/link",
        f"{base}_layers/sha256/{HEX[:-2]}  /link",
        f"{base}_layers/sha512/{HEX}/link",
        f"{base}_layers/sha256/{HEX}/link/more",
        revision_link_key(name("team/app"), DIGEST),
        f"{base}_manifests/tags/latest/current/link",
        f"{base}_manifests/tags/latest/index/sha256/{HEX}/link",
        f"{base}_manifests/tags/latest/index/sha256/{HEX}",
        f"{REPOSITORIES}Team/App/_manifests/tags/latest/index/sha256/{HEX}/link",
        f"{base}_uploads/{HEX}/startedat",
        f"{REPOSITORIES}Team/App/_layers/sha256/{HEX}/link",
        f"{REPOSITORIES}_layers/sha256/{HEX}/link",
        f"{REPOSITORIES}stray",
        f"docker/registry/v2/blobs/sha256/ab/{HEX}/data",
        revision_link_key(name("team"), DIGEST),
    ]
    tagged: list[tuple[str, bytes]] = []
    found, counts, links = scanned(keys, tagged=lambda *history: tagged.append(history))
    assert tagged == [("team/app", DIGEST)]
    assert found == [("team/app", "LAYER", DIGEST), ("team/app", "REVISION", DIGEST), ("team", "REVISION", DIGEST)]
    assert (counts, links) == (len(keys), 3)


def test_layers_that_are_too_old() -> None:
    """With `layers_after` older links of layers are only counted; links of revisions have no age."""
    keys = [layer_link_key(name("a"), DIGEST), revision_link_key(name("a"), DIGEST)]
    assert scanned(keys, NOW + timedelta(seconds=1)) == ([("a", "REVISION", DIGEST)], 2, 2)
    assert len(scanned(keys, NOW)[0]) == 2


def test_counting_goes_on() -> None:
    """The numbers add up, however often progress is reported."""
    keys = [layer_link_key(name(f"r{n}"), DIGEST) for n in range(10)]
    assert scanned(keys, progress_every=3)[1:] == (10, 10)
    assert scanned([], progress_every=3)[1:] == (0, 0)


COMPONENTS = st.sampled_from(["a", "a-b", "a.b", "a0", "b", "c", "z9"])
REPOSITORIES_OF = st.lists(COMPONENTS, min_size=0, max_size=3).map(lambda parts: "/".join(["pod", *parts]))


@given(
    st.lists(REPOSITORIES_OF, max_size=12, unique=True),
    st.integers(1, 40),
    st.integers(1, 4),
    st.booleans(),
)
def test_parts_cover_every_link_once(repositories: list[str], wanted: int, folders: int, by_parts: bool) -> None:
    """Each link is below exactly one part, whatever the tree and the number of parts."""
    store = MemoryObjectStore(by_parts=by_parts)
    links = set()
    for repository in repositories:
        for kind in LinkKind:
            links.add(link_key(name(repository), kind, DIGEST))
        store.put(f"{repository_prefix(name(repository))}_uploads/1/startedat", b"")
        store.put(f"{repository_prefix(name(repository))}_manifests/tags/t/current/link", b"")
    store.put(link_key(name("pods/other"), LinkKind.LAYER, DIGEST), b"")
    for key in links:
        store.put(key, b"")
    parts = plan.plan_parts(store, [name("pod")], wanted, folders)
    assert len(set(parts)) == len(parts)
    listed = [entry.key for part in parts for entry in store.walk(part)]
    assert len(set(listed)) == len(listed)
    assert links <= set(listed)
    assert not any(key.startswith(f"{REPOSITORIES}pods/") for key in listed)


def test_parts_of_several_prefixes() -> None:
    """A pod's prefixes are planned together; an empty one has no part."""
    store = MemoryObjectStore()
    for repository in ("team", "team/app", "lib/base"):
        store.put(revision_link_key(name(repository), DIGEST), b"")
    assert plan.plan_parts(store, [name("team"), name("lib"), name("empty")]) == [
        f"{REPOSITORIES}{repository}/_manifests/{folder}/"
        for repository in ("lib/base", "team", "team/app")
        for folder in ("revisions/sha256", "tags")
    ]
    assert plan.plan_parts(store, [name("empty")]) == []
