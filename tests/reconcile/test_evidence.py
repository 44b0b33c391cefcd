"""Only a link proves that a pod keeps its links in the bucket, and it is found among many uploads."""

import pytest

from coordinator.domain.names import Digest, RepositoryName
from coordinator.reconcile.evidence import Evidence
from coordinator.storage.layout import (
    BLOBS,
    is_link,
    layer_link_key,
    other_link_key,
    repository_prefix,
    revision_link_key,
)
from coordinator.storage.port import LIST_LIMIT
from tests.storage.memory import MemoryObjectStore

DIGEST = Digest(bytes(32))
PREFIXES = (RepositoryName("pod"), RepositoryName("second"))
APP = RepositoryName("pod/app")
UPLOADS = f"{repository_prefix(APP)}_uploads/"
TAGS = f"{repository_prefix(APP)}_manifests/tags/_uploads/"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (layer_link_key(APP, DIGEST), True),
        (revision_link_key(APP, DIGEST), True),
        (other_link_key(APP, "sha512:ab"), True),
        (f"{TAGS}current/link", True),
        (f"{TAGS}index/sha256/{DIGEST.hex()}/link", True),
        (f"{UPLOADS}0123/startedat", False),
        (f"{UPLOADS}0123/_layers/link", False),
        (f"{repository_prefix(APP)}_layers/sha256/x/other", False),
        (f"{repository_prefix(APP)}link", False),
        (f"{BLOBS}00/{DIGEST.hex()}/link", False),
    ],
)
def test_what_is_a_link(key: str, *, expected: bool) -> None:
    """Links of layers, manifests and tags are links; uploads, bytes and other objects are not."""
    assert is_link(key) is expected
    store = MemoryObjectStore()
    store.put(key, b"x")
    assert Evidence(store).has_link(PREFIXES) is expected


@pytest.mark.parametrize(
    ("repository", "named", "expected"),
    [
        ("pod/baleen-probe", [], True),
        ("pod/zoo", ["pod/zoo"], True),
        ("pod/zoo", [], False),
        ("second/app", [], True),
        ("podium/app", ["podium/app"], False),
    ],
)
def test_many_uploads_before_it(repository: str, named: list[str], *, expected: bool) -> None:
    """Uploads that fill the first page hide neither the prober's image nor a repository that the caller names. A link
    that is found nowhere is not proved, and one of another pod proves nothing.
    """
    store = MemoryObjectStore()
    for number in range(LIST_LIMIT):
        store.put(f"{UPLOADS}{number}/startedat", b"")
    store.put(layer_link_key(RepositoryName(repository), DIGEST), b"")
    assert Evidence(store).has_link(PREFIXES, [RepositoryName(name) for name in named]) is expected


def test_a_link_that_was_found_is_searched_for_first() -> None:
    """It is found again behind uploads that came later; when it is gone, it proves nothing any more."""
    store = MemoryObjectStore()
    link = layer_link_key(RepositoryName("pod/zoo"), DIGEST)
    store.put(link, b"")
    evidence = Evidence(store)
    assert evidence.has_link(PREFIXES)
    for number in range(LIST_LIMIT):
        store.put(f"{UPLOADS}{number}/startedat", b"")
    assert evidence.has_link(PREFIXES)
    assert not Evidence(store).has_link(PREFIXES)
    store.delete(link)
    assert not evidence.has_link(PREFIXES)
