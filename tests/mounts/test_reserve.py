"""A mount's reference in the table, with blobs in every state and garbage collection beside it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from coordinator.db.connection import Connections
from coordinator.domain.facts import BlobLinked
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import RepositoryName
from coordinator.gc import table as gc
from coordinator.jobs import table as jobs
from coordinator.mounts import table
from coordinator.mounts.table import Reservation
from coordinator.table import expiry, statements
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item, NotServedError
from tests.gc.harness import LANDED, POD, Garbage
from tests.services.databases import Databases
from tests.storage.memory import MemoryObjectStore
from tests.support.tables import value
from tests.support.wait import eventually

MARGIN = timedelta(seconds=1)
WAITS_FOR_A_LOCK = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def garbage(databases: Databases) -> Iterator[Garbage]:
    with Garbage(databases.migrated(), MemoryObjectStore(versioned=True)) as garbage:
        garbage.delete_bound = LANDED
        yield garbage


def reserve(garbage: Garbage, name: str, repository: str = "mounted", ago: timedelta = timedelta(0)) -> Reservation:
    target, source = (RepositoryName(f"{garbage.space}/{each}") for each in (repository, "r"))
    connections = Connections(garbage.url, name="test-mounts", prepare=table.prepare_connection)
    with closing(connections), connections.use() as connection:
        pod = value(connection, "SELECT min(id) FROM pods")
        moment = datetime.now(UTC) - ago
        return table.reserve_link(connection, pod, target, garbage.digest(name), source, moment, MARGIN)


def counted(garbage: Garbage, name: str) -> tuple[int, int, bool]:
    (row,) = garbage.rows(
        "SELECT reference_count, link_count, unreferenced_since IS NULL FROM blobs WHERE digest = %s",
        (garbage.digest(name),),
    )
    return row


def test_a_live_blob(garbage: Garbage) -> None:
    """A mount adds one link, however often it is repeated, and is recorded."""
    garbage.pushed("m", "l")
    assert reserve(garbage, "l").is_new
    assert not reserve(garbage, "l").is_new
    assert counted(garbage, "l") == (1, 1, True)
    shown = garbage.rows("SELECT repository, source FROM mounts")
    assert shown == [(f"{garbage.space}/mounted", f"{garbage.space}/r")] * 2


def test_a_blob_that_nothing_references(garbage: Garbage) -> None:
    """A mount makes an unreferenced blob live, and GC that has planned to hide it does not."""
    garbage.pushed("m", "l")
    garbage.forget("m")
    candidates = gc.read_candidates(garbage.connection, gc.BEGINNING, None, 10)
    assert garbage.digest("l") in {each.digest for each in candidates}
    reserve(garbage, "l")
    assert garbage.state("l") is BlobState.LIVE
    assert garbage.collect().hidden == 1
    assert garbage.is_served("l")


def test_a_blob_that_no_registry_has_reported(garbage: Garbage) -> None:
    """A mount makes a blob that the table does not know live."""
    garbage.pushed("m")
    garbage.upload("new")
    reserve(garbage, "new")
    assert counted(garbage, "new") == (0, 1, True)
    assert garbage.state("new") is BlobState.LIVE


@pytest.mark.parametrize("state", sorted(set(BlobState) - {BlobState.LIVE, BlobState.UNREFERENCED}))
def test_a_blob_that_is_not_served(garbage: Garbage, state: BlobState) -> None:
    """A mount of a blob that is not served reserves nothing and leaves nothing behind."""
    garbage.pushed("m", "l")
    needed = state is BlobState.MISSING
    if not needed:
        garbage.forget("m")
    garbage.connection.execute("UPDATE blobs SET state = %s WHERE digest = %s", (int(state), garbage.digest("l")))
    before = counted(garbage, "l")
    with pytest.raises(NotServedError, match=state.name.lower()):
        reserve(garbage, "l")
    assert counted(garbage, "l") == before
    assert garbage.state("l") is state
    assert garbage.rows("SELECT FROM repositories WHERE name = %s", (f"{garbage.space}/mounted",)) == []
    assert garbage.rows("SELECT FROM mounts") == []


def test_a_hide_that_comes_later(garbage: Garbage) -> None:
    """A mount between plan and intent voids the intent; after the intent there is no mount."""
    garbage.pushed("m", "l")
    garbage.pushed("n", "k")
    garbage.forget("m")
    garbage.forget("n")
    planned = gc.read_candidates(garbage.connection, gc.BEGINNING, None, 10)
    reserve(garbage, "l")
    garbage.ask()
    job = jobs.take_job(garbage.connection, ["gc"])
    assert job is not None
    connections = Connections(garbage.url, name="test-gc", prepare=statements.prepare_connection)
    with closing(connections), connections.use() as connection:
        intents = gc.write_intents(connection, job, planned, {})
    assert {each.digest for each in intents} == {garbage.digest(name) for name in ("m", "n", "k")}
    with pytest.raises(NotServedError):
        reserve(garbage, "k")
    assert garbage.is_served("k")


def test_given_back(garbage: Garbage) -> None:
    """The reference of a failed mount is removed, unless it was there before or was reported since."""
    garbage.pushed("m", "l")
    reserved = reserve(garbage, "l")
    again = reserve(garbage, "l")
    table.undo_reservation(garbage.connection, again)
    assert counted(garbage, "l") == (1, 1, True)
    table.undo_reservation(garbage.connection, reserved)
    assert counted(garbage, "l") == (1, 1, True), "a later mount of the same relies on it"
    other = reserve(garbage, "l", "other")
    table.undo_reservation(garbage.connection, other)
    table.undo_reservation(garbage.connection, other)
    assert counted(garbage, "l") == (1, 1, True)


def test_given_back_though_another_was_made(garbage: Garbage) -> None:
    """A failed mount keeps the reference of a later one, also by a clock that is behind."""
    garbage.pushed("m", "l")
    failed = reserve(garbage, "l")
    made = reserve(garbage, "l", ago=timedelta(seconds=1))
    assert not made.is_new
    table.undo_reservation(garbage.connection, failed)
    assert counted(garbage, "l") == (1, 1, True)
    assert garbage.rows("SELECT id FROM mounts") == [(made.mount,)]


def test_given_back_where_links_keep_blobs_and_nobody_sees_them(garbage: Garbage) -> None:
    """A link that the pod reported since, by a clock that is behind, stays."""
    garbage.pushed("m", "l")
    pod = garbage.pods[POD]
    garbage.connection.execute("UPDATE pods SET mode = 'link', kind = 'relay' WHERE id = %s", (pod,))
    failed = reserve(garbage, "l")
    behind = datetime.now(UTC) - timedelta(minutes=2)
    shown = Item(0, 0, pod, BlobLinked(failed.repository, garbage.digest("l"), behind, 7), None)
    BatchApplier(garbage.connection, MARGIN).apply_stored([shown])
    table.undo_reservation(garbage.connection, failed)
    garbage.forget("m")
    garbage.collect()
    assert garbage.collect().purged == 1, "the manifest"
    assert counted(garbage, "l") == (0, 1, True)
    assert garbage.is_served("l")


def test_a_link_that_expires_meanwhile(garbage: Garbage) -> None:
    """An existing link that expires between check and lock is made again."""
    garbage.pushed("m", "l")
    repository, ahead = RepositoryName(f"{garbage.space}/mounted"), datetime.now(UTC) + timedelta(hours=1)
    linked = Item(0, 0, garbage.pods[POD], BlobLinked(repository, garbage.digest("l"), ahead, 7), None)
    BatchApplier(garbage.connection, MARGIN).apply_stored([linked])
    garbage.connection.execute("UPDATE repository_blobs SET linked_at = now() - interval '2 days'")
    with ThreadPoolExecutor() as threads, psycopg.connect(garbage.url, autocommit=True) as beside:
        with garbage.connection.transaction():
            garbage.connection.execute("SELECT FROM blobs WHERE digest = %s FOR UPDATE", (garbage.digest("l"),))
            reserving = threads.submit(reserve, garbage, "l")
            eventually(lambda: beside.execute(WAITS_FOR_A_LOCK).fetchall())
            assert expiry.delete_expired_links(garbage.connection, timedelta(days=1)) == 1
        reserving.result()
    assert counted(garbage, "l") == (1, 1, True)
    assert garbage.rows("SELECT count(*) FROM mounts") == [(1,)]


def test_old_mounts_are_forgotten(garbage: Garbage) -> None:
    """Mounts of long ago are forgotten, those of late are not."""
    garbage.pushed("m", "l")
    reserve(garbage, "l")
    reserve(garbage, "l", "other")
    garbage.connection.execute("UPDATE mounts SET at = now() - interval '31 days' WHERE repository LIKE '%/other'")
    assert table.delete_old_mounts(garbage.connection) == 1
    assert garbage.rows("SELECT count(*) FROM mounts") == [(1,)]
