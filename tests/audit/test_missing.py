"""Needed blobs without bytes: how they are found, how they end, and what is never mistaken for one."""

import threading
from contextlib import closing
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import format_digest
from coordinator.domain.references import ManifestKind
from coordinator.errors import UnavailableError
from coordinator.reconcile.presence import Presence
from coordinator.reconcile.resolve import NotHereError
from coordinator.table import expiry
from tests.audit.harness import World
from tests.storage.memory import MemoryObjectStore
from tests.support.store import FaultyStore, from_nth

MISSING, LIVE, UNREFERENCED = BlobState.MISSING, BlobState.LIVE, BlobState.UNREFERENCED


def test_a_lost_blob_becomes_missing_once(world: World) -> None:
    """A needed blob without bytes becomes missing with one record of it; one with bytes, or not needed, does not."""
    world.needed("here")
    world.lose("lost", "given-up")
    world.apply(world.removed("app", "given-up", 9))
    for _ in range(2):
        world.presence.resolve(world.digest(name) for name in ("here", "lost", "given-up", "never-heard-of"))
        assert [world.state(name) for name in ("here", "lost", "given-up")] == [LIVE, MISSING, UNREFERENCED]
        assert world.outbox() == [
            (world.text("given-up"), "unreferenced", 0, 0),
            (world.text("lost"), "missing", 0, 1),
        ]
    assert world.check().is_healthy


def test_only_bytes_end_it(world: World) -> None:
    """A missing blob is live only once its bytes were seen, however often it is pushed, mounted and listed."""
    world.needed("here")
    world.lose("lost")
    world.presence.resolve([world.digest("lost")])
    world.apply(world.link("other", "lost", 3), world.push("app", "m", ["lost", "here"], 4))
    world.apply(world.removed("app", "lost", 5), world.link("app", "lost", 6))
    assert world.row("lost")[:3] == (1, 2, MISSING)
    assert world.presence.round() == []
    world.put("lost")
    assert [move.to for move in world.presence.round()] == [LIVE]
    assert world.outbox()[1:] == [(world.text("lost"), "live", 1, 2)]
    assert world.presence.round() == []
    assert world.check().is_healthy


def test_what_may_be_elsewhere(world: World) -> None:
    """A blob without bytes that only a pod with its own store needs is not missing, until another pod needs it."""
    world.needed("here")
    world.lose("lost", "other")
    world.presence.resolve([world.digest("other")])
    world.links_are("relay")
    assert world.presence.resolve([world.digest("lost")]) == []
    assert [move.to for move in world.presence.round()] == [LIVE]
    assert [world.state(name) for name in ("lost", "other")] == [LIVE, LIVE]
    assert world.audit().missing.count == 0
    world.links_are("link")
    assert world.audit().missing.count == 2


def test_a_digest_that_a_client_made_up(world: World) -> None:
    """A digest that only an unreadable manifest names, and that was never stored, is not missing; one that was stored,
    or that another manifest lists, is.
    """
    world.needed("here")
    world.lose("stored")
    named = world.content(["made-up", "stored", "listed"], ManifestKind.NAMED)
    named = named._replace(references=tuple(each._replace(size=None) for each in named.references))
    world.needed("odd", "image")
    world.apply(world.push("app", "odd", [])._replace(content=named, size=len(world.body("odd"))))
    assert world.presence.resolve([world.digest("made-up")]) == []
    listed = world.content(["listed"])
    world.apply(world.push("app", "image", [])._replace(content=listed, size=len(world.body("image"))))
    assert world.audit().missing.count == 2
    assert [world.state(name) for name in ("made-up", "stored", "listed")] == [LIVE, MISSING, MISSING]


def test_nobody_misses_what_nobody_needs(world: World) -> None:
    """A missing blob that loses its last reference is unreferenced, and that change is published."""
    world.needed("here")
    world.lose("lost", "expired")
    world.presence.resolve([world.digest("lost"), world.digest("expired")])
    world.apply(world.removed("app", "lost", 9))
    assert world.state("lost") is UNREFERENCED
    assert world.outbox()[2:] == [(world.text("lost"), "unreferenced", 0, 0)]
    world.connection.execute("UPDATE repository_blobs SET linked_at = now() - interval '2 days'")
    expiry.delete_expired_links(world.connection, timedelta(days=1))
    assert world.state("expired") is UNREFERENCED
    expired = [(world.text(name), "unreferenced", 0, 0) for name in ("here", "expired")]
    assert sorted(world.outbox()[3:]) == sorted(expired)
    assert world.presence.round() == []
    world.link_blob("lost", 20)
    assert world.state("lost") is LIVE
    assert world.check().is_healthy


def test_a_removal_and_an_addition_at_once(world: World) -> None:
    """A missing blob that loses one reference and gains another in one batch stays missing, without another record."""
    world.needed("here")
    world.lose("lost")
    world.presence.resolve([world.digest("lost")])
    world.apply(world.removed("app", "lost", 5), world.link("b", "lost", 6))
    assert world.state("lost") is MISSING
    assert len(world.outbox()) == 1


def test_an_outage_is_not_a_loss(world: World) -> None:
    """A store that answers with an error, at the first look or the second, makes nothing missing (scenario 16)."""
    world.needed("here")
    world.lose("lost")
    for answers in range(4):
        store = FaultyStore(world.store)
        store.fail(nth=from_nth(answers + 1))
        with closing(Presence(world.connections, store)) as checking, pytest.raises(UnavailableError):
            checking.resolve([world.digest("lost")])
        assert world.state("lost") is LIVE
    assert world.outbox() == []


def test_another_bucket_is_not_a_loss(world: World) -> None:
    """Where nothing is that the table needs, nothing becomes missing: the bucket or its root is probably wrong."""
    world.needed("here")
    world.lose("lost")
    elsewhere = MemoryObjectStore()
    elsewhere.put("docker/registry/v2/blobs/sha256/00/other", b"another registry's")
    wrong = pytest.raises(NotHereError, match="Check BALEEN_S3_BUCKET")
    with closing(Presence(world.connections, elsewhere)) as checking, wrong:
        checking.resolve([world.digest("lost"), world.digest("here")])
    assert [world.state(name) for name in ("here", "lost")] == [LIVE, LIVE]


def test_a_check_is_repeated_with_the_facts_locked(world: World) -> None:
    """A blob that only the second check finds, at which all writers are locked out, is not missing."""
    world.needed("here")
    world.lose("late", "lost")
    alone: list[bool] = []

    def arrive() -> None:
        alone.append(world.writers_are_out())
        if alone[-1]:
            world.put("late")

    store = FaultyStore(world.store)
    store.before("head", arrive, key=world.key("late"))
    wanted = [world.digest("late"), world.digest("lost")]
    with closing(Presence(world.connections, store)) as checking:
        assert checking.head_blobs(wanted) == dict.fromkeys(wanted)
        checking.resolve(wanted)
    assert alone[0] is False
    assert alone[-1] is True
    assert [world.state(name) for name in ("late", "lost")] == [LIVE, MISSING]


def test_a_push_waits_for_the_check(world: World) -> None:
    """A push during a check waits for it, and is applied to the missing blob."""
    world.needed("here")
    world.lose("lost")
    pushing: list[threading.Thread] = []
    with World(world.url, world.store, empty=False) as other:
        other.space = world.space

        def begin_push() -> None:
            if world.writers_are_out() and not pushing:
                push = other.link("b", "lost", 3)
                pushing.append(threading.Thread(target=other.apply, args=(push,), kwargs={"partition": 1}))
                pushing[0].start()

        store = FaultyStore(world.store)
        store.before("head", begin_push, key=world.key("lost"))
        with closing(Presence(world.connections, store)) as checking:
            checking.resolve([world.digest("lost")])
        pushing[0].join(20)
    assert world.row("lost")[:3] == (0, 2, MISSING)
    assert world.check().is_healthy


def test_manifests_that_could_not_be_read(world: World) -> None:
    """A held manifest without bytes is found by the next round; one that is only unread is not missing."""
    world.needed("here")
    world.put("unread")
    world.apply(world.push("app", "lost", None), world.push("app", "unread", None))
    assert [format_digest(move.blob.digest) for move in world.presence.round()] == [world.text("lost")]
    assert [world.state(name) for name in ("lost", "unread")] == [MISSING, LIVE]
    assert world.outbox() == [(world.text("lost"), "missing", 1, 0)]


def test_rounds_are_bounded(world: World) -> None:
    """A round checks a bounded number of blobs, and each gets its turn, however many stay missing."""
    checking = Presence(world.connections, world.store, batch=2, per_round=2)
    names = [f"lost{n}" for n in range(5)]
    world.needed("here")
    world.lose(*names)
    checking.resolve(world.digest(name) for name in names)
    world.put("lost4")
    assert [len(checking.round()) for _ in range(3)] == [0, 0, 1]
    world.put("lost0")
    assert len(checking.round()) == 1
    checking.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["push", "remove", "mount", "put", "lose", "look", "round"]), st.integers(0, 2)),
    max_size=25,
)


def take(world: World, step: str, name: str, second: int) -> None:
    if step in {"push", "put"}:
        world.put(name)
    if step == "push":
        world.link_blob(name, second)
    elif step == "mount":
        world.apply(world.link("other", name, second))
    elif step == "remove":
        world.apply(world.removed("app", name, second), world.removed("other", name, second))
    elif step == "lose":
        world.store.delete(world.key(name))
    elif step == "look":
        world.presence.resolve([world.digest(name)])
    elif step == "round":
        world.presence.round()


@settings(max_examples=25, database=None)
@given(steps=STEPS)
def test_whatever_happens_in_whatever_order(database: str, steps: list[tuple[str, int]]) -> None:
    """After a check of all blobs exactly the needed ones without bytes are missing, and each change has one record."""
    with World(database, MemoryObjectStore()) as world:
        world.needed("here")
        names = [f"b{n}" for n in range(3)]
        digests = [world.digest(name) for name in names]
        for second, (step, number) in enumerate(steps, 1):
            take(world, step, names[number], second)
        world.presence.resolve(digests)
        world.presence.round()
        for name in names:
            row = world.blob(name)
            if row is not None:
                needed = row.references + row.links > 0
                there = world.store.head(world.key(name)) is not None
                assert row.state is ((LIVE if there else MISSING) if needed else UNREFERENCED)
        for name in names:
            shown = [change for digest, change, _, _ in world.outbox() if digest == world.text(name)]
            # It was live at first, and each record is a change.
            assert all(before != after for before, after in pairwise(["live", *shown]))
            row = world.blob(name)
            assert row is None or ["live", *shown][-1] == row.state.name.lower()
        assert world.check().is_healthy
