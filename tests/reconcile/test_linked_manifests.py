"""Manifests that a repository holds by a blob's link alone: distribution serves them, so what they list is needed.

Not here: that distribution serves them (tests/scenarios/test_registries_that_mislead.py).
"""

import hashlib

import pytest

from coordinator.domain.names import Digest
from coordinator.domain.pods import PodMode
from coordinator.domain.references import MANIFEST_BYTES_LIMIT, ManifestKind, is_manifest
from coordinator.reconcile import stored_content
from coordinator.reconcile.sizes import Sizes
from coordinator.storage.layout import blob_key, layer_link_key, revision_link_key
from tests.reconcile.harness import Image, World


def upload(world: World, repository: str, body: bytes) -> Digest:
    """Store bytes and the link of a blob, as an upload does."""
    digest = Digest(hashlib.sha256(body).digest())
    world.store.put(blob_key(digest), body)
    world.store.put(layer_link_key(world.name(repository), digest), f"sha256:{digest.hex()}".encode())
    return digest


def counted(world: World, image: Image) -> list[int]:
    """How many holdings need each of its layers."""
    found = world.rows(
        "SELECT b.reference_count FROM unnest(%s::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest",
        (list(image.layers),),
    )
    return [row[0] for row in found]


@pytest.mark.parametrize("by", ["worker", "reconcile"])
def test_children_that_were_uploaded_as_blobs(world: World, by: str) -> None:
    """A repository holds what its index lists and it links as a blob, and what that lists in turn."""
    image = world.image("child")
    child = upload(world, "app", image.body)
    inner = world.index(child)
    outer = world.index(upload(world, "app", inner.body))
    pushed = world.pushed("app", outer, 1)
    world.arrive(pushed)
    if by == "worker":
        assert world.add_children(pushed) == 2
        assert world.add_children(pushed) == 0
    else:
        assert world.reconcile().count("holdings_added") == 2
    held = {(world.name("app"), digest) for digest in (outer.digest, inner.digest, child)}
    assert world.holdings_of_pod() == held
    assert counted(world, image) == [1, 1]
    for _ in range(2):
        done = world.reconcile()
        assert (done.count("holdings_added"), done.count("holdings_removed")) == (0, 0)
    assert world.holdings_of_pod() == held


def test_children_of_an_index_that_is_read_late(world: World) -> None:
    """A reconcile that reads an index whose bytes were absent adds its children, and theirs."""
    image = world.image("child")
    inner = world.index(upload(world, "app", image.body))
    outer = world.index(upload(world, "app", inner.body))
    pushed = world.pushed("app", outer, 1)
    world.store.delete(blob_key(outer.digest))
    world.arrive(pushed._replace(content=None))
    assert world.add_children(pushed) == 0
    world.store.put(blob_key(outer.digest), outer.body)
    assert world.reconcile().count("holdings_added") == 2
    assert world.holdings_of_pod() == {
        (world.name("app"), digest) for digest in (outer.digest, inner.digest, image.digest)
    }
    assert counted(world, image) == [1, 1]


@pytest.mark.parametrize("by", ["worker", "one batch", "reconcile"])
def test_an_index_of_which_another_says_that_it_is_an_image(world: World, by: str) -> None:
    """What a pod pushes as an index is one, whatever kind other pods reported before."""
    image = world.image("child")
    index = world.index(upload(world, "app", image.body))
    pushed = world.pushed("app", index, 1)
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
        assert world.add_children(pushed) == 1
    assert (world.name("app"), image.digest) in world.holdings_of_pod() - world.kept_by_indexes()
    # The repository of the false report holds the index until it is reconciled.
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
    assert world.holdings_of_pod() == {(world.name("app"), image.digest)}
    (last,) = keys.values()
    world.store.delete(last)
    # Something of the pod is stored still.
    world.pushed("other", world.image("other"), 1)
    assert world.reconcile().count("holdings_removed") == 1
    assert (world.name("app"), image.digest) not in world.holdings_of_pod()


def test_what_a_tag_points_to(world: World) -> None:
    """What is tagged and linked as a blob is held; what a tag has pointed to and nothing links is not."""
    image, gone = world.image("m"), world.image("gone")
    upload(world, "app", image.body)
    for digest in (image.digest, gone.digest):
        world.tagged("app", digest)
    assert world.reconcile().count("holdings_added") == 1
    assert world.holdings_of_pod() == {(world.name("app"), image.digest)}
    assert counted(world, image) == [1, 1]


def test_more_tags_than_are_checked_in_one_go(world: World) -> None:
    """Each manifest that a tag points to is held, however many tags there are."""
    world.sizes = Sizes(compared=3)
    images = [world.image(f"m{number}") for number in range(10)]
    for number, image in enumerate(images):
        upload(world, "app", image.body)
        world.tagged("app", image.digest, f"v{number}")
    world.reconcile()
    assert world.holdings_of_pod() == {(world.name("app"), image.digest) for image in images}


def test_others_that_are_linked_as_blobs(world: World) -> None:
    """A manifest that no tag or index names is not held; one that an index lists is kept without a link."""
    image = world.image("m")
    upload(world, "app", image.body)
    index = world.index(image.digest)
    pushed = world.pushed("other", index, 1)
    world.arrive(pushed)
    assert world.add_children(pushed) == 1
    world.reconcile()
    assert world.holdings_of_pod() == {(world.name("other"), index.digest), (world.name("other"), image.digest)}
    assert world.kept_by_indexes() == {(world.name("other"), image.digest)}


def test_children_that_are_no_manifests(world: World) -> None:
    """Indexes of build caches list layers and configurations: these are blobs, and are not added as manifests."""
    layers = [
        upload(world, "cache", b"\x1f\x8b a layer"),
        upload(world, "cache", b'{"layers": [{"blob": "sha256:0"}], "records": []}'),
        upload(world, "cache", b"x" * (MANIFEST_BYTES_LIMIT + 1)),
    ]
    index = world.index(*layers)
    pushed = world.pushed("cache", index, 1)
    world.arrive(pushed)
    assert world.add_children(pushed) == 0
    assert world.reconcile().count("holdings_added") == 0
    assert world.holdings_of_pod() == {(world.name("cache"), index.digest)}


def test_what_is_no_manifest_is_read_once(world: World) -> None:
    """A worker reads once what the index of a build cache lists, however often it is pushed."""
    layers = [upload(world, "cache", b"\x1f\x8b a layer"), upload(world, "cache", b'{"layers": []}')]
    index = world.index(*layers)
    pushed = world.pushed("cache", index, 1)
    world.arrive(pushed)
    read: list[str] = []
    world.bucket.interrupt = lambda call, key: read.append(key) if call == "get" else None
    with world.layered() as layered:
        for _ in range(3):
            assert layered.add_children([(pushed.repository, pushed.digest)]) == 0
    assert sorted(read) == sorted(map(blob_key, layers))


def test_what_is_no_manifest_is_read_once_by_a_reconcile(world: World) -> None:
    """A reconcile reads once what other indexes list, however deep indexes are nested."""
    layer = upload(world, "cache", b"\x1f\x8b a layer")
    world.pushed("cache", world.index(layer), 1)
    image = world.image("child")
    deepest = world.index(upload(world, "app", image.body))
    inner = world.index(upload(world, "app", deepest.body))
    world.pushed("app", world.index(upload(world, "app", inner.body)), 1)
    read: list[str] = []
    world.bucket.interrupt = lambda call, key: read.append(key) if call == "get" else None
    assert world.reconcile().count("holdings_added") == 5
    assert counted(world, image) == [1, 1]
    assert read.count(blob_key(layer)) == 1


@pytest.mark.parametrize("body", [None, b"other bytes", b'{"schemaVersion": 2, "layers": 7, "config": {}}'])
def test_a_child_that_cannot_be_read(world: World, body: bytes | None) -> None:
    """A child that may be a manifest is held, with what its bytes name or else with the links of its repository."""
    image = world.image("m")
    child = upload(world, "app", image.body if body is None or b"schema" not in body else body)
    if body is None:
        world.store.delete(blob_key(child))
    elif b"schema" not in body:
        world.store.put(blob_key(child), body)
    pushed = world.pushed("app", world.index(child), 1)
    world.arrive(pushed)
    assert world.add_children(pushed) == 1
    by_links = world.rows("SELECT b.digest FROM manifests m JOIN blobs b ON b.id = m.id WHERE m.by_links")
    assert ((child,) in by_links) is (body is None or b"schema" not in body)
    assert (world.name("app"), child) in world.holdings_of_pod()


def test_a_child_that_cannot_be_read_and_of_which_others_have_reported(world: World) -> None:
    """It is held with what others report and its repository links; its bytes decide once they can be read."""
    image = world.image("m")
    shown = world.pushed("reported", image)
    world.arrive(shown._replace(content=shown.content._replace(references=shown.content.references[:1])))
    child = upload(world, "app", image.body)
    pushed = world.pushed("app", world.index(child), 1)
    world.arrive(pushed)
    world.store.delete(blob_key(child))
    assert world.add_children(pushed) == 1
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
    """The schema's version decides, as in distribution; what cannot be decided counts as a manifest."""
    assert is_manifest(body) is is_one


def test_a_pod_with_nothing_but_a_tag_cannot_be_forgotten(world: World) -> None:
    """A pod with a tag holds something: the tag may point to a manifest that is linked as a blob."""
    upload(world, "app", b"a layer")
    assert not stored_content.has_any_link(world.store, [world.name(".")], PodMode.MANIFEST)
    world.tagged("app", Digest(bytes(32)))
    assert stored_content.has_any_link(world.store, [world.name(".")], PodMode.MANIFEST)
