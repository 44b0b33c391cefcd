"""Repositories that no pod owns block GC, whenever they appear; the listing that shows none must be recent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import chain

import pytest

from coordinator.db.connection import Connections
from coordinator.domain.gc import Why
from coordinator.domain.names import Digest, RepositoryName
from coordinator.perimeter import root_listing_table
from coordinator.perimeter.root_listing import find_unowned, update_listing, update_listing_if_due
from coordinator.storage.layout import REPOSITORIES, layer_link_key, revision_link_key
from coordinator.storage.port import ObjectStore
from tests.gc.harness import NO_TIMES, Garbage
from tests.storage.memory import MemoryObjectStore
from tests.support.store import FaultyStore

HOUR = timedelta(hours=1)


def link(garbage: Garbage, repository: str, name: str = "l") -> str:
    """A registry links a blob in a repository; returns the key."""
    key = layer_link_key(RepositoryName(repository), garbage.digest(name))
    garbage.store.put(key, b"a link")
    return key


def own(garbage: Garbage, prefix: str) -> None:
    garbage.connection.execute("INSERT INTO pod_prefixes SELECT %s, id FROM pods WHERE name = 'pod-a'", (prefix,))


def unowned_names(garbage: Garbage) -> list[str]:
    """What the last listing shows, without the repositories that a pod owns by now."""
    return root_listing_table.read_listing(garbage.connection).names_to_show


@pytest.fixture
def left(garbage: Garbage) -> Garbage:
    """An image that was deleted, which another registry's repository shares."""
    garbage.push_and_forget("m", "l")
    return garbage


@pytest.mark.parametrize("name", ["x/app", "team/x/app", "pod-a-not/app"])
def test_a_run_is_blocked_by_what_no_pod_owns(left: Garbage, name: str) -> None:
    """Attempt 1: nothing is hidden while the root has a repository of no pod, and the run names it."""
    own(left, "team/a")
    link(left, name)
    run = left.collect()
    assert run.hidden == 0
    (held,) = run.progress["blocked_by"]
    assert f"no pod owns {name.removesuffix('/app')}, which is stored" in held
    assert left.is_served("l")


def test_it_goes_on_once_a_pod_owns_it(left: Garbage) -> None:
    """A prefix that is added resolves it at once, without another listing."""
    link(left, "x/app")
    assert left.collect().hidden == 0
    own(left, "x")
    assert unowned_names(left) == []
    assert left.collect().hidden == 2


@pytest.mark.parametrize("stays", [True, False])
def test_one_that_appears_between_hide_and_purge(left: Garbage, stays: bool) -> None:
    """Hidden blobs are purged only once no repository of no pod is left."""
    assert left.collect().hidden == 2
    key = link(left, "x/app")
    assert left.collect().purged == 0
    if not stays:
        left.store.delete(key)
        assert left.collect().purged == 2


def test_one_that_appears_while_a_run_is_under_way(left: Garbage) -> None:
    """The root is listed again before a page of purges: a repository that appears after the plan keeps the page."""
    left.sizes = replace(left.sizes, facts_s=0.0)
    assert left.collect().hidden == 2
    store = FaultyStore(left.store)
    store.after("list_folders", lambda: link(left, "x/app"), key=REPOSITORIES, nth=1)
    run = left.collect(store)
    assert run.purged == 0
    assert run.kept == {Why.HELD: 2}
    assert left.hide_of("l") is not None


def test_a_listing_before_the_bound_is_not_enough(left: Garbage) -> None:
    """What is hidden is kept until a listing began after t_h + R."""
    assert left.collect().hidden == 2
    left.times = NO_TIMES._replace(request_bound=HOUR)
    # As if the pod had reported up to any time.
    left.known = lambda facts: facts._replace(pods=[pod._replace(watermark=facts.now + 2 * HOUR) for pod in facts.pods])
    assert left.collect(dry=True).kept == {Why.NOT_LISTED: 2}
    assert left.collect().purged == 0
    left.connection.execute("UPDATE hides SET hidden_at = hidden_at - interval '1 hour'")
    assert left.collect().purged == 2


@pytest.mark.parametrize("there", [True, False])
def test_a_purge_that_an_earlier_run_began(left: Garbage, there: bool) -> None:
    """A purge that was begun and not finished waits, too, while a repository of no pod is there."""
    assert left.collect().hidden == 2
    store = FaultyStore(left.store)
    store.fail("delete_many")
    left.collect(store)
    assert left.rows("SELECT count(*) FROM hides WHERE purging_at IS NOT NULL") == [(2,)]
    if there:
        link(left, "x/app")
    run = left.collect()
    assert run.purged == (0 if there else 2)
    assert (left.hide_of("l") is not None) is there


def test_a_store_that_does_not_answer(left: Garbage) -> None:
    """A run whose listing fails ends with the store's error, and the last listing stays."""
    left.collect()
    known = root_listing_table.read_listing(left.connection)

    store = FaultyStore(left.store)
    store.fail("list_folders")
    run = left.try_collection(store)
    assert run.state == "failed"
    assert "does not answer" in str(run.error)
    assert root_listing_table.read_listing(left.connection) == known
    assert left.hide_of("l") is not None


def test_a_pod_that_was_removed(left: Garbage) -> None:
    """A listing from before a pod was removed is void; the next one names what the pod had."""
    own(left, "x")
    link(left, "x/app")
    left.collect()
    left.connection.execute("DELETE FROM pod_prefixes WHERE prefix = 'x'")
    assert root_listing_table.read_listing(left.connection) is None
    assert left.collect().purged == 0
    assert unowned_names(left) == ["x"]


@pytest.fixture
def connections(garbage: Garbage) -> Iterator[Connections]:
    with closing(Connections(garbage.url, name="test-perimeter")) as connections:
        yield connections


def test_listings_are_made_when_they_are_due(garbage: Garbage, connections: Connections) -> None:
    """The scheduler lists when the last one is old, and as soon as the pods have changed."""
    assert update_listing_if_due(connections, garbage.store, HOUR)
    assert not update_listing_if_due(connections, garbage.store, HOUR)
    own(garbage, "more")
    assert update_listing_if_due(connections, garbage.store, HOUR)
    assert not update_listing_if_due(connections, garbage.store, HOUR)
    assert update_listing_if_due(connections, garbage.store, timedelta())


def test_the_listing_that_began_last_counts(garbage: Garbage, connections: Connections) -> None:
    """A slow listing that began earlier does not replace one that began later; one from the future is replaced."""
    early = root_listing_table.begin_listing(garbage.connection)
    found = update_listing(connections, garbage.store)
    root_listing_table.write_listing(garbage.connection, early, ["x"], complete=True)
    assert root_listing_table.read_listing(garbage.connection) == found
    garbage.connection.execute("UPDATE root_listing SET began_at = now() + interval '1 hour'")
    assert root_listing_table.read_listing(garbage.connection) is None
    found = update_listing(connections, garbage.store)
    assert root_listing_table.read_listing(garbage.connection) == found


# What is listed


def seen(store: ObjectStore, *prefixes: str) -> list[str]:
    return sorted(find_unowned(store, prefixes))


DIGEST = Digest(b"d" * 32)


def test_which_folders_no_pod_owns(store: ObjectStore) -> None:
    """A top folder of no pod is given once; of one above a prefix what lies beside it, and itself if it has links."""
    assert seen(store, "a") == []
    for name in ("a/app", "a/b/c", "ab/app", "team/x/app", "team/y/app", "team", "team/x", "z"):
        store.put(revision_link_key(RepositoryName(name), DIGEST), b"link")
        store.put(layer_link_key(RepositoryName(name), DIGEST), b"link")
    assert seen(store, "a") == ["ab", "team", "z"]
    assert seen(store, "a", "team") == ["ab", "z"]
    assert seen(store, "a", "team/x", "z") == ["ab", "team", "team/y"]
    assert seen(store, "a", "team/x/app", "team/y", "z", "ab/app") == ["team", "team/x"]
    assert seen(store) == ["a", "ab", "team", "z"]


def test_an_empty_root(store: ObjectStore) -> None:
    """A root with nothing in it, or with blobs alone, has no repositories."""
    store.put("docker/registry/v2/blobs/sha256/aa/x/data", b"x")
    assert seen(store, "a") == []


def test_a_folder_that_has_lost_its_last_key() -> None:
    """A folder that the store lists and that is empty is no repository."""
    store = FaultyStore(MemoryObjectStore())
    store.instead("list_folders", lambda real, prefix: chain(real(prefix), [f"{REPOSITORIES}gone/"]))
    store.put(layer_link_key(RepositoryName("x/app"), DIGEST), b"link")
    assert seen(store, "a") == ["x"]


def test_more_than_are_named(garbage: Garbage, connections: Connections) -> None:
    """A listing stops after a hundred names, and says that there are more; adding these pods alone resolves nothing."""
    for number in range(150):
        link(garbage, f"x{number:03}/app")
    found = update_listing(connections, garbage.store)
    assert (len(found.unowned), found.complete) == (100, False)
    for name in found.unowned:
        own(garbage, name)
    assert unowned_names(garbage) == ["and more"]
