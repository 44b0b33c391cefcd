"""Databases that are not the bucket's: restored from a backup, another one, of another bucket; and what claims it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from psycopg import sql

from coordinator.db import brakes
from coordinator.db.apply import BatchApply
from coordinator.db.batch import Item
from coordinator.domain.lifecycle import BlobState
from coordinator.errors import UnavailableError
from coordinator.gc import mark
from coordinator.ingest.topics import EVENTS
from coordinator.storage.layout import MARK
from coordinator.storage.port import ObjectNotFoundError, ObjectStore
from tests.gc.harness import LANDED, NO_TIMES, POD, Garbage


def backup(garbage: Garbage) -> Callable[[], None]:
    """Remember every row; return what brings all of them back, and no other."""
    connection = garbage.connection
    tables = [row[0] for row in garbage.rows("SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'public'")]
    names = [sql.Identifier(table) for table in tables if table != "alembic_version"]
    connection.execute("CREATE SCHEMA saved")
    for name in names:
        connection.execute(sql.SQL("CREATE TABLE saved.{} AS TABLE public.{}").format(name, name))

    def restored() -> None:
        with connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
            for name in names:
                copy = sql.SQL("INSERT INTO public.{} OVERRIDING SYSTEM VALUE SELECT * FROM saved.{}")
                connection.execute(copy.format(name, name))

    return restored


def claim(garbage: Garbage) -> mark.Claimed:
    with garbage.parts() as (connections, _, __):
        return mark.claim(connections, garbage.store, "a test", EVENTS)


def refused(garbage: Garbage, because: str) -> None:
    """A run, dry or not, refuses the bucket and does nothing."""
    before = garbage.rows("SELECT count(*) FROM gc_ledger")
    for dry in (True, False):
        run = garbage.tried(dry=dry)
        assert run.state == "failed"
        assert run.error is not None
        assert because in run.error
    assert garbage.rows("SELECT count(*) FROM gc_ledger") == before


def restored_from_backup(garbage: Garbage) -> None:
    """`l` is hidden by the table as it is brought back, and served by the bucket."""
    garbage.delete_bound = LANDED
    garbage.pushed("m", "l")
    garbage.pushed("kept", "k")
    garbage.forget("m")
    garbage.collect()
    restored = backup(garbage)
    garbage.tell("other", "l")
    garbage.restore()
    assert garbage.seen("l")
    restored()
    assert garbage.state("l") is BlobState.HIDDEN


def test_a_table_that_is_older_than_the_bucket(garbage: Garbage) -> None:
    """A hide of an older table is of bytes that are served by now, and its purge would lose them: it is refused."""
    restored_from_backup(garbage)
    refused(garbage, "older than the bucket")
    assert garbage.seen("l")


def test_what_it_would_lose(garbage: Garbage) -> None:
    """Where nothing had marked the bucket, only the look before a purge keeps what an older table would delete."""
    restored_from_backup(garbage)
    garbage.store.delete(MARK)
    garbage.connection.execute("UPDATE gc_mark SET told = 0")
    garbage.collect()
    assert garbage.seen("l")
    assert "purged" not in garbage.ledger("l")


def test_an_older_table_that_claims_the_bucket(garbage: Garbage) -> None:
    """After a claim collection is off, and what the old hides conceal is given back instead of purged."""
    restored_from_backup(garbage)
    assert claim(garbage).hides == 2
    assert "switched off" in garbage.collect().progress["held_by"][0]
    brakes.turn(garbage.connection, "all of the runbook is done", on=True)
    garbage.times = NO_TIMES._replace(grace=timedelta(hours=1))
    for _ in range(2):
        garbage.collect()
    assert garbage.seen("l")
    assert garbage.hide_of("l") is None


def test_ids_are_not_given_out_again(garbage: Garbage) -> None:
    """After a claim no hide has an id that the lost history may have given out, and every pod has a gap."""
    garbage.pushed("m", "l")
    assert claim(garbage).pods == garbage.rows("SELECT count(*) FROM pods")[0][0] > 0
    brakes.turn(garbage.connection, "all of the runbook is done", on=True)
    garbage.forget("m")
    garbage.collect()
    hide = garbage.hide_of("l")
    assert hide is not None
    assert hide.id > 1_000_000_000
    assert garbage.rows("SELECT count(*) FROM gaps WHERE settled_at IS NULL") == garbage.rows(
        "SELECT count(*) FROM pods"
    )


def test_another_database(garbage: Garbage) -> None:
    """What another database has marked is left alone, also if the mark says nothing that can be read."""
    garbage.pushed("m", "l")
    garbage.forget("m")
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
        claim(garbage)
        garbage.connection.execute("DELETE FROM gc_mark")
        brakes.turn(garbage.connection, "it is not over", on=True)
    claim(garbage)
    brakes.turn(garbage.connection, "it is gone", on=True)
    assert garbage.collect().hidden == 2


def test_another_bucket(garbage: Garbage) -> None:
    """A bucket that has lost the mark is another one, or in an older state."""
    garbage.collect()
    garbage.store.delete(MARK)
    refused(garbage, "lost the mark")


def test_a_bucket_that_was_not_told(garbage: Garbage) -> None:
    """What ended between an epoch and its mark leaves the mark behind, which nobody minds."""
    garbage.collect()
    with garbage.connection.transaction():
        garbage.connection.execute("UPDATE gc_mark SET epoch = epoch + 1")
    garbage.collect()
    with garbage.parts() as (connections, _, __):
        found = mark.find(garbage.store)
        assert found is not None
        assert garbage.rows("SELECT database::text, epoch, told FROM gc_mark") == [(*found, found.epoch)]
        mark.tell(connections, garbage.store)


def test_the_first_run(garbage: Garbage) -> None:
    """A dry run leaves no mark, the first real one does."""
    garbage.collect(dry=True)
    with pytest.raises(ObjectNotFoundError):
        garbage.store.get(MARK)
    garbage.collect()
    assert mark.find(garbage.store) is not None


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
    BatchApply(garbage.connection, timedelta()).apply_found([found])
    garbage.restore()
    restored()
    for layer in layers:
        garbage.tell(f"again-{layer}", layer)
    assert garbage.restore() == others
    refused(garbage, "older than the bucket")
    assert garbage.seen("l")


def told(garbage: Garbage) -> bool:
    """Whether the bucket knows how far the database is."""
    found = mark.find(garbage.store)
    return garbage.rows("SELECT epoch FROM gc_mark") == [(found and found.epoch,)]


def test_what_a_run_gives_back_is_told(garbage: Garbage) -> None:
    """Once a run has given something back the bucket knows: of a table from before no other run need come first."""
    garbage.pushed("m", "l")
    garbage.forget("m")
    garbage.collect()
    garbage.tell("other", "l")
    assert garbage.collect().progress["restored"] == 1
    assert told(garbage)


class Full:
    """A store that takes no mark, the first time."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.refuses = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: bytes) -> None:
        if key == MARK and self.refuses:
            self.refuses = False
            raise UnavailableError("The object store takes nothing.")
        self._store.put(key, body)


def test_a_restore_that_could_not_be_told(garbage: Garbage) -> None:
    """A bucket that could not be told of a restore is told by the next round."""
    garbage.delete_bound = LANDED
    garbage.pushed("m", "l")
    garbage.forget("m")
    garbage.collect()
    garbage.tell("other", "l")
    store: Any = Full(garbage.store)
    with garbage.parts(store) as (_, __, restorer):
        with pytest.raises(UnavailableError):
            restorer.round()
        assert garbage.seen("l")
        assert not told(garbage)
        assert restorer.round() == 0
    assert told(garbage)


class Overtaken:
    """A store that takes the mark of one process late: another restores, and has told of it, meanwhile."""

    def __init__(self, store: ObjectStore, meanwhile: Callable[[], object]) -> None:
        self._store = store
        self._meanwhile: Callable[[], object] | None = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: bytes) -> None:
        if key == MARK and self._meanwhile is not None:
            meanwhile, self._meanwhile = self._meanwhile, None
            meanwhile()
        self._store.put(key, body)


def test_a_mark_that_comes_late(garbage: Garbage) -> None:
    """Of two that tell at once the one that knows less may be the last: what the other told is not forgotten."""
    garbage.delete_bound = LANDED
    garbage.pushed("m", "l")
    garbage.pushed("n", "k")
    garbage.forget("m")
    garbage.forget("n")
    garbage.collect()
    garbage.tell("n", "k")
    restored = None

    def meanwhile() -> None:
        nonlocal restored
        restored = backup(garbage)
        garbage.tell("other", "l")
        garbage.restore()
        assert told(garbage)

    store: Any = Overtaken(garbage.store, meanwhile)
    with garbage.parts(store) as (_, __, restorer):
        restorer.round()
    assert told(garbage)
    assert restored is not None
    restored()
    refused(garbage, "older than the bucket")
    assert garbage.seen("l")
