"""Databases that are not the bucket's: restored from a backup, another one, of another bucket; and claims."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from psycopg import OperationalError, sql

from coordinator.db.connection import Connections
from coordinator.db.engine import temporary_engine
from coordinator.db.locks import MARK_LOCK
from coordinator.domain.lifecycle import BlobState
from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import parse_registry
from coordinator.errors import UnavailableError
from coordinator.gc import controls, mark
from coordinator.gc import mark_table as table
from coordinator.gc.collect import JOB_KIND
from coordinator.jobs.work import Ending, Work, run_waiting_jobs
from coordinator.kafka.topics import EVENTS
from coordinator.pods import table as pods
from coordinator.storage.layout import MARK, MARK_COPY, blob_key, quarantine_key
from coordinator.storage.port import ObjectNotFoundError, Target
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item
from coordinator.table.epochs import advancing
from tests.gc.harness import IN_FLIGHT, LANDED, NO_TIMES, POD, Garbage, blocked_by
from tests.gc.test_asked_back import ask_back
from tests.support.store import FaultyStore, raise_unavailable

#: The columns of a table that PostgreSQL does not derive from others.
_GIVEN = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attgenerated = ''"


def backup(garbage: Garbage) -> Callable[[], None]:
    """Remember every row; return what brings all of them back, and no other."""
    connection = garbage.connection
    tables = [row[0] for row in garbage.rows("SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'public'")]
    names = [sql.Identifier(table) for table in tables if table != "alembic_version"]
    given = [
        sql.SQL(", ").join(sql.Identifier(*row) for row in garbage.rows(_GIVEN, (name.as_string(),))) for name in names
    ]
    connection.execute("CREATE SCHEMA saved")
    for name in names:
        connection.execute(sql.SQL("CREATE TABLE saved.{} AS TABLE public.{}").format(name, name))

    def restored() -> None:
        with connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
            for name, columns in zip(names, given, strict=True):
                copy = sql.SQL("INSERT INTO public.{0} ({1}) OVERRIDING SYSTEM VALUE SELECT {1} FROM saved.{0}")
                connection.execute(copy.format(name, columns))

    return restored


def refused(garbage: Garbage, because: str) -> None:
    """A run, dry or not, refuses the bucket and does nothing."""
    before = garbage.rows("SELECT count(*) FROM gc_ledger")
    for dry in (True, False):
        run = garbage.try_collection(dry=dry)
        assert run.state == "failed"
        assert because in str(run.error)
    assert garbage.rows("SELECT count(*) FROM gc_ledger") == before


def restored_from_backup(garbage: Garbage) -> None:
    """`l` is hidden by the table as it is brought back, and served by the bucket."""
    garbage.delete_bound = LANDED
    garbage.pushed("m", "l")
    garbage.pushed("kept", "k")
    garbage.forget("m")
    garbage.collect()
    restored = backup(garbage)
    garbage.report("other", "l")
    garbage.restore()
    assert garbage.is_served("l")
    restored()
    assert garbage.state("l") is BlobState.HIDDEN


def test_a_table_that_is_older_than_the_bucket(garbage: Garbage) -> None:
    """A run by an older table is refused: its hides are of bytes that may be needed again by now."""
    restored_from_backup(garbage)
    refused(garbage, "older than the bucket")
    assert garbage.is_served("l")


def test_what_it_would_lose(garbage: Garbage) -> None:
    """In a bucket without a mark the check before a purge keeps what an older table would delete."""
    restored_from_backup(garbage)
    for key in (MARK, MARK_COPY):
        garbage.store.delete(key)
    garbage.connection.execute("UPDATE gc_mark SET writing = 0, written = 0")
    garbage.collect()
    assert garbage.is_served("l")
    assert "purged" not in garbage.ledger("l")


@pytest.mark.parametrize("claimed", [False, True])
def test_a_purge_of_a_lost_history_that_lands_late(garbage: Garbage, claimed: bool) -> None:
    """A blob that is asked back after a failover keeps its bytes when a delete of the lost history lands."""
    garbage.pushed("m", "l")
    garbage.pushed("kept", "k")
    garbage.forget("m")
    garbage.collect()
    hide = garbage.hide_of("l")
    assert hide is not None
    # A purge of this hide was permitted and sent; the standby that goes on has its hide alone.
    late = [Target(blob_key(hide.digest), each.version) for each in hide.versions] or [
        Target(quarantine_key(hide.digest, hide.id))
    ]
    garbage.connection.execute("UPDATE gc_mark SET instance = '1/1/1/1'")
    if claimed:
        with garbage.parts() as (connections, _, __):
            mark.claim_bucket(connections, garbage.store, "a test", EVENTS, IN_FLIGHT)
    assert ask_back(garbage, "l") is BlobState.HIDDEN
    garbage.restore()
    assert garbage.is_served("l")
    garbage.store.delete_many(late, lambda: None)
    assert garbage.is_served("l")


def test_an_older_table_that_claims_the_bucket(garbage: Garbage) -> None:
    """After a claim GC is off, and the blobs of old hides are restored instead of purged."""
    restored_from_backup(garbage)
    assert garbage.claim().hides == 2
    assert "switched off" in garbage.collect().progress["blocked_by"][0]
    garbage.audit()
    controls.set_switch(garbage.connection, "all of the runbook is done", on=True)
    garbage.times = NO_TIMES._replace(grace=timedelta(hours=1))
    for _ in range(2):
        garbage.collect()
    assert garbage.is_served("l")
    assert garbage.hide_of("l") is None


def test_ids_are_not_given_out_again(garbage: Garbage) -> None:
    """After a claim no hide has an id that the lost history may have given out, and every pod has a gap."""
    garbage.pushed("m", "l")
    assert garbage.claim().pods == garbage.rows("SELECT count(*) FROM pods")[0][0] > 0
    garbage.audit()
    controls.set_switch(garbage.connection, "all of the runbook is done", on=True)
    garbage.forget("m")
    garbage.collect()
    assert garbage.hide_of("l").id > 1_000_000_000
    assert garbage.rows("SELECT count(*) FROM gaps") == garbage.rows("SELECT count(*) FROM pods")


def test_another_database(garbage: Garbage) -> None:
    """A bucket that another database has marked is refused, also if the mark cannot be read."""
    garbage.push_and_forget("m", "l")
    garbage.connection.execute("DELETE FROM gc_mark")
    for body in (
        b'{"database": "7d0c6a52-7d0e-4d1b-8a0a-8a7f4d1a7f11", "epoch": 0}',
        b"{}",
        b"",
        b"[" * 1000,
        b'{"database": "x", "epoch": Infinity}',
        b'{"database": "x", "epoch": %s}' % (b"9" * 900),
        b'{"database": "x", "epoch": 9223372036854775807}',
        bytes(5000),
    ):
        garbage.store.put(MARK, body)
        refused(garbage, "Another database")
        garbage.claim()
        garbage.connection.execute("DELETE FROM gc_mark")
        controls.set_switch(garbage.connection, "it is not over", on=True)
    garbage.claim()
    garbage.audit()
    controls.set_switch(garbage.connection, "it is gone", on=True)
    assert garbage.collect().hidden == 2


def test_a_bucket_that_was_not_reported(garbage: Garbage) -> None:
    """A process that died between an epoch and its mark causes no alarm: the next run writes the mark."""
    garbage.collect()
    with garbage.connection.transaction():
        garbage.connection.execute("UPDATE gc_mark SET epoch = epoch + 1")
    garbage.collect()
    with garbage.parts() as (connections, _, __):
        found = mark.find_mark(garbage.store)
        assert found is not None
        (row,) = garbage.rows("SELECT database::text, epoch, instance, writing, written FROM gc_mark")
        assert row == (found.database, found.epoch, str(found.instance), found.epoch, found.epoch)
        mark.write_epoch(connections, garbage.store)


def test_the_first_run(garbage: Garbage) -> None:
    """A dry run leaves no mark, the first real one does."""
    garbage.collect(dry=True)
    with pytest.raises(ObjectNotFoundError):
        garbage.store.get(MARK)
    garbage.collect()
    assert mark.find_mark(garbage.store) is not None


@pytest.mark.parametrize("others", [1, 3])
def test_restores_by_an_older_table_hide_nothing(garbage: Garbage, others: int) -> None:
    """However many restores a worker makes of an older table, the bucket's mark stays, and the run is refused."""
    layers = [f"l{number}" for number in range(others)]
    garbage.delete_bound = LANDED
    garbage.pushed("m", "l")
    for layer in layers:
        garbage.pushed(f"of-{layer}", layer)
    for name in ("m", *(f"of-{layer}" for layer in layers)):
        garbage.forget(name)
    garbage.collect()
    restored = backup(garbage)
    # Found by a reconcile, and so in no log that would be replayed.
    found = Item(0, 0, garbage.pods[POD], garbage.link("other", "l"), None)
    BatchApplier(garbage.connection, timedelta()).apply_stored([found])
    garbage.restore()
    restored()
    for layer in layers:
        garbage.report(f"again-{layer}", layer)
    assert garbage.restore() == others
    refused(garbage, "older than the bucket")
    assert garbage.is_served("l")


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_bucket_from_before_a_restore(garbage: Garbage, dies_at: int) -> None:
    """A bucket that goes back to before a restore is refused, wherever the process that restored died."""
    garbage.hidden("m", "l")
    garbage.report("other", "l")
    before = garbage.store.get(MARK)
    garbage.delete_bound = LANDED
    store = FaultyStore(garbage.store)
    store.fail("put", key=MARK, nth=dies_at)
    with pytest.raises(UnavailableError):
        garbage.restore(store)
    # A restore is not committed before the mark is written.
    needed = "SELECT FROM hides h JOIN blobs b ON b.id = h.blob_id WHERE b.unreferenced_since IS NULL"
    assert bool(garbage.rows(needed)) == (dies_at == 1)
    garbage.store.put(MARK, before)
    if dies_at == 2:
        refused(garbage, "The bucket is older")
    else:
        assert garbage.restore() == 1
    assert garbage.is_served("l")


def test_a_bucket_that_goes_back_before_the_mark_of_a_restore(garbage: Garbage) -> None:
    """A bucket that goes back between the bytes and the mark of a restore has no older mark: the restore stays open."""
    garbage.hidden("m", "l")
    garbage.report("other", "l")
    garbage.delete_bound = LANDED
    store = FaultyStore(garbage.store)
    store.before("put", lambda: garbage.store.delete(blob_key(garbage.digest("l"))), key=MARK, nth=1)
    assert garbage.restore(store) == 0
    assert not garbage.is_served("l")
    assert garbage.restore() == 1
    assert garbage.is_served("l")


@pytest.mark.parametrize("written", [MARK, MARK_COPY])
def test_a_bucket_that_goes_back_before_a_write_of_the_mark(garbage: Garbage, written: str) -> None:
    """A bucket that goes back between a comparison and the write after it is refused: the other object shows it."""
    garbage.hidden("m", "l")
    garbage.report("other", "l")
    before = {key: garbage.store.get(key) for key in (MARK, MARK_COPY)}
    garbage.restore()

    def go_back() -> None:
        for key, body in before.items():
            garbage.store.put(key, body)

    store = FaultyStore(garbage.store)
    store.before("put", go_back, key=written, nth=1)
    assert garbage.try_collection(store).state == "failed"
    refused(garbage, "The bucket is older")


#: When a replica was taken, and when it took the bucket's place: before a reconcile, while it compares, and after it.
GONE_BACK = {"in it": (0, 1), "after it": (0, 2), "to its middle": (1, 2)}


@pytest.mark.parametrize("when", GONE_BACK)
def test_a_bucket_that_goes_back_around_a_reconcile(garbage: Garbage, when: str) -> None:
    """A bucket that goes back past the begin or the end of a reconcile is refused: it may have links again."""
    garbage.collect()
    replica = dict[str, bytes]()
    taken, goes_back = GONE_BACK[when]

    def reach(moment: int) -> None:
        if moment == taken:
            replica.update((key, garbage.store.get(key)) for key in (MARK, MARK_COPY))
        if moment == goes_back:
            for key, body in replica.items():
                garbage.store.put(key, body)

    def compare(_: Work) -> Ending:
        reach(1)
        return lambda _: {}

    number = garbage.ask()
    reach(0)
    with garbage.parts() as (connections, _, __):
        runner = mark.with_mark_moved(compare, connections, garbage.store)
        run_waiting_jobs(connections, {JOB_KIND: runner}, threading.Event())
    reach(2)
    assert garbage.rows("SELECT state FROM jobs WHERE id = %s", (number,)) == [("done",)]
    refused(garbage, "The bucket is older")


@pytest.mark.parametrize("lost", [MARK, MARK_COPY])
def test_a_bucket_without_one_of_the_two(garbage: Garbage, lost: str) -> None:
    """A bucket that lacks either object of the mark is refused, and a claim writes both."""
    garbage.collect()
    garbage.store.delete(lost)
    refused(garbage, f"lost the mark {lost}")
    garbage.claim()
    garbage.audit()
    controls.set_switch(garbage.connection, "claimed", on=True)
    garbage.collect()


def is_written(garbage: Garbage) -> bool:
    """Whether the bucket knows how far the database is."""
    found = mark.find_mark(garbage.store)
    return garbage.rows("SELECT epoch FROM gc_mark") == [(found and found.epoch,)]


def test_what_a_run_gives_back_is_reported(garbage: Garbage) -> None:
    """A run that restores something writes the mark at once."""
    garbage.hidden("m", "l")
    garbage.report("other", "l")
    assert garbage.collect().progress["restored"] == 1
    assert is_written(garbage)


def test_a_restore_that_could_not_be_written(garbage: Garbage) -> None:
    """If the mark could not be written after a restore, the scheduler writes it when it looks next."""
    garbage.delete_bound = LANDED
    garbage.hidden("m", "l")
    garbage.report("other", "l")
    store = FaultyStore(garbage.store)
    store.fail("put", key=MARK, nth=2)
    with garbage.parts(store) as (connections, _, restorer):
        with pytest.raises(UnavailableError):
            restorer.round()
        assert garbage.is_served("l")
        assert not is_written(garbage)
        mark.record_mismatch(connections, garbage.store)
    assert is_written(garbage)


def test_a_mark_that_lands_late(garbage: Garbage) -> None:
    """A write whose result was not known lands after later ones: no false alarm, and the next write puts it right."""
    garbage.delete_bound = LANDED
    garbage.hidden("m", "l")
    garbage.report("other", "l")
    store, late = FaultyStore(garbage.store), list[bytes]()

    def unanswered(_: object, __: str, body: bytes) -> None:
        late.append(body)
        raise_unavailable()

    store.instead("put", unanswered, key=MARK, nth=1)
    with pytest.raises(UnavailableError):
        garbage.restore(store)
    garbage.collect()
    garbage.store.put(MARK, late[0])
    assert not is_written(garbage)
    garbage.collect()
    assert is_written(garbage)
    garbage.connection.execute("UPDATE gc_mark SET writing_since = writing_since - interval '2 hours'")
    garbage.collect()
    assert garbage.rows("SELECT written = epoch, writing_since FROM gc_mark") == [(True, None)]
    garbage.store.put(MARK, late[0])
    refused(garbage, "The bucket is older")


def test_writers_at_once(garbage: Garbage) -> None:
    """With many writers at once the bucket shows the last epoch, and no writer is refused."""
    garbage.collect()

    def change(number: int) -> None:
        connections = Connections(garbage.url, name="test-writer")
        try:
            with connections.use() as connection, advancing(connection):
                controls.put_hold(connection, RepositoryName(f"team-{number}"), "a test")
            mark.record_epoch(connections, garbage.store)
        finally:
            connections.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(24)))
    assert is_written(garbage)
    assert garbage.rows("SELECT written = epoch, writing_since FROM gc_mark") == [(True, None)]


CHANGES: dict[str, Callable[[Garbage], object]] = {
    "off": lambda garbage: controls.set_switch(garbage.connection, "a test", on=False),
    "hold": lambda garbage: garbage.hold("team"),
    "release": lambda garbage: garbage.release("team"),
    "pin": lambda garbage: garbage.pin("l"),
    "unpin": lambda garbage: garbage.unpin("l"),
    "pod": lambda garbage: by_engine(garbage, pods.add_pod, NEW_POD),
    "prefix": lambda garbage: by_engine(garbage, pods.add_prefixes, PodName("pod-a"), [RepositoryName("another")]),
    "registry": lambda garbage: by_engine(garbage, pods.set_registries, PodName("pod-a"), [REGISTRY]),
}
NEW_POD = pods.NewPod(name=PodName("pod-new"), prefixes=[RepositoryName("pod-new")])
REGISTRY = parse_registry("http://registry.test:5000")


def by_engine(garbage: Garbage, change: Callable[..., object], *arguments: object) -> None:
    with temporary_engine(garbage.url, name="test") as engine:
        change(engine, *arguments)


#: Changes that take back another one, which the backup has.
UNDONE = {"release": "hold", "unpin": "pin"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_a_backup_does_not_have(garbage: Garbage, change: str) -> None:
    """Attempts 6 and 7: of a database from before a change of pods, the switch, holds or pins the run is refused."""
    garbage.collect()
    if change in UNDONE:
        CHANGES[UNDONE[change]](garbage)
    restored = backup(garbage)
    CHANGES[change](garbage)
    garbage.record()
    restored()
    refused(garbage, "older than the bucket")


def test_a_bucket_that_went_back(garbage: Garbage) -> None:
    """Attempt 9: a bucket whose mark is earlier than one that it had is refused, and status shows it."""
    garbage.collect()
    before = garbage.store.get(MARK)
    garbage.collect()
    garbage.store.put(MARK, before)
    refused(garbage, "The bucket is older than the database")
    assert "The bucket is older" in blocked_by(garbage)[0]
    garbage.claim()
    garbage.audit()
    assert blocked_by(garbage) == []


def test_an_absurd_epoch(garbage: Garbage) -> None:
    """Attempt 13: a mark with an epoch that no database has is refused, and one claim puts a legal one in its place."""
    garbage.collect()
    found = mark.find_mark(garbage.store)
    assert found is not None
    for epoch in (2**62 - 1, 2**63, -1):
        garbage.store.put(MARK, json.dumps({"database": found.database, "epoch": epoch}).encode())
        assert garbage.try_collection().state == "failed"
    garbage.claim()
    garbage.audit()
    controls.set_switch(garbage.connection, "claimed", on=True)
    garbage.collect()
    garbage.collect()


def test_a_writer_that_sleeps(garbage: Garbage) -> None:
    """A process that is suspended while it writes the mark does not block GC: its connection is ended."""
    garbage.collect()
    with garbage.connect() as sleeper:
        sleeper.execute("SELECT pg_advisory_lock(%s)", (MARK_LOCK,))
        garbage.collect()
        with pytest.raises(OperationalError):
            sleeper.execute("SELECT 1")


def test_another_instance(garbage: Garbage) -> None:
    """A database that was promoted, restored or moved is refused; status shows it without reading the bucket."""
    garbage.collect()
    for place, words in ((1, "another PostgreSQL server"), (2, "WAL timeline"), (3, "restored from a dump")):
        garbage.connection.execute(
            "UPDATE gc_mark SET instance = (SELECT string_agg(CASE n WHEN %s THEN '77' ELSE part END, '/' ORDER BY n)"
            " FROM unnest(string_to_array(gc_instance(), '/')) WITH ORDINALITY p (part, n))",
            (place,),
        )
        assert words in blocked_by(garbage)[0]
        refused(garbage, words)
        garbage.connection.execute("UPDATE gc_mark SET instance = gc_instance()")
        garbage.collect()
        assert blocked_by(garbage) == []


def test_an_instance_that_is_not_known(garbage: Garbage) -> None:
    """While the server does not show its timeline GC is blocked, and status says what to grant."""
    garbage.connection.execute(
        "CREATE OR REPLACE FUNCTION gc_instance() RETURNS text LANGUAGE sql AS $$ SELECT '1/?/3/4' $$"
    )
    (why,) = blocked_by(garbage)
    assert "timeline" in why
    assert "grant" in why


def test_a_job_on_another_instance(garbage: Garbage) -> None:
    """A run that survives a failover does nothing on the new primary, even if that has a job with its id."""
    garbage.push_and_forget("m", "l")
    store = FaultyStore(garbage.store)
    promote = "CREATE OR REPLACE FUNCTION gc_instance() RETURNS text LANGUAGE sql AS $$ SELECT '1/2/3/4' $$"
    store.before("delete_many", lambda: garbage.connection.execute(promote))
    run = garbage.try_collection(store)
    assert run.state == "running"
    assert garbage.is_served("l")


def test_a_claim_that_is_not_verified(garbage: Garbage) -> None:
    """After a claim GC is blocked until an audit that began late enough, after all reconciles, has ended."""
    garbage.collect()
    garbage.claim()
    controls.set_switch(garbage.connection, "too early", on=True)
    assert "is not verified" in blocked_by(garbage)[0]
    garbage.push_and_forget("m", "l")
    run = garbage.try_collection()
    assert run.state == "failed"
    assert "baleen audit --repair" in str(run.error)
    garbage.connection.execute("UPDATE gc_mark SET verify_from = clock_timestamp() + interval '1 hour'")
    report = garbage.audit()
    assert report.claim is not None
    garbage.connection.execute("UPDATE gc_mark SET verify_from = clock_timestamp()")
    garbage.connection.execute("UPDATE gaps SET resolved_at = NULL WHERE pod_id = %s", (garbage.pods[POD],))
    with garbage.parts() as (connections, _, __), connections.use() as connection:
        now = garbage.rows("SELECT clock_timestamp()")[0][0]
        pending = table.end_verified_claim(connection, now, table.read_instance(connection))
        assert pending.pods == [POD]
    assert garbage.audit().claim is None
    assert blocked_by(garbage) == []
    assert garbage.collect().hidden == 2


def hidden_by_a_lost_history(garbage: Garbage) -> None:
    """An unreferenced image is hidden, and the table is restored to the time before that."""
    garbage.pushed("kept", "k")
    garbage.push_and_forget("m", "l")
    restored = backup(garbage)
    garbage.collect()
    restored()
    garbage.connection.execute("UPDATE pods SET kind = 'link'")


def test_what_a_lost_history_hid(garbage: Garbage) -> None:
    """Attempt 4: a live blob that was hidden by lost commits is served after the audit that follows a claim."""
    hidden_by_a_lost_history(garbage)
    garbage.upload("again")
    garbage.report("again", "l")
    assert garbage.state("l") is BlobState.LIVE
    assert not garbage.is_served("l")
    # The events of these tests report other sizes than the bytes have.
    garbage.connection.execute("UPDATE blobs SET size = -1")
    garbage.claim()
    assert garbage.audit().repaired.count == 1
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.LIVE


def test_what_a_lost_history_hid_and_is_needed_later(garbage: Garbage) -> None:
    """An unreferenced blob that was hidden by lost commits is restored by an audit once it is referenced again."""
    hidden_by_a_lost_history(garbage)
    garbage.claim()
    assert garbage.audit().unserved.count == 2
    garbage.upload("again")
    garbage.report("again", "l")
    assert garbage.state("l") is not BlobState.LIVE
    garbage.restore()
    assert garbage.state("l") is BlobState.MISSING
    garbage.connection.execute("UPDATE blobs SET size = -1")
    assert garbage.audit().repaired.count == 1
    assert garbage.is_served("l")
    assert garbage.state("l") is BlobState.LIVE
