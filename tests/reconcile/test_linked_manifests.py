"""Manifests that a repository has by the link of a blob alone: distribution serves them, so what they list is needed.

Not here: that distribution does (tests/scenarios/test_registries_that_mislead.py).
"""

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from coordinator.db.connection import Connections
from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest
from coordinator.domain.pods import PodMode
from coordinator.domain.references import MANIFEST_BYTES_LIMIT, ManifestKind, is_manifest, parse_manifest
from coordinator.reconcile import stored_content
from coordinator.reconcile.linked_manifests import Layered
from coordinator.reconcile.sizes import Sizes
from coordinator.storage.layout import blob_key, layer_link_key, repository_prefix, revision_link_key
from coordinator.table import statements
from tests.reconcile.harness import MARGIN, Image, World
from tests.table.harness import at


@pytest.fixture
def world(database: str) -> Iterator[World]:
    with World(database) as world:
        yield world


class Index(NamedTuple):
    body: bytes
    digest: Digest


def index_of(*digests: Digest) -> Index:
    listed = [{"digest": f"sha256:{digest.hex()}", "size": 7, "mediaType": "any"} for digest in digests]
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": listed,
    }
    body = json.dumps(document).encode()
    return Index(body, Digest(hashlib.sha256(body).digest()))


def upload(world: World, repository: str, body: bytes) -> Digest:
    """Store bytes and the link of a blob, as an upload does."""
    digest = Digest(hashlib.sha256(body).digest())
    world.store.put(blob_key(digest), body)
    world.store.put(layer_link_key(world.name(repository), digest), f"sha256:{digest.hex()}".encode())
    return digest


def push(world: World, repository: str, index: Index) -> ManifestPushed:
    """Store what the push of an index does, and return what its event says."""
    world.store.put(blob_key(index.digest), index.body)
    world.store.put(revision_link_key(world.name(repository), index.digest), b"a link")
    return ManifestPushed(world.name(repository), index.digest, at(1), len(index.body), parse_manifest(index.body))


def take_up(world: World, *pushed: ManifestPushed) -> int:
    """What the worker does with indexes that it has applied."""
    connections = Connections(world.url, name="test-layered", prepare=statements.prepare)
    layered = Layered(connections, world.store, MARGIN)
    try:
        return layered.take_up([(fact.repository, fact.digest) for fact in pushed])
    finally:
        layered.close()
        connections.close()


def counted(world: World, image: Image) -> list[int]:
    """How many holdings need each of its layers."""
    found = world.rows(
        "SELECT b.reference_count FROM unnest(%s::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest",
        (list(image.layers),),
    )
    return [row[0] for row in found]


@pytest.mark.parametrize("by", ["worker", "reconcile"])
def test_children_that_were_uploaded_as_blobs(world: World, by: str) -> None:
    """A repository holds what an index of it lists and it links as a blob, and what that lists in turn."""
    image = world.image("child")
    child = upload(world, "app", image.body)
    inner = index_of(child)
    outer = index_of(upload(world, "app", inner.body))
    pushed = push(world, "app", outer)
    world.arrive(pushed)
    if by == "worker":
        assert take_up(world, pushed) == 2
        assert take_up(world, pushed) == 0
    else:
        assert world.reconcile().count("holdings_added") == 2
    held = {(world.name("app"), digest) for digest in (outer.digest, inner.digest, child)}
    assert world.held() == held
    assert counted(world, image) == [1, 1]
    for _ in range(2):
        done = world.reconcile()
        assert (done.count("holdings_added"), done.count("holdings_removed")) == (0, 0)
    assert world.held() == held


def test_children_of_an_index_that_is_read_late(world: World) -> None:
    """The reconcile that reads an index whose bytes were away lets its children be held, too, and theirs."""
    image = world.image("child")
    inner = index_of(upload(world, "app", image.body))
    outer = index_of(upload(world, "app", inner.body))
    pushed = push(world, "app", outer)
    world.store.delete(blob_key(outer.digest))
    world.arrive(pushed._replace(content=None))
    assert take_up(world, pushed) == 0
    world.store.put(blob_key(outer.digest), outer.body)
    assert world.reconcile().count("holdings_added") == 2
    assert world.held() == {(world.name("app"), digest) for digest in (outer.digest, inner.digest, image.digest)}
    assert counted(world, image) == [1, 1]


@pytest.mark.parametrize("by", ["worker", "one batch", "reconcile"])
def test_an_index_of_which_another_says_that_it_is_an_image(world: World, by: str) -> None:
    """What is an index to whoever pushes it is one, whatever others have said of it before."""
    image = world.image("child")
    index = index_of(upload(world, "app", image.body))
    pushed = push(world, "app", index)
    assert pushed.content is not None
    lie = pushed._replace(repository=world.name("other"), content=pushed.content._replace(kind=ManifestKind.IMAGE))
    if by == "one batch":
        world.arrive(lie, pushed)
    else:
        world.arrive(lie)
    if by == "worker":
        world.arrive(pushed)
    if by == "reconcile":
        world.reconcile()
    else:
        assert take_up(world, pushed) == 1
    assert (world.name("app"), image.digest) in world.held() - world.kept_by_indexes()
    # The repository that the lie is about has the index, by its word, until it is reconciled.
    assert counted(world, image) == ([1, 1] if by == "reconcile" else [2, 2])


@pytest.mark.parametrize("first", ["layer", "revision"])
def test_both_links_have_to_go(world: World, first: str) -> None:
    """A manifest is held until neither a revision nor a layer links it, whichever went first."""
    image = world.image("m")
    world.arrive(world.pushed("app", image, 1))
    upload(world, "app", image.body)
    keys = {
        "layer": layer_link_key(world.name("app"), image.digest),
        "revision": revision_link_key(world.name("app"), image.digest),
    }
    world.store.delete(keys.pop(first))
    world.reconcile()
    assert world.held() == {(world.name("app"), image.digest)}
    (last,) = keys.values()
    world.store.delete(last)
    # Something of the pod is stored still.
    world.pushed("other", world.image("other"), 1)
    assert world.reconcile().count("holdings_removed") == 1
    assert (world.name("app"), image.digest) not in world.held()


def test_what_a_tag_points_to(world: World) -> None:
    """What is tagged and linked as a blob is held; what a tag has pointed to and nothing links is not."""
    image, gone = world.image("m"), world.image("gone")
    upload(world, "app", image.body)
    for digest in (image.digest, gone.digest):
        history = f"{repository_prefix(world.name('app'))}_manifests/tags/v1/index/sha256/{digest.hex()}/link"
        world.store.put(history, f"sha256:{digest.hex()}".encode())
    assert world.reconcile().count("holdings_added") == 1
    assert world.held() == {(world.name("app"), image.digest)}
    assert counted(world, image) == [1, 1]


def test_more_tags_than_are_checked_in_one_go(world: World) -> None:
    """However many tags there are, each of what they point to is held."""
    world.sizes = Sizes(compared=3)
    images = [world.image(f"m{number}") for number in range(10)]
    for number, image in enumerate(images):
        upload(world, "app", image.body)
        history = f"{repository_prefix(world.name('app'))}_manifests/tags/v{number}/index/sha256/"
        world.store.put(f"{history}{image.digest.hex()}/link", b"a link")
    world.reconcile()
    assert world.held() == {(world.name("app"), image.digest) for image in images}


def test_others_that_are_linked_as_blobs(world: World) -> None:
    """A manifest that nothing names was accepted by nobody; where an index lists it, it is kept without a link."""
    image = world.image("m")
    upload(world, "app", image.body)
    index = index_of(image.digest)
    pushed = push(world, "other", index)
    world.arrive(pushed)
    assert take_up(world, pushed) == 1
    world.reconcile()
    assert world.held() == {(world.name("other"), index.digest), (world.name("other"), image.digest)}
    assert world.kept_by_indexes() == {(world.name("other"), image.digest)}


def test_children_that_are_no_manifests(world: World) -> None:
    """Indexes of build caches list layers and configurations: these are blobs, and hold nothing up."""
    layers = [
        upload(world, "cache", b"\x1f\x8b a layer"),
        upload(world, "cache", b'{"layers": [{"blob": "sha256:0"}], "records": []}'),
        upload(world, "cache", b"x" * (MANIFEST_BYTES_LIMIT + 1)),
    ]
    index = index_of(*layers)
    pushed = push(world, "cache", index)
    world.arrive(pushed)
    assert take_up(world, pushed) == 0
    assert world.reconcile().count("holdings_added") == 0
    assert world.held() == {(world.name("cache"), index.digest)}


def test_what_is_no_manifest_is_read_once(world: World) -> None:
    """However often the index of a build's cache is pushed, a worker reads what it lists once."""
    layers = [upload(world, "cache", b"\x1f\x8b a layer"), upload(world, "cache", b'{"layers": []}')]
    index = index_of(*layers)
    pushed = push(world, "cache", index)
    world.arrive(pushed)
    read: list[str] = []
    world.bucket.interrupt = lambda call, key: read.append(key) if call == "get" else None
    connections = Connections(world.url, name="test-layered", prepare=statements.prepare)
    layered = Layered(connections, world.store, MARGIN)
    try:
        for _ in range(3):
            assert layered.take_up([(pushed.repository, pushed.digest)]) == 0
    finally:
        layered.close()
        connections.close()
    assert sorted(read) == sorted(map(blob_key, layers))


def test_what_is_no_manifest_is_read_once_by_a_reconcile(world: World) -> None:
    """However deep indexes are nested, a reconcile reads once what the others list."""
    layer = upload(world, "cache", b"\x1f\x8b a layer")
    push(world, "cache", index_of(layer))
    image = world.image("child")
    deepest = index_of(upload(world, "app", image.body))
    inner = index_of(upload(world, "app", deepest.body))
    push(world, "app", index_of(upload(world, "app", inner.body)))
    read: list[str] = []
    world.bucket.interrupt = lambda call, key: read.append(key) if call == "get" else None
    assert world.reconcile().count("holdings_added") == 5
    assert counted(world, image) == [1, 1]
    assert read.count(blob_key(layer)) == 1


@pytest.mark.parametrize("body", [None, b"other bytes", b'{"schemaVersion": 2, "layers": 7, "config": {}}'])
def test_a_child_that_cannot_be_read(world: World, body: bytes | None) -> None:
    """What may be a manifest is held, by what its bytes name or else by the links of its repository."""
    image = world.image("m")
    child = upload(world, "app", image.body if body is None or b"schema" not in body else body)
    if body is None:
        world.store.delete(blob_key(child))
    elif b"schema" not in body:
        world.store.put(blob_key(child), body)
    pushed = push(world, "app", index_of(child))
    world.arrive(pushed)
    assert take_up(world, pushed) == 1
    by_links = world.rows("SELECT b.digest FROM manifests m JOIN blobs b ON b.id = m.id WHERE m.by_links")
    assert ((child,) in by_links) is (body is None or b"schema" not in body)
    assert (world.name("app"), child) in world.held()


def test_a_child_that_cannot_be_read_and_of_which_others_have_reported(world: World) -> None:
    """It is held with what they report and what its repository links; its bytes decide once they can be read."""
    image = world.image("m")
    shown = world.pushed("told", image)
    assert shown.content is not None
    world.arrive(shown._replace(content=shown.content._replace(references=shown.content.references[:1])))
    child = upload(world, "app", image.body)
    pushed = push(world, "app", index_of(child))
    world.arrive(pushed)
    world.store.delete(blob_key(child))
    assert take_up(world, pushed) == 1
    world.reconcile()
    world.store.put(blob_key(child), image.body)
    world.reconcile()
    assert counted(world, image) == [2, 2]


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        (b'{"schemaVersion": 2}', True),
        (b'{"SchemaVersion": 1}', True),
        (b'{"schemaVersion": 3}', False),
        (b'{"schemaVersion": "2"}', False),
        (b'{"schemaVersion": [2]}', False),
        (b"[2]", False),
        (b"\xff", False),
        (b"", False),
        (b"[" * 100_000, True),
        # Go takes these: half a letter is a question mark, and null says nothing.
        (b'{"schemaVersion": 2, "annotations": {"by": "M\xfcller"}}', True),
        (b'{"schemaVersion": 2, "schemaVersion": null}', True),
        (b'[["schemaVersion", 2]]', False),
        (b'{"a": {"schemaVersion": 2}}', False),
    ],
)
def test_what_a_registry_could_serve_as_a_manifest(body: bytes, is_one: bool) -> None:
    """By its schema's version, as distribution decides; what cannot be told is one."""
    assert is_manifest(body) is is_one


def test_a_pod_with_nothing_but_a_tag_cannot_be_forgotten(world: World) -> None:
    """A tag may point to a manifest that is linked as a blob."""
    upload(world, "app", b"a layer")
    assert not stored_content.holds_anything(world.store, [world.name(".")], PodMode.MANIFEST)
    world.store.put(f"{repository_prefix(world.name('app'))}_manifests/tags/v1/index/sha256/{'0' * 64}/link", b"a link")
    assert stored_content.holds_anything(world.store, [world.name(".")], PodMode.MANIFEST)
