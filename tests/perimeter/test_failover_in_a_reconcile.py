"""Attempt 8: a database that lost what it had acknowledged, as after a failover, ends no reconcile as done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from coordinator.reconcile.sizes import Sizes
from coordinator.table import statements
from tests.reconcile.harness import World
from tests.services.databases import Databases
from tests.support.tables import add_gap, read_open_gaps


@pytest.fixture
def world(databases: Databases) -> Iterator[World]:
    with World(databases.migrated()) as world:
        yield world


def lose_parts(world: World) -> None:
    """Lose all that the parts have written, and that they are done."""
    held = world.rows("DELETE FROM repository_manifests RETURNING manifest_id")
    statements.count_rows(world.connection, [row[0] for row in held], by=-1)
    world.connection.execute("UPDATE job_parts SET done_at = NULL WHERE done_at IS NOT NULL")


def lose_plan(world: World) -> None:
    world.connection.execute("DELETE FROM job_parts")


def lose_job(world: World) -> None:
    """Let the job be taken fewer times than it was."""
    world.connection.execute("UPDATE jobs SET taken = taken - 1 WHERE state = 'running'")


def once_a_part_is_done(world: World, lose: Callable[[World], None]) -> Callable[[str, str], None]:
    """Lose it when the first part is done, and another is listed."""
    lost = False

    def interrupt(call: str, _: str) -> None:
        nonlocal lost
        if call == "walk" and not lost and world.rows("SELECT FROM job_parts WHERE done_at IS NOT NULL"):
            lost = True
            lose(world)

    return interrupt


@pytest.mark.parametrize("lose", [lose_parts, lose_plan, lose_job])
def test_what_is_lost_meanwhile_is_not_done(world: World, lose: Callable[[World], None]) -> None:
    """The gap stays open until a reconcile, whose parts the database has, is done: then nothing is missing."""
    world.sizes = Sizes(parts_at_once=1)
    for number, repository in enumerate(("a", "b", "c")):
        world.pushed(repository, world.image(f"m{number}"), 1)
    add_gap(world.connection, world.pods[world.pod])
    world.bucket.interrupt = once_a_part_is_done(world, lose)
    assert world.try_reconcile().state != "done"
    assert len(read_open_gaps(world.connection)) == 1
    # A job without a worker does not block the next one.
    world.connection.execute("UPDATE jobs SET state = 'failed', finished_at = now() WHERE state = 'running'")
    assert world.reconcile().count("gaps_resolved") == 1
    assert read_open_gaps(world.connection) == []
    world.assert_sound()


def test_what_is_lost_after_the_parts_is_not_done_either(world: World) -> None:
    """Children of indexes are added after the last part; when that was lost, the reconcile does not end as done."""
    x = world.image("x")
    world.pushed("a", x, 1)
    world.pushed("a", world.index(x.digest), 1)
    checked = 0

    def interrupt(call: str, _: str) -> None:
        nonlocal checked
        # Doubtful removals and the root are checked last.
        if call == "check":
            checked += 1
            if checked == 2:
                world.connection.execute("DELETE FROM job_parts WHERE name = ''")

    world.bucket.interrupt = interrupt
    assert "failed over, or restored" in world.failed()
    assert checked >= 2
