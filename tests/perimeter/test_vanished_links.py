"""Attempt 3: links that vanish without a delete event are listed, and block GC until an operator accepts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from coordinator.db.engine import temporary_engine
from coordinator.db.session import read_connection
from coordinator.domain.names import Digest, PodName, RepositoryName, format_digest
from coordinator.domain.own import PROBE_REPOSITORY
from coordinator.errors import NotFoundError, UsageError
from coordinator.pods import view as queries
from coordinator.pods.shapes import VanishedLink
from coordinator.pods.vanished_view import read_vanished_page as list_of_vanished
from coordinator.storage.layout import layer_link_key
from coordinator.table import vanished_links
from coordinator.table.vanished_links import AcceptResult
from tests.reconcile.harness import Image, World


@pytest.fixture
def world(database: str) -> Iterator[World]:
    with World(database) as world:
        world.arrive(world.pushed("witness", world.image("witness", ["w"]), 1))
        yield world


def ask(world: World, work: Callable[[Any], Any]) -> Any:
    with temporary_engine(world.url, name="test") as engine:
        return work(engine)


def blocked_by(world: World) -> list[str]:
    """What blocks collection because of links that vanished."""

    def asked(engine: Any) -> list[str]:
        with read_connection(engine) as connection:
            pod_states = queries.read_pod_states(connection, timedelta(minutes=1), timedelta(hours=1))
            return pod_states[world.pod].describe_blocks(world.pod)

    return [reason for reason in ask(world, asked) if "vanished" in reason]


def listed(world: World, repository: RepositoryName | None = None, limit: int = 100) -> list[VanishedLink]:
    found: list[VanishedLink] = []
    cursor = None
    while True:
        page = ask(
            world,
            lambda engine, cursor=cursor: list_of_vanished(
                engine, PodName(world.pod), repository=repository, cursor=cursor, limit=limit
            ),
        )
        found += page.items
        cursor = page.next
        if cursor is None:
            return found


def accept(world: World, repository: RepositoryName | None = None, **limits: int) -> AcceptResult:
    accepted: AcceptResult = ask(
        world,
        lambda engine: vanished_links.accept_vanished(
            engine, PodName(world.pod), "we cleaned up", "ann", repository, **limits
        ),
    )
    return accepted


def unreferenced_since(world: World, digest: Digest) -> Any:
    ((since,),) = world.rows("SELECT unreferenced_since FROM blobs WHERE digest = %s", (digest,))
    return since


def lost(world: World, second: float = 1) -> Image:
    """An image that was pushed, and whose link was gone when a reconcile looked."""
    image = world.image("m")
    world.arrive(world.pushed("app", image, second))
    world.remove_link("app", image.digest)
    assert world.reconcile().count("holdings_removed") == 1
    return image


def test_a_link_that_vanished_blocks_collection_until_it_is_accepted(world: World) -> None:
    """It is no longer counted but listed; its acceptance, with who and why, starts the grace of what it needed."""
    image = lost(world)
    (reason,) = blocked_by(world)
    assert reason.startswith(
        f"1 link vanished without a delete event ({world.name('app')}@{format_digest(image.digest)})"
    )
    assert f"baleen pods accept-vanished {world.pod} --why" in reason
    (link,) = listed(world)
    assert (link.repository, link.digest, link.kind) == (world.name("app"), format_digest(image.digest), "manifest")
    before = unreferenced_since(world, image.layers[0])
    assert accept(world)[:2] == (1, False)
    assert (blocked_by(world), listed(world)) == ([], [])
    ((now,),) = world.rows("SELECT clock_timestamp()")
    for digest in (image.digest, *image.layers):
        assert before < unreferenced_since(world, digest) < now
    ((decision, why, evidence),) = world.rows(
        "SELECT decision, why, evidence FROM gc_ledger WHERE digest = %s", (image.digest,)
    )
    assert (decision, why) == ("accepted", "we cleaned up")
    assert (evidence["by"], evidence["pod"], evidence["repository"]) == ("ann", world.pod, world.name("app"))
    # A replay of its push is a doubtful holding, is checked, and raises no second alarm.
    replayed = world.pushed("app", image, 1)
    world.remove_link("app", image.digest)
    world.arrive(replayed)
    world.resolve_all()
    assert blocked_by(world) == []
    world.assert_sound()


def test_a_push_ends_the_alarm(world: World) -> None:
    """A new push ends the alarm; if the link vanishes once more, that is another alarm."""
    image = lost(world)
    world.arrive(world.pushed("app", image, 10.0**9))
    assert blocked_by(world) == []
    world.assert_sound()
    world.remove_link("app", image.digest)
    world.reconcile()
    # Its push has a time in the future, so storage decides.
    assert len(blocked_by(world)) == 1


def test_a_link_that_a_listing_finds_again_ends_the_alarm(world: World) -> None:
    """A link that exists again without an event is found by the next reconcile, which ends the alarm."""
    image = lost(world)
    world.pushed("app", image, 2)
    assert world.reconcile().count("holdings_added") == 1
    world.resolve_all()
    assert blocked_by(world) == []
    world.assert_sound()


@pytest.mark.parametrize(("second", "alarms"), [(5, 0), (60, 0), (-60, 1)])
def test_a_delete_event_that_comes_later_explains_it(world: World, second: float, alarms: int) -> None:
    """A delete event that was still queued ends the alarm; one from before the push does not."""
    image = lost(world)
    world.arrive(world.deleted("app", image.digest, 1 + second))
    assert len(blocked_by(world)) == alarms
    world.resolve_all()
    assert len(blocked_by(world)) == alarms
    world.assert_sound()


def test_what_an_event_has_reported_has_not_vanished(world: World) -> None:
    """A delete that was reported, and is confirmed by a reconcile, raises no alarm."""
    image = world.image("m")
    world.arrive(world.pushed("app", image, 1))
    world.arrive(world.deleted("app", image.digest, 5))
    assert world.reconcile().count("holdings_removed") == 1
    assert blocked_by(world) == []


@pytest.mark.parametrize("mode", ["manifest", "link"])
def test_a_layer_link_counts_in_pods_of_mode_link(database: str, mode: str) -> None:
    """A vanished blob link is an alarm only in pods of mode link; elsewhere such links expire anyway."""
    with World(database, mode=mode) as world:
        world.arrive(world.pushed("witness", world.image("witness"), 1))
        world.arrive(world.uploaded("app", "l", 1))
        world.store.delete(layer_link_key(world.name("app"), world.digest("l")))
        world.reconcile()
        assert [each.kind for each in listed(world)] == (["blob"] if mode == "link" else [])
        assert len(blocked_by(world)) == (mode == "link")


def test_what_baleen_itself_removes_is_no_alarm(world: World) -> None:
    """Probe images and images of the doctor that vanish raise no alarm."""
    for name in (PROBE_REPOSITORY, "baleen-doctor-0123456789abcdef"):
        image = world.image(name)
        world.arrive(world.pushed(name, image, 1))
        world.remove_link(name, image.digest)
    assert world.reconcile().count("holdings_removed") == 2
    assert blocked_by(world) == []


def test_of_an_unmanaged_registry_the_listing_is_the_truth(world: World) -> None:
    """Links of an unmanaged registry that vanish raise no alarm: it sends no events."""
    world.rows(
        "UPDATE pods SET managed = false, unmanaged_why = 'x', unmanaged_by = 'y' WHERE name = %s RETURNING 1",
        (world.pod,),
    )
    lost(world)
    assert blocked_by(world) == []


def test_pages_and_repositories(world: World) -> None:
    """Vanished links are listed by page and accepted all together, or for one repository alone."""
    images = [world.image(f"m{number}") for number in range(7)]
    for repository in ("app", "other"):
        world.arrive(*(world.pushed(repository, image, 1) for image in images))
        for image in images:
            world.remove_link(repository, image.digest)
    world.reconcile()
    assert len(listed(world, limit=3)) == 14
    assert len(listed(world, world.name("app"), limit=7)) == 7
    assert blocked_by(world)[0].startswith("14 links vanished without a delete event (")
    assert accept(world, world.name("app")).accepted == 7
    assert {each.repository for each in listed(world)} == {world.name("other")}
    assert accept(world).accepted == 7
    assert blocked_by(world) == []


def test_acceptance_goes_in_batches(world: World) -> None:
    """A call accepts a bounded number and reports that there are more; links that vanished after it began stay."""
    images = [world.image(f"m{number}") for number in range(5)]
    world.arrive(*(world.pushed("app", image, 1) for image in images))
    for image in images:
        world.remove_link("app", image.digest)
    world.reconcile()
    first = accept(world, batch=2, call_limit=4)
    assert first[:2] == (4, True)
    assert accept(world, batch=2, call_limit=4)[:2] == (1, False)
    before = first.before - timedelta(hours=1)
    assert (
        ask(
            world, lambda engine: vanished_links.accept_vanished(engine, PodName(world.pod), "w", "b", None, before)
        ).accepted
        == 0
    )


def test_an_acceptance_says_who_and_why(world: World) -> None:
    """Without a reason, without a name, or of a pod that is not there, nothing is accepted."""
    for why, by in ((" ", "ann"), ("why", "")):
        with pytest.raises(UsageError):
            ask(
                world,
                lambda engine, why=why, by=by: vanished_links.accept_vanished(engine, PodName(world.pod), why, by),
            )
    with pytest.raises(NotFoundError):
        ask(world, lambda engine: vanished_links.accept_vanished(engine, PodName("nobody"), "why", "ann"))


def test_a_child_whose_link_vanished_is_an_alarm_too(world: World) -> None:
    """The index keeps what the child lists, and the vanished link is listed all the same."""
    x, y = world.image("x"), world.image("y", ["l2"])
    index = world.index(x.digest, y.digest)
    world.arrive(*(world.pushed("app", image, 1) for image in (x, y, index)))
    world.remove_link("app", x.digest)
    world.reconcile()
    assert [each.digest for each in listed(world)] == [format_digest(x.digest)]
    assert unreferenced_since(world, x.layers[0]) is None
    # When the index vanishes as well, so does what it kept; what is accepted then is dated through its children.
    world.remove_link("app", index.digest)
    world.reconcile()
    before = unreferenced_since(world, x.layers[0])
    assert before is not None
    assert accept(world, world.name("app")).accepted == 2
    assert unreferenced_since(world, x.layers[0]) > before
    world.assert_sound()
