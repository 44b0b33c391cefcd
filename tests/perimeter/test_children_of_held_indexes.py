"""Attempt 3: what an index lists is needed as long as the index is held, even if the children's links are removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coordinator.domain.names import Digest
from coordinator.storage.layout import blob_key
from tests.reconcile.harness import Image, Pairs, World

REPOSITORIES = ("a", "b")
#: Two images, an index of both, and an index of one of them and that index.
NAMES = ("x", "y", "xy", "deep")
CHILDREN = {"xy": ("x", "y"), "deep": ("xy", "x")}


@pytest.fixture
def world(database: str) -> Iterator[World]:
    with World(database) as world:
        # Something of the pod is always there, so that an absence proves something.
        world.arrive(world.pushed("witness", world.image("witness", ["w"]), 1))
        yield world


def made(world: World, name: str) -> Image:
    if name in CHILDREN:
        return world.index(*(made(world, child).digest for child in CHILDREN[name]))
    return world.image(name)


def counted(world: World, *digests: Digest) -> set[int]:
    found = world.rows("SELECT reference_count FROM blobs WHERE digest = ANY(%s)", (list(digests),))
    return {row[0] for row in found}


def test_children_whose_links_are_removed_stay_needed(world: World) -> None:
    """When a registry's own collection removes the links of untagged children, what they list is kept."""
    x, xy = made(world, "x"), made(world, "xy")
    for image in (x, made(world, "y"), xy):
        world.arrive(world.pushed("a", image, 1))
    world.remove_link("a", x.digest)
    assert world.reconcile().count("holdings_removed") == 1
    assert world.kept_by_indexes() == {(world.name("a"), x.digest)}
    assert counted(world, x.layers[0]) == {2}
    assert counted(world, x.digest) == {2}
    world.assert_sound()


def test_a_delete_by_digest_of_a_child_waits_for_its_index(world: World) -> None:
    """What a deleted child lists is needed until its index is deleted, too."""
    x, y, xy = (made(world, name) for name in ("x", "y", "xy"))
    for image in (x, y, xy):
        world.arrive(world.pushed("a", image, 1))
    world.arrive(world.deleted("a", x.digest, 50))
    world.resolve_all()
    assert world.kept_by_indexes() == {(world.name("a"), x.digest)}
    world.arrive(world.deleted("a", xy.digest, 60))
    world.resolve_all()
    assert world.holdings_of_pod() == {
        (world.name("a"), y.digest),
        (world.name("witness"), world.image("witness", ["w"]).digest),
    }
    assert counted(world, x.digest, xy.digest) == {0}
    assert counted(world, *x.layers) == {1}
    world.assert_sound()


def test_an_index_whose_event_comes_after_its_childs_delete(world: World) -> None:
    """A child is kept when its index's push is applied after the later delete of the child."""
    x, y, xy = (made(world, name) for name in ("x", "y", "xy"))
    pushes = [world.pushed("a", image, 1) for image in (x, y, xy)]
    world.arrive(*pushes[:2])
    world.arrive(world.deleted("a", x.digest, 50))
    world.resolve_all()
    assert counted(world, x.digest) == {0}
    world.arrive(pushes[2])
    assert world.kept_by_indexes() == {(world.name("a"), x.digest)}
    assert counted(world, x.digest) == {2}
    # The child is pushed once more: it is held by its own link, and stays when the index goes.
    world.arrive(world.pushed("a", x, 100))
    assert world.kept_by_indexes() == set()
    world.arrive(world.deleted("a", xy.digest, 150))
    world.resolve_all()
    assert (world.name("a"), x.digest) in world.holdings_of_pod()
    assert counted(world, x.digest) == {1}
    world.assert_sound()


@pytest.mark.parametrize("by", ["worker", "reconcile"])
def test_a_repository_that_is_seen_after_the_childs_link_is_gone(world: World, by: str) -> None:
    """A child that was never reported is read: what it lists is kept while the index is held."""
    x, y, xy = (made(world, name) for name in ("x", "y", "xy"))
    world.pushed("a", y, 1)
    world.store.put(blob_key(x.digest), x.body)
    pushed = world.pushed("a", xy, 1)
    if by == "worker":
        world.arrive(pushed)
        world.add_children(pushed)
    else:
        world.reconcile()
    assert (world.name("a"), x.digest) in world.kept_by_indexes()
    assert 0 not in counted(world, *x.layers)
    world.reconcile()
    assert counted(world, *x.layers) == {2}
    world.assert_sound()


def test_a_child_that_is_known_later_is_kept_where_its_index_is_held(world: World) -> None:
    """A child that becomes known as a manifest through another repository is kept by the index, too."""
    x, y, xy = (made(world, name) for name in ("x", "y", "xy"))
    world.arrive(world.pushed("a", y, 1), world.pushed("a", xy, 1))
    assert counted(world, x.digest) == {1}
    world.arrive(world.pushed("b", x, 1))
    assert world.kept_by_indexes() == {(world.name("a"), x.digest)}
    assert counted(world, x.digest) == {3}
    world.assert_sound()


KINDS = ("push-unreported", "delete-unreported", "vanish", "resolve", "reconcile")


class Op(NamedTuple):
    what: str
    repository: str
    name: str


OPS = st.lists(
    st.builds(
        Op,
        # Some kinds more often than others.
        st.sampled_from([*["push"] * 3, *["delete"] * 2, *KINDS]),
        st.sampled_from(REPOSITORIES),
        st.sampled_from(NAMES),
    ),
    min_size=3,
    max_size=12,
)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPS)
@example([Op("push", "a", "x"), Op("push", "a", "deep"), Op("vanish", "a", "xy"), Op("delete", "a", "deep")])
def test_any_history(database: str, history: list[Op]) -> None:
    """After pushes, deletes and vanished links in any order, each repository needs what its links and indexes list."""
    with World(database) as world:
        world.arrive(world.pushed("witness", world.image("witness", ["w"]), 1))
        stored: set[str] = set()
        for number, op in enumerate(history):
            happen(world, op, 100.0 * (number + 1), stored)
        world.reconcile()
        assert world.holdings_of_pod() == needed(world, stored)
        world.assert_sound()


def happen(world: World, op: Op, second: float, stored: set[str]) -> None:
    image = made(world, op.name)
    there = (world.name(op.repository), image.digest) in world.stored()
    if op.what.startswith("push"):
        pushed = world.pushed(op.repository, image, second)
        stored.add(op.name)
        if op.what == "push":
            world.arrive(pushed)
    elif op.what == "vanish":
        world.remove_link(op.repository, image.digest)
    elif op.what.startswith("delete") and there:
        deleted = world.deleted(op.repository, image.digest, second)
        if op.what == "delete":
            world.arrive(deleted)
            world.resolve_all()
    elif op.what == "resolve":
        world.resolve_all()
    elif op.what == "reconcile":
        world.reconcile()


def needed(world: World, stored: set[str]) -> Pairs:
    """What storage links, and what indexes list of it whose bytes are there, worked out with plain sets."""
    names = {made(world, name).digest: name for name in NAMES}
    found, new = set[tuple[str, Digest]](), world.stored()
    while new:
        found |= new
        new = {
            (repository, made(world, child).digest)
            for repository, digest in new
            for child in CHILDREN.get(names.get(digest, ""), ())
            if child in stored
        } - found
    return found
