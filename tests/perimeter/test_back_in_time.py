"""Databases that went back in time on real servers: standbys, dumps, points in time; and buckets that were rolled back.

Each test runs garbage collection in a bucket, has the database or the bucket lose what came last, and shows that the
next run is refused, that status says so, and that a claim repairs it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.db import migrate
from coordinator.db.engine import open_engine
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import PodName, RepositoryName
from coordinator.gc import controls, mark
from coordinator.gc import table as gc
from coordinator.jobs import table as jobs
from coordinator.pods import table as pods
from coordinator.storage.layout import MARK, blob_key
from coordinator.storage.port import ObjectStore
from tests.conftest import in_memory, temporary_directory
from tests.gc.harness import LANDED, Garbage, blocked_by
from tests.services.postgres import Server, Servers, create_database, dump_database, restore_dump
from tests.storage.conftest import buckets, connect_s3, store_of
from tests.support.store import FaultyStore

__all__ = ["buckets", "connect_s3"]

pytestmark = pytest.mark.outage


@pytest.fixture
def servers() -> Iterator[Servers]:
    with temporary_directory(in_memory()) as directory, Servers(directory) as servers:
        yield servers


@pytest.fixture
def primary(servers: Servers) -> Server:
    server = servers.primary()
    migrate.upgrade(server.url)
    return server


@pytest.fixture(params=["s3", "s3-versioned"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    return store_of(request, request.param)


def beginning(url: str, store: ObjectStore) -> Garbage:
    """A table with an image that stays and one that is deleted, before any run."""
    garbage = Garbage(url, store)
    garbage.delete_bound = LANDED
    garbage.pushed("kept", "k")
    garbage.push_and_forget("m", "l")
    return garbage


def continued(garbage: Garbage, url: str) -> Garbage:
    """The same blobs, by another database."""
    other = Garbage(url, garbage.store, fresh=False)
    other.space, other._second, other._offsets = garbage.space, garbage._second, dict(garbage._offsets)
    other.delete_bound = LANDED
    return other


def refused(garbage: Garbage, words: str) -> None:
    """A run is refused for this and deletes nothing, and status says so."""
    decisions = garbage.rows("SELECT count(*) FROM gc_ledger")
    run = garbage.try_collection()
    assert run.state == "failed"
    assert words in str(run.error)
    assert garbage.rows("SELECT count(*) FROM gc_ledger") == decisions
    assert any(words in why for why in blocked_by(garbage))


def test_a_failover_in_mid_run(servers: Servers, primary: Server, store: ObjectStore) -> None:
    """Attempt 4: where a standby lost the hides of a run, GC is blocked at once, and the claim's audit serves the blob.

    The mark alone would pass: its commit was not lost.
    """
    with beginning(primary.url, store) as garbage:
        garbage.collect(dry=True)
        standby = servers.standby(primary)

        def cut() -> None:
            servers.catch_up(standby, primary)
            servers.cut_off(standby)

        begun = FaultyStore(store)
        begun.after("put", lambda: begun.before("keeps_versions", cut, nth=1), key=MARK, nth=1)
        run = garbage.collect(begun)
        assert run.hidden == 2
        servers.promote(standby)
        servers.stop(primary)
    with continued(garbage, standby.url) as after:
        # The PUT of a manifest that saw the layer just before it was hidden.
        after.upload("again")
        after.report("again", "l")
        assert after.state("l") is BlobState.LIVE
        assert not after.is_served("l")
        assert "WAL timeline 2, and was on 1" in blocked_by(after)[0]
        # The run that was under way is taken over.
        after.connection.execute("UPDATE jobs SET alive_at = NULL WHERE state = 'running'")
        after.run_waiting()
        assert after.rows("SELECT state FROM jobs WHERE id = %s", (run.id,)) == [("failed",)]
        refused(after, "WAL timeline")
        goes_on_after_a_claim(after)
        assert after.is_served("l")
        assert after.state("l") is BlobState.LIVE


def goes_on_after_a_claim(garbage: Garbage) -> None:
    """GC stays blocked until the audit, which looks at what is live, and goes on then."""
    # What tests call a size is none, and no registry of theirs has links to look at.
    garbage.connection.execute("UPDATE blobs SET size = -1")
    garbage.connection.execute("UPDATE pods SET kind = 'link'")
    garbage.claim()
    assert "is not verified" in blocked_by(garbage)[0]
    controls.set_switch(garbage.connection, "not yet", on=True)
    garbage.audit()
    assert blocked_by(garbage) == []
    garbage.collect()


def test_a_promoted_standby_that_lost_nothing(servers: Servers, primary: Server, store: ObjectStore) -> None:
    """A standby with the right mark is refused, too, at once and without reading the bucket."""
    with beginning(primary.url, store) as garbage:
        garbage.collect()
        standby = servers.standby(primary)
        servers.stop(primary)
        servers.promote(standby)
        with continued(garbage, standby.url) as after:
            assert "WAL timeline 2, and was on 1" in blocked_by(after)[0]
            refused(after, "WAL timeline")
            goes_on_after_a_claim(after)


def test_a_job_that_survives_a_failover(servers: Servers, primary: Server, store: ObjectStore) -> None:
    """A run whose connections lead to the new primary from one statement to the next deletes nothing there."""
    with beginning(primary.url, store) as garbage:
        garbage.collect(dry=True)
        number = garbage.ask()
        with garbage.parts() as (connections, _, __), connections.use() as connection:
            job = jobs.take_job(connection, {"gc"})
            assert job.id == number
            wanted = gc.read_candidates(connection, gc.BEGINNING, None, 10)
        standby = servers.standby(primary)
        servers.promote(standby)
        with continued(garbage, standby.url) as after, pytest.raises(jobs.TakenOverError):
            gc.write_intents(after.connection, job, wanted, {})
        assert after.is_served("l")


@pytest.mark.parametrize("place", ["another database", "the same database", "another server"])
def test_a_restored_dump(servers: Servers, primary: Server, store: ObjectStore, tmp_path: Path, place: str) -> None:
    """Attempts 5 and 6: a dump from before a pod was added is refused, wherever it is restored, and status says so."""
    with beginning(primary.url, store) as garbage:
        garbage.collect()
        dump_database(garbage.url, tmp_path / "dump")

        def add() -> None:
            engine = open_engine(garbage.url, pool_size=1, name="test")
            pods.add_pod(engine, pods.NewPod(name=PodName("pod-new"), prefixes=[RepositoryName("pod-new")]))
            engine.dispose()

        add()
        garbage.record()
    if place == "another database":
        url = create_database(primary, "restored")
        restore_dump(tmp_path / "dump", url)
    elif place == "the same database":
        url = primary.url
        restore_dump(tmp_path / "dump", url, "--clean")
    else:
        url = servers.primary("other").url
        restore_dump(tmp_path / "dump", url)
    with continued(garbage, url) as after:
        (why,) = blocked_by(after)
        assert ("another PostgreSQL server" if place == "another server" else "restored from a dump") in why
        refused(after, why)
        goes_on_after_a_claim(after)


@pytest.mark.parametrize("change", ["off", "pin"])
def test_files_from_before_a_change(servers: Servers, primary: Server, store: ObjectStore, change: str) -> None:
    """Attempt 7, without a new timeline: files from before `gc off` or a pin are refused: only the mark shows it.

    A copy of a server's files starts on the same timeline, as a snapshot of its volume does.
    """
    with beginning(primary.url, store) as garbage:
        garbage.collect()
    servers.stop(primary)
    files = servers.copy_of_files(primary)
    primary = servers.restart(primary)
    with continued(garbage, primary.url) as garbage:
        if change == "off":
            controls.set_switch(garbage.connection, "an incident", on=False)
        else:
            garbage.pin("l", "needed by an auditor")
        garbage.record()
    servers.stop(primary)
    with continued(garbage, servers.start_copy(files).url) as after:
        refused(after, "The database is older than the bucket")
        assert len(after.store.get(MARK)) > 0


def test_a_point_in_time(servers: Servers, primary: Server, store: ObjectStore) -> None:
    """Attempt 7: a restore to just before `gc off` and a pin is refused, and status says so at once."""
    with beginning(primary.url, store) as garbage:
        garbage.collect()
        backup = servers.base_backup(primary)
        primary.execute("SELECT pg_create_restore_point('before')")
        controls.set_switch(garbage.connection, "an incident", on=False)
        garbage.pin("l", "needed by an auditor")
    servers.stop(primary)
    with continued(garbage, servers.recover(backup, primary, "before").url) as after:
        assert controls.read_switch(after.connection).enabled
        assert after.rows("SELECT FROM pins") == []
        assert "WAL timeline" in blocked_by(after)[0]
        refused(after, "WAL timeline")


def test_a_bucket_that_was_rolled_back(primary: Server, store: ObjectStore) -> None:
    """Attempt 9: a bucket from before a run is refused; what it serves is not purged."""
    with beginning(primary.url, store) as garbage:
        with garbage.parts() as (connections, _, __):
            mark.begin_epoch(connections, store)
        names = ("kept", "k", "m", "l")
        before = {key: store.get(key) for key in (MARK, *(blob_key(garbage.digest(name)) for name in names))}
        assert garbage.collect().hidden == 2
        for key, body in before.items():
            store.put(key, body)
        assert garbage.is_served("l")
        refused(garbage, "The bucket is older than the database")
        assert garbage.is_served("l")
        with garbage.parts() as (connections, _, __):
            threads = [threading.Thread(target=mark.record_mismatch, args=(connections, store)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        refused(garbage, "The bucket is older than the database")
        goes_on_after_a_claim(garbage)
        assert garbage.is_served("l")
        assert garbage.hide_of("l") is None
