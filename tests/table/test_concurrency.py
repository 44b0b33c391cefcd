"""Workers that apply the same digests in different orders at the same time (scenario 26)."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from coordinator.db import locks
from coordinator.domain.facts import Fact
from coordinator.table import expiry
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import OutOfStepError
from tests.oracle import Oracle
from tests.support.tables import await_lock_wait
from tests.table.harness import NO_MARGIN, Table, apply_at_once, before_statements, begin, deadlocks
from tests.table.shared_digests import Shared, slices

WORKERS = 4
BATCHES = 25


@pytest.mark.lengthy
def test_no_deadlock_and_no_miscount(fresh: Table) -> None:
    """Workers that share old and new digests never deadlock, and every count is right at the end."""
    histories = [[Shared(fresh.space, n).batch(number) for number in range(BATCHES)] for n in range(WORKERS)]
    for partition in range(WORKERS):
        begin(fresh.connection, fresh.space, partition)
    before = deadlocks(fresh)
    together = threading.Barrier(WORKERS + 1)
    working = threading.Event()

    def work(partition: int) -> None:
        together.wait(10)
        with fresh.connect() as connection:
            for piece in slices(fresh, partition, histories[partition]):
                BatchApplier(connection, NO_MARGIN).apply([piece])

    def keep_house() -> int:
        """Do what housekeeping does; nothing is old enough to expire."""
        together.wait(10)
        turns = 0
        with fresh.connect() as connection:
            while not working.is_set():
                expiry.delete_expired_links(connection, timedelta(days=1))
                expiry.delete_old_removals(connection, timedelta(days=1))
                report = fresh.check()
                assert report.is_healthy, report
                turns += 1
        return turns

    with ThreadPoolExecutor(WORKERS + 1) as pool:
        workers = [pool.submit(work, partition) for partition in range(WORKERS)]
        housekeeping = pool.submit(keep_house)
        try:
            for worker in workers:
                worker.result(120)
        finally:
            working.set()
        assert housekeeping.result(60) > 0
    assert deadlocks(fresh) == before
    oracle = Oracle()
    for history in histories:
        oracle.take(event for batch in history for event in batch)
    fresh.assert_equals(oracle)
    assert fresh.check().is_healthy


def test_a_batch_that_always_collides(table: Table) -> None:
    """A batch whose new blobs other writers keep inserting first is applied alone in the end."""
    names = [f"n{number}" for number in range(20)]
    spoiled: list[str] = []
    other = table.connect()

    def spoil(statement: str) -> None:
        """Insert a blob, as another fast writer would, between the look-up of each attempt and its insert."""
        if "nextval('blobs_id_seq')" not in statement:
            return
        with other.transaction():
            free = "SELECT pg_try_advisory_xact_lock_shared(%s)"
            if len(spoiled) < len(names) - 1 and other.execute(free, (locks.FACTS_LOCK,)).fetchone() == (True,):
                name = names[len(spoiled)]
                spoiled.append(name)
                other.execute(
                    "INSERT INTO blobs (size, reference_count, link_count, state, digest, unreferenced_since)"
                    " VALUES (-1, 0, 0, 1, %s, now())",
                    (table.digest(name),),
                )

    with before_statements(table.connection, spoil):
        table.apply(*[table.link("r", name) for name in names])
    other.close()
    assert 0 < len(spoiled) < len(names)
    assert len(table.links()) == len(names)
    assert table.check().is_healthy


@pytest.mark.lengthy
def test_lists_that_grow_while_others_write(fresh: Table) -> None:
    """Every count is right after workers have pushed and deleted manifests whose lists became known meanwhile."""
    manifests = {f"m{number}": [f"b{number}", f"b{number + 1}", "all"] for number in range(6)}
    histories: list[list[list[Fact]]] = []
    held: set[tuple[str, str]] = set()
    for partition in range(WORKERS):
        chance = random.Random(partition)
        history: list[list[Fact]] = []
        for second in range(30):
            batch: list[Fact] = []
            for _ in range(4):
                repository, manifest = f"{partition}/{chance.randrange(3)}", chance.choice(sorted(manifests))
                pair = (fresh.repository(repository), fresh.text(manifest))
                if pair in held and chance.random() < 0.4:
                    batch.append(fresh.removed(repository, manifest, second + 0.9))
                    held.discard(pair)
                    break
                known = chance.choice([None, manifests[manifest][:1], manifests[manifest][1:], manifests[manifest]])
                batch.append(fresh.push(repository, manifest, known, second))
                held.add(pair)
            history.append(batch)
        histories.append(history)
    apply_at_once(fresh, histories)
    assert fresh.holdings() == held
    for blob in {blob for listed in manifests.values() for blob in listed}:
        row = fresh.row(blob)
        needs = sum(blob in manifests[name] for _, digest in held for name in manifests if fresh.text(name) == digest)
        assert row.references == needs
    assert fresh.check().is_healthy


def test_a_partition_that_another_worker_has(table: Table) -> None:
    """A worker waits for another one that applies to the same partition, and is then out of step."""
    piece = table.slice([None])
    with ThreadPoolExecutor(1) as pool, table.connect() as other, table.connect() as watcher:
        with other.transaction():
            other.execute("SELECT FROM partition_progress WHERE topic = %s FOR UPDATE", (table.space,))
            done = pool.submit(table.apply_slices, [piece])
            assert await_lock_wait(watcher, done, "transactionid")
            other.execute("UPDATE partition_progress SET next_offset = 1 WHERE topic = %s", (table.space,))
        with pytest.raises(OutOfStepError):
            done.result(30)


@pytest.mark.parametrize("kind", ["removed", "renamed", "widened"])
def test_alone(table: Table, kind: str) -> None:
    """A fact about a whole repository or a known list waits for all writers, and is then applied."""
    table.apply(table.push("a", "m", ["c"], 1))
    fact: Fact = table.push("b", "m", ["c", "more"], 2)
    if kind == "removed":
        fact = table.emptied("a", 5)
    elif kind == "renamed":
        fact = table.renamed("a", "z", 5)
    with ThreadPoolExecutor(1) as pool, table.connect() as other, table.connect() as watcher:
        with other.transaction():
            locks.lock_facts(other)
            done = pool.submit(table.apply, fact)
            assert await_lock_wait(watcher, done, "advisory")
        done.result(30)
    assert [table.holds(name, "m") for name in "abz"] == {
        "removed": [False, False, False],
        "renamed": [False, False, True],
        "widened": [True, True, False],
    }[kind]
    assert table.check().is_healthy


def test_new_digests_in_any_order(fresh: Table) -> None:
    """Workers that insert the same new blobs, manifests and repositories in different orders never deadlock."""
    # Rows come so slowly that the workers' statements overlap.
    fresh.connection.execute(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END'"
    )
    for name in ("blobs", "manifests", "repositories"):
        fresh.connection.execute(f"CREATE TRIGGER t BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION slowly()")
    histories: list[list[list[Fact]]] = []
    for worker in range(WORKERS):
        chance = random.Random(worker)
        shuffled = [chance.sample(range(20), 20) for _ in range(4)]
        histories.append(
            [
                [fresh.push(f"{worker}/{batch}", f"m{batch}-{n}", [f"l{batch}-{n}", f"c{batch}-{n}"]) for n in numbers]
                for batch, numbers in enumerate(shuffled)
            ]
        )
    apply_at_once(fresh, histories)
    assert len(fresh.holdings()) == WORKERS * 4 * 20
    counts = "SELECT reference_count, count(*) FROM blobs GROUP BY 1"
    assert fresh.rows(counts) == [(WORKERS, 4 * 20 * 3)]
    assert fresh.check().is_healthy
