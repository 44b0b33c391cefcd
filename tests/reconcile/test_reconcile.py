"""A reconcile makes the table agree with the links in storage, whatever events reported."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest
from coordinator.errors import UnavailableError
from coordinator.reconcile import compare
from coordinator.reconcile.sizes import Sizes
from coordinator.storage.layout import blob_key, repository_prefix, revision_link_key
from coordinator.storage.port import ObjectInfo
from coordinator.storage.s3 import S3ObjectStore
from coordinator.table import progress, renames
from tests.reconcile.harness import LONG_GRACE, MARGIN, World
from tests.storage.memory import MemoryObjectStore
from tests.support import tables
from tests.support.tables import add_gap, add_process, ago, insert

Arrange = Callable[[Sequence[ObjectInfo]], Iterable[ObjectInfo]]


#: Every repository of more than two links streams by itself, and batches are of few things.
SMALL = Sizes(compared=3, added=2, looked_up=2, fetched=2, parts=3, first_pause_s=0.0)


@pytest.fixture
def world(database: str) -> Iterator[World]:
    with World(database, sizes=SMALL) as world:
        yield world


@pytest.fixture
def link_world(database: str) -> Iterator[World]:
    """A pod of mode `link`."""
    with World(database, mode="link", sizes=SMALL) as world:
        yield world


def test_lost_pushes_and_deletes(world: World) -> None:
    """What was pushed without an event is added, what was deleted without one is removed, and the job lists both."""
    kept, lost, gone = world.image("kept"), world.image("lost", ["l1", "l2"]), world.image("gone", ["l3"])
    world.arrive(world.pushed("app", kept, 1), world.pushed("app", gone, 2))
    world.pushed("app", lost, 3)
    world.pushed("other/deep", lost, 3)
    world.deleted("app", gone.digest, 4)
    done = world.reconcile()
    world.assert_sound()
    assert world.holdings_of_pod() == {
        (world.name("app"), kept.digest),
        (world.name("app"), lost.digest),
        (world.name("other/deep"), lost.digest),
    }
    changes = ("holdings_added", "holdings_removed", "still_linked")
    assert [done.count(change) for change in changes] == [2, 1, 0]
    assert {(each["change"], each["repository"], each["digest"]) for each in done.progress["examples"]} == {
        ("holdings_added", world.name("app"), f"sha256:{lost.digest.hex()}"),
        ("holdings_added", world.name("other/deep"), f"sha256:{lost.digest.hex()}"),
        ("holdings_removed", world.name("app"), f"sha256:{gone.digest.hex()}"),
    }
    assert done.count("parts") == done.count("parts_done") > 1
    assert (done.count("keys"), done.count("links")) == (4, 3), "what a tag has pointed to is listed, too"
    assert world.doubtful_removals() == 0


def stored_rows(world: World) -> list[Any]:
    return [world.rows(f"SELECT *, xmin FROM {table}") for table in ("repository_manifests", "repository_blobs")]


def test_again_changes_nothing(world: World) -> None:
    """A second reconcile finds nothing to do, and writes none of the rows again."""
    for n in range(5):
        world.pushed(f"r{n % 2}", world.image(f"m{n}"), n)
    world.uploaded("r0", "young", 1)
    world.link_grace = LONG_GRACE
    assert world.reconcile().count("holdings_added") == 5
    before = stored_rows(world)
    done = world.reconcile()
    for change in ("holdings_added", "links_added", "holdings_removed", "links_removed", "still_linked"):
        assert done.count(change) == 0
    assert done.progress["examples"] == []
    assert before == stored_rows(world)
    world.assert_sound()


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("batch", [2, 2000])
def test_names_that_begin_alike(world: World, *, by_parts: bool, batch: int) -> None:
    """Repositories that are folders of others, and names that sort between a name and those below it, are compared."""
    world.sizes = replace(SMALL, compared=batch)
    world.bucket.__init__(by_parts=by_parts)  # type: ignore[misc]
    names = [".", "a", "a/b", "a-b", "a.b", "a/b/c", "ab", "a/b-c"]
    images = [world.image(f"m{n}") for n in range(5)]
    chance = random.Random(by_parts)
    for name in names:
        for image in images:
            if chance.random() < 0.7:
                fact = world.pushed(name, image, 1)
                if chance.random() < 0.6:
                    world.arrive(fact)
            elif chance.random() < 0.5:
                world.arrive(world.pushed(name, image, 1))
                world.deleted(name, image.digest)
    world.reconcile()
    world.assert_sound()


def test_disorder(world: World) -> None:
    """A store that lists in no order costs look-ups and nothing else: no link that exists is removed."""
    world.sizes = replace(SMALL, parts=1)
    images = [world.image(f"m{n}") for n in range(12)]
    for n, image in enumerate(images):
        fact = world.pushed(f"r{n % 2}", image, n)
        if n % 3:
            world.arrive(fact)
    world.arrive(world.pushed("r0", world.image("gone"), 1))
    world.deleted("r0", world.image("gone").digest)
    chance = random.Random(5)
    world.bucket.arrange = lambda entries: chance.sample(list(entries), len(entries))
    done = world.reconcile()
    world.assert_sound()
    assert (done.count("holdings_added"), done.count("holdings_removed")) == (4, 1)


def test_on_a_real_store(database: str, s3: S3ObjectStore) -> None:
    """On a real S3 server, with its own clock and order, the table agrees with the links, too."""
    with World(database, s3, sizes=SMALL) as world:
        kept, lost, gone = world.image("kept"), world.image("lost"), world.image("gone")
        for name in (".", "a", "a-b", "a/b"):
            world.arrive(world.pushed(name, kept, 1), world.pushed(name, gone, 2))
            world.pushed(name, lost, 3)
            world.deleted(name, gone.digest, 4)
        world.uploaded("a", "young", 5)
        done = world.reconcile()
        world.assert_sound()
        assert (done.count("holdings_added"), done.count("holdings_removed")) == (4, 4)
        assert world.table_links() == world.stored_layers() == {(world.name("a"), world.digest("young"))}
        done = world.reconcile()
        assert (done.count("holdings_added"), done.count("holdings_removed")) == (0, 0)


def test_links_of_a_pod_that_counts_them(link_world: World) -> None:
    """In mode link, links of blobs are compared both ways, however old; sizes are those of the stored bytes."""
    world = link_world
    world.arrive(world.uploaded("app", "kept", 1), world.uploaded("app", "gone", 1), world.uploaded("x", "all-gone", 1))
    world.uploaded("app", "lost", 2)
    world.uploaded("new", "lost", 2)
    for repository, name in (("app", "gone"), ("x", "all-gone")):
        world.unlinked(repository, name, 3)
    done = world.reconcile()
    assert world.table_links() == world.stored_layers()
    assert (done.count("links_added"), done.count("links_removed")) == (2, 2)
    row = world.row("lost")
    assert (row.links, row.size) == (2, 7)
    world.assert_sound()


def test_links_of_a_pod_of_manifests(world: World) -> None:
    """In mode manifest a reconcile adds only links younger than the grace, and removes none: the sweep does that."""
    world.arrive(world.uploaded("app", "known", 1), world.uploaded("app", "unlinked", 1))
    world.unlinked("app", "unlinked", 2)
    world.uploaded("app", "lost", 2)
    done = world.reconcile()
    assert done.count("links_added") == 0
    assert world.table_links() == {(world.name("app"), world.digest(name)) for name in ("known", "unlinked")}
    world.link_grace = LONG_GRACE
    since = world.rows("SELECT blob_id, linked_at FROM repository_blobs")
    done = world.reconcile()
    assert (done.count("links_added"), done.count("links_removed")) == (1, 0)
    assert world.table_links() == {(world.name("app"), world.digest(name)) for name in ("known", "unlinked", "lost")}
    # What is known keeps its time: a reconcile makes no grace longer.
    assert set(since) < set(world.rows("SELECT blob_id, linked_at FROM repository_blobs"))


def test_manifests_that_cannot_be_read(world: World) -> None:
    """A manifest without readable bytes is held and kept by links; once they can be read, a reconcile reads them."""
    missing, broken = world.image("missing"), world.image("broken")
    world.pushed("app", missing, 1)
    world.pushed("app", broken, 1)
    world.store.delete(blob_key(missing.digest))
    world.store.put(blob_key(broken.digest), b"other bytes")
    done = world.reconcile()
    world.assert_sound()
    assert done.count("unread") == 2
    assert len([each for each in done.progress["examples"] if each["change"] == "unread"]) == 2
    assert world.blob("l0") is None
    for image in (missing, broken):
        world.store.put(blob_key(image.digest), image.body)
    done = world.reconcile()
    assert done.count("unread") == 0
    assert world.row("l0").references == 2
    world.assert_sound()


def test_a_manifest_that_cannot_be_read_and_of_which_others_have_reported(world: World) -> None:
    """What others report that it lists counts beside its repository's links, until its own bytes can be read."""
    image = world.image("m")
    shown = world.pushed("told", image, 1)
    world.arrive(shown._replace(content=shown.content._replace(references=shown.content.references[:2])))
    world.pushed("app", image, 1)
    world.uploaded("app", "l1", 1)
    world.store.delete(blob_key(image.digest))
    gap(world)
    world.reconcile()
    assert open_gaps(world) == 0
    assert (world.name("app"), image.digest) in world.holdings_of_pod()
    found = world.blobs(image.layers)
    assert found[world.digest("l0")].references == 2
    assert (found[world.digest("l1")].references, found[world.digest("l1")].links) == (0, 1)
    world.store.put(blob_key(image.digest), image.body)
    world.reconcile()
    assert [row.references for row in world.blobs(image.layers).values()] == [2, 2]
    world.assert_sound()


def test_sizes_are_learnt(world: World) -> None:
    """A manifest without an event gets the size of its bytes, and its layers the sizes that it lists."""
    image = world.image("m")
    world.pushed("app", image, 1)
    world.reconcile()
    found = world.blobs([image.digest, *image.layers])
    assert found[image.digest].size == len(image.body)
    assert {found[layer].size for layer in image.layers} == {7}


def test_a_pod_whose_links_are_elsewhere(database: str) -> None:
    """A pod of kind relay cannot be reconciled: the job says so, and removes nothing."""
    with World(database, kind="relay", sizes=SMALL) as world:
        world.arrive(world.pushed("app", world.image("m"), 1))
        world.store.delete(revision_link_key(world.name("app"), world.image("m").digest))
        assert "relay" in world.failed()
        assert len(world.holdings_of_pod()) == 1


def once(rearrange: Callable[[Sequence[ObjectInfo]], Sequence[ObjectInfo]]) -> Arrange:
    """Rearrange each listing the first time; it is whole when it is asked for again."""
    seen: set[str] = set()

    def arrange(entries: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        first = entries[0].key if entries else ""
        if first in seen:
            return entries
        seen.add(first)
        return rearrange(entries)

    return arrange


@pytest.mark.parametrize(
    ("shown", "unknown", "looked_up"),
    [(lambda entries: list(entries)[::2], ["r0", "r1", "r2"], 3), (lambda entries: [], ["r0", "r1/new", "r2"], 8)],
)
def test_an_incomplete_listing(
    world: World, shown: Callable[[Any], Any], unknown: Sequence[str], looked_up: int
) -> None:
    """Known links that a listing omits are looked up and stay; unknown ones are found by another (scenario 19)."""
    for n in range(8):
        world.arrive(world.pushed(f"r{n % 3}", world.image(f"m{n}"), n))
    world.bucket.arrange = once(shown)
    done = world.reconcile()
    world.assert_sound()
    assert (done.count("still_linked"), done.count("holdings_removed")) == (looked_up, 0)
    for repository in unknown:
        world.pushed(repository, world.image("lost"), 9)
    world.bucket.arrange = once(lambda entries: [])
    done = world.reconcile()
    world.assert_sound()
    assert (done.count("still_linked"), done.count("holdings_added"), done.count("holdings_removed")) == (8, 3, 0)


@pytest.mark.parametrize("shown", [lambda entries: list(entries)[:1], lambda entries: []])
def test_listings_that_stay_incomplete(world: World, shown: Callable[[Any], Any]) -> None:
    """Where two listings lack a link that is there, nothing is known of what else they lack: the job fails, and nothing
    is resolved or removed but what a look has found gone (scenario 19).
    """
    for n in range(8):
        world.arrive(world.pushed(f"r{n % 3}", world.image(f"m{n}"), n))
    gone = world.image("m1").digest
    world.deleted("r1", gone)
    world.pushed("r1", world.image("lost"), 9)
    gap(world)
    world.bucket.arrange = shown
    assert "two listings did not show it" in world.failed()
    assert world.stored() - {(world.name("r1"), world.image("lost").digest)} <= world.holdings_of_pod()
    assert open_gaps(world) == 1
    # Of a million repositories that fail every hour it would be many.
    assert world.rows("SELECT * FROM job_repositories") == []
    world.bucket.arrange = lambda entries: entries
    world.reconcile()
    world.assert_sound()
    assert open_gaps(world) == 0


def test_of_many_that_are_lacking_some_are_remembered(world: World) -> None:
    """Of what a listing lacks a bounded part is remembered, which shows when the next listing lacks it, too."""
    world.sizes = replace(SMALL, parts=1, lacking_kept=4)
    world.arrive(*(world.pushed(f"r{n % 3}", world.image(f"m{n}"), n) for n in range(30)))
    world.bucket.arrange = once(lambda entries: [])
    assert world.reconcile().count("still_linked") == 30
    world.bucket.arrange = lambda entries: list(entries)[:10]
    world.failed()
    lacking = compare._LackingLinks(kept=4)
    for entry in MemoryObjectStore.walk(world.bucket, ""):
        lacking.add(entry, "")
        assert min(2, lacking._count) <= len(lacking.links) <= 4


@pytest.mark.parametrize("again", [False, True])
def test_a_push_after_its_place_was_passed(world: World, *, again: bool) -> None:
    """A link that was written after the listing had passed its place proves nothing against that listing, nor does one
    that was written anew while the second went on.
    """
    image = world.image("m")
    world.arrive(world.pushed("app", image, 1), world.pushed("app", world.image("other"), 1))
    key = revision_link_key(world.name("app"), image.digest)
    hidden = 2 if again else 1

    def hide(entries: Sequence[ObjectInfo]) -> Sequence[ObjectInfo]:
        nonlocal hidden
        hidden -= 1
        if hidden < 0:
            return entries
        if again and hidden == 0:
            world.pushed("app", image, 5)
        return [entry for entry in entries if entry.key != key]

    world.bucket.arrange = hide
    assert world.reconcile().count("holdings_removed") == 0
    world.assert_sound()


@pytest.mark.parametrize("call", ["walk", "head"])
@pytest.mark.parametrize("known", [False, True])
def test_a_root_that_is_empty_for_a_while(world: World, call: str, *, known: bool) -> None:
    """Where all objects vanish without an error while a reconcile runs, from its first listing or from its first check
    under the lock on, nothing is removed or resolved.
    """
    for n in range(5):
        fact = world.pushed(f"r{n}", world.image(f"m{n}"), n)
        if known:
            world.arrive(fact)
    if call == "head":
        differing_blobs = world.image("doubted")
        world.arrive(world.pushed("r0", differing_blobs, 1), world.deleted("r0", differing_blobs.digest, 2))
        world.pushed("r0", differing_blobs, 3)
    gap(world)
    stored = world.bucket._objects

    def vanish(called: str, _: str) -> None:
        if called == call:
            world.bucket._objects = {}

    world.bucket.interrupt = vanish
    before = world.holdings_of_pod()
    world.failed()
    assert open_gaps(world) == 1
    assert world.holdings_of_pod() >= before
    world.bucket.interrupt, world.bucket._objects = lambda call, key: None, stored
    world.reconcile()
    world.assert_sound()
    assert open_gaps(world) == 0


def test_a_root_without_a_registry(world: World) -> None:
    """Where no registry has stored anything the root may be wrong, and a reconcile fails. Once any registry has, a pod
    without links is empty.
    """
    world.bucket.put("something/else", b"")
    error = world.failed()
    assert "docker/registry/v2/" in error
    assert "BALEEN_S3_ROOT" in error
    world.bucket.put(blob_key(Digest(bytes(32))), b"another pod's")
    assert world.reconcile().count("keys") == 0


def test_a_listing_that_fails(world: World) -> None:
    """A part whose listing goes on failing fails the job: nothing is removed, no gap is resolved (scenario 19)."""
    for n in range(6):
        world.arrive(world.pushed(f"r{n % 2}", world.image(f"m{n}"), n))
    gap(world)

    def fail(call: str, key: str) -> None:
        if call == "walk" and f"{world.pod}/r1/" in key:
            raise UnavailableError("The object store does not answer: try again.")

    world.bucket.interrupt = fail
    assert world.failed() == "The object store does not answer: try again."
    world.assert_sound()
    assert open_gaps(world) == 1
    world.bucket.interrupt = lambda call, key: None
    world.reconcile()
    assert open_gaps(world) == 0


@pytest.mark.parametrize("call", ["walk", "head", "get", "check"])
def test_a_store_that_fails_now_and_then(world: World, call: str) -> None:
    """A part is tried again when the store did not answer; what was done of it is not done twice."""
    for n in range(6):
        world.arrive(world.pushed(f"r{n % 2}", world.image(f"m{n}"), n))
        world.pushed(f"r{n % 2}", world.image(f"lost{n}"), n)
    world.deleted("r0", world.image("m0").digest)
    world.deleted("r1", world.image("m1").digest)
    calls = 0

    def fail(called: str, _: str) -> None:
        nonlocal calls
        if called == call:
            calls += 1
            # The first is of the store as a whole, before anything begins.
            if calls in {2, 3, 5}:
                raise UnavailableError("The object store does not answer: try again.")

    world.bucket.interrupt = fail
    done = world.reconcile()
    world.assert_sound()
    assert calls > 5
    assert (done.count("holdings_added"), done.count("holdings_removed")) == (6, 2)
    assert done.count("links") == len(world.stored())


def test_a_bucket_that_is_not_there(database: str, s3: S3ObjectStore) -> None:
    """A bucket that is absent is an outage and not an empty registry (scenario 16)."""
    with World(database, s3, sizes=SMALL) as world:
        world.arrive(world.pushed("app", world.image("m"), 1))
        s3.bucket = "no-such-bucket"
        assert "no-such-bucket" in world.failed()
        assert len(world.holdings_of_pod()) == 1


@pytest.mark.parametrize("bytes_remain", [False, True])
def test_another_root(world: World, *, bytes_remain: bool) -> None:
    """Where nothing is below the pod's prefixes, its links are elsewhere: nothing is removed, not even doubtfully."""
    images = [world.image(f"m{n}") for n in range(3)]
    for n, image in enumerate(images):
        world.arrive(world.pushed(f"r{n}", image, n))
    gap(world)
    world.bucket.__init__()  # type: ignore[misc]
    for image in images if bytes_remain else ():
        # Another pod may have the same.
        world.store.put(blob_key(image.digest), image.body)
    assert "BALEEN_S3_ROOT" in world.failed()
    assert len(world.holdings_of_pod()) == 3
    assert (world.doubtful_removals(), open_gaps(world)) == (0, 1)


def test_an_upload_is_no_evidence_of_links(world: World) -> None:
    """Where a registry keeps its links in a database of its own, and leaves an unfinished upload in the bucket, a
    reconcile fails and removes nothing, and a doubtful removal stays.
    """
    images = [world.image(f"m{n}") for n in range(3)]
    for n, image in enumerate(images):
        world.arrive(world.pushed(f"r{n}", image, n))
    world.arrive(world.deleted("r0", images[0].digest, 1))
    gap(world)
    world.bucket.__init__()  # type: ignore[misc]
    world.store.put(f"{repository_prefix(world.name('r0'))}_uploads/0123/startedat", b"2026-01-01T00:00:00Z")
    assert "kind relay" in world.failed()
    assert len(world.holdings_of_pod()) == 3
    assert (world.doubtful_removals(), open_gaps(world)) == (1, 1)


def test_a_pod_that_was_emptied(world: World) -> None:
    """All links of a pod may be gone: other keys that a registry leaves behind prove that the root is right."""
    images = [world.image(f"m{n}") for n in range(5)]
    for n, image in enumerate(images):
        world.arrive(world.pushed(f"r{n % 2}", image, n))
    for n, image in enumerate(images):
        world.deleted(f"r{n % 2}", image.digest)
    assert world.reconcile().count("holdings_removed") == 5
    world.assert_sound()
    row = world.row("l0")
    assert (row.references, row.unreferenced) == (0, True)


def test_doubtful_removals_that_were_there(world: World) -> None:
    """Doubtful removals are resolved, also of a repository of which storage has nothing at all any more."""
    gone, kept = world.image("gone"), world.image("kept")
    world.arrive(world.pushed("vanished", gone, 1), world.deleted("vanished", gone.digest, 2))
    world.arrive(world.pushed("app", kept, 1), world.deleted("app", kept.digest, 2))
    world.pushed("app", kept, 3)
    world.store.delete(blob_key(gone.digest))
    assert world.doubtful_removals() == 2
    done = world.reconcile()
    assert world.doubtful_removals() == 0
    # What the listing did not show was resolved with that.
    assert (done.count("doubtful_removals_resolved"), done.count("holdings_removed")) == (1, 1)
    world.assert_sound()


def test_what_came_while_it_ran(world: World) -> None:
    """A holding newer than the listing is not checked, and one from the future is looked up."""
    new, future = world.image("new"), world.image("future")
    now = world.rows("SELECT now()")[0][0]

    def pushed(image_second: timedelta, name: str) -> ManifestPushed:
        return world.pushed("app", world.image(name), 1)._replace(at=now + image_second)

    world.arrive(pushed(MARGIN / 2, "new"), pushed(timedelta(days=300), "future"))
    heads: list[str] = []
    world.bucket.interrupt = lambda call, key: heads.append(key) if call == "head" else None
    world.bucket.arrange = once(lambda entries: [])
    world.reconcile()
    assert heads == [revision_link_key(world.name("app"), future.digest)]
    assert (world.name("app"), new.digest) in world.holdings_of_pod()
    world.assert_sound()


@pytest.mark.parametrize("shown", [False, True])
def test_a_push_between_the_check_and_the_lock(world: World, *, shown: bool) -> None:
    """What was gone when it was first looked up, and is pushed again before the lock is taken, stays (scenario 3)."""
    image = world.image("m")
    world.arrive(world.pushed("app", image, 1))
    world.deleted("app", image.digest, 2)
    pushes: list[ManifestPushed] = []
    heads = 0

    def push(call: str, _: str) -> None:
        nonlocal heads
        heads += call == "head"
        if call == "check" and heads == 2 and not pushes:
            pushes.append(world.pushed("app", image, 3))
            if shown:
                world.arrive(*pushes)

    world.bucket.interrupt = push
    done = world.reconcile()
    assert len(pushes) == 1
    assert (heads, done.count("holdings_removed"), world.doubtful_removals()) == (3, 0, 0)
    world.assert_sound()
    world.arrive(*pushes)
    world.assert_sound()


def test_a_push_whose_event_was_lost_outlives_an_older_delete(world: World) -> None:
    """Of push, delete and push again, only the last event is lost; the delete arrives after the reconcile."""
    image = world.image("m")
    world.arrive(world.pushed("app", image, 0))
    deleted = world.deleted("app", image.digest, 100)
    world.pushed("app", image, 101)
    world.reconcile()
    world.arrive(deleted)
    assert (world.name("app"), image.digest) in world.holdings_of_pod()
    world.reconcile()
    world.assert_sound()


def test_a_push_that_arrives_after_its_removal(world: World) -> None:
    """A late event about what a reconcile removed is doubtful, and the next reconcile removes it again."""
    image = world.image("m")
    pushed = world.pushed("app", image, 0)
    world.arrive(pushed)
    world.deleted("app", image.digest)
    world.reconcile()
    assert world.holdings_of_pod() == set()
    world.arrive(pushed)
    assert world.doubtful_removals() == 1
    world.reconcile()
    world.assert_sound()


def test_what_it_resolves(world: World) -> None:
    """Gaps from before it began are resolved with its number, and processes that died long before are retired."""
    world.pushed("app", world.image("m"), 1)
    gap(world)
    pod = world.pods[world.pod]
    add_process(world.connection, pod, "long-dead", dead_since=ago("2 hours"), dead_why="refused")
    add_process(world.connection, pod, "just-dead", dead_since=ago("10 minutes"), dead_why="refused")
    add_process(world.connection, pod, "alive")
    job = world.ask()
    world.bucket.interrupt = lambda call, key: gap(world) if call == "check" and not open_gaps(world) - 1 else None
    world.run()
    done = world.read_job(job)
    assert (done.state, done.count("gaps_resolved"), done.progress["processes_retired"]) == ("done", 1, ["long-dead"])
    assert world.rows("SELECT resolved_why FROM gaps WHERE pod_id = %s ORDER BY id", (pod,)) == [
        (f"reconcile {job}",),
        (None,),
    ]
    assert world.rows("SELECT * FROM job_repositories WHERE job_id = %s", (job,)) == []


@pytest.mark.parametrize(
    ("reason", "lose"),
    [
        ("log-cut", lambda world: progress.record_log_cut(world.connection, "registry.events")),
        ("renamed", lambda world: renames.record_rename_gaps(world.connection, {world.pods[world.pod]})),
    ],
)
def test_what_is_lost_while_it_runs(world: World, reason: str, lose: Callable[[World], object]) -> None:
    """What is lost while a reconcile runs, for the reason of an open gap, joins that gap, which stays open."""
    world.pushed("app", world.image("m"), 1)
    lose(world)
    lost: list[object] = []

    def cut(call: str, _: str) -> None:
        if call == "walk" and not lost:
            lost.append(lose(world))

    world.bucket.interrupt = cut
    assert world.reconcile().count("gaps_resolved") == 0
    assert lost
    of_reason = "SELECT count(*) FROM gaps WHERE pod_id = %s AND reason = %s"
    assert world.rows(of_reason, (world.pods[world.pod], reason)) == [(1,)]
    assert world.reconcile().count("gaps_resolved") == 1
    lose(world)
    assert world.rows(of_reason, (world.pods[world.pod], reason)) == [(2,)]
    assert open_gaps(world) == 1


def test_other_pods_are_left_alone(world: World) -> None:
    """Links and holdings of another pod are not touched, even if its prefix begins with this pod's."""
    other = f"{world.pod}x"
    world.add_pod(other)
    mine = world.image("m")
    world.arrive(world.pushed("app", mine, 1))
    held = world.push("app", "theirs", ["l9"])._replace(repository=f"{other}/app")
    insert(world.connection, "repositories", name=f"{other}/app", pod_id=world.pods[other])
    world.apply(held)
    stray = Digest(bytes(32))
    world.store.put(f"{repository_prefix(held.repository)}_manifests/revisions/sha256/{stray.hex()}/link", b"")
    assert world.reconcile().count("holdings_added") == 0
    assert world.rows(
        "SELECT count(*) FROM repository_manifests h JOIN repositories r ON r.id = h.repository_id WHERE r.pod_id = %s",
        (world.pods[other],),
    ) == [(1,)]


def gap(world: World) -> None:
    add_gap(world.connection, world.pods[world.pod])


def open_gaps(world: World) -> int:
    return len(tables.read_open_gaps(world.connection, world.pods[world.pod]))


def test_a_listing_that_is_not_whole_after_an_attempt_that_failed(world: World) -> None:
    """Links that a failed attempt listed do not count for the next one: what that one lacks is looked up."""
    known, lost = world.image("known"), world.image("lost")
    world.arrive(world.pushed("r", known, 1), world.pushed("s", world.image("other"), 1))
    world.pushed("r", lost, 2)
    gap(world)
    prefix = repository_prefix(world.name("r"))

    def fail(call: str, _: str) -> None:
        if call == "get":  # the bytes of what was listed and is not known
            world.bucket.arrange = lambda entries: [each for each in entries if not each.key.startswith(prefix)]
            raise UnavailableError("the store fails over")

    world.bucket.interrupt = fail
    assert "two listings did not show it" in world.failed()
    assert open_gaps(world) > 0
