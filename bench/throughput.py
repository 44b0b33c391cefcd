"""Measure how fast one worker applies the CI-like workload from Kafka to PostgreSQL, with durable commits.

The topic is filled first, then the worker is started; the time is from the first observed commit to the last. The
database alone, in the same run on the same server, shows what Kafka, Faust and JSON cost.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psycopg

from bench import events
from bench.cpu import Meter, wait_quiet
from bench.database import Loader, check_tables
from bench.run import Context, print_progress
from bench.services import BrokerKind, Database, describe_no_apache
from bench.workload import REFERENCES_PER_MANIFEST
from coordinator.kafka.topics import EVENTS
from coordinator.stack.process import ManagedProcess

POLL_S = 0.01
#: A worker that commits nothing for this long has stopped.
STALL_S = 60.0
PARTITIONS = (8, 4)


def measure(context: Context) -> dict[str, Any]:
    count = context.count(200_000, quick=10_000)
    found: dict[str, Any] = {"database_alone": measure_database(context, count)}
    found["record_bytes"] = round(sum(len(r.value) + len(r.key) for r in context.records(1000)) / 1000)
    if (reason := describe_no_apache()) is not None:
        found["apache_skipped"] = reason
    for kind in context.brokers():
        for partitions in PARTITIONS[:1] if context.quick else PARTITIONS:
            name = f"{kind}_{partitions}_partitions"
            found[name] = measure_one(context, kind, partitions, count)
            of_alone = found[name]["references_per_s"] / found["database_alone"]["references_per_s"]
            found[name]["of_database_alone"] = round(of_alone, 2)
    return found


def measure_database(context: Context, count: int) -> dict[str, Any]:
    with context.services.database() as database, Loader(database, context.seed) as loader:
        meter = Meter({"postgres": context.services.postgres_pid})
        loaded = loader.load(count)
        cores = meter.cores()
        check_tables(loader.connection, count)
        durable = loader.connection.execute(
            "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
        ).fetchone()
    assert durable == ("on", "on"), durable
    return {
        "manifests": count,
        "manifests_per_s": round(count / loaded.seconds),
        "references_per_s": round(loaded.references_per_s),
        "client_us_per_manifest": round(loaded.cpu / count * 1e6, 1),
        "cores": cores,
    }


#: What else runs on the database while the worker works.
RunBeside = Callable[[Database], AbstractContextManager[object]]


def measure_one(
    context: Context, kind: BrokerKind, partitions: int, count: int, beside: RunBeside = lambda _: nullcontext()
) -> dict[str, Any]:
    services = context.services
    with services.database() as database, services.broker(kind, partitions, database) as broker:
        start = time.perf_counter()
        written = events.publish_records(broker.bootstrap, context.records(count))
        assert written == count
        preload = time.perf_counter() - start
        wait_quiet(broker.pid)
        with (
            psycopg.connect(database.url, autocommit=True, connect_timeout=10) as connection,
            beside(database),
        ):
            started = time.perf_counter()
            with services.worker(database, broker, partitions) as worker:
                meter = Meter({"worker": worker.pid, "postgres": services.postgres_pid, "broker": broker.pid})
                samples = _watch_progress(connection, count, worker, meter)
                cores = meter.cores()
            check_tables(connection, count)
    (first_at, first), (last_at, last) = samples[0], samples[-1]
    rate = (last - first) / (last_at - first_at)
    result = {
        "manifests": count,
        "manifests_per_s": round(rate),
        "references_per_s": round(rate * REFERENCES_PER_MANIFEST),
        "seconds": round(last_at - first_at, 2),
        "commits_seen": len(samples),
        "start_to_first_commit_s": round(first_at - started, 2),
        "cores": cores,
        "us_per_manifest": {name: round(used / rate * 1e6, 1) for name, used in cores.items()},
        "preload_records_per_s": round(count / preload),
    }
    print_progress(f"{kind}, {partitions} partitions: {result['manifests_per_s']} manifests/s")
    return result


def _watch_progress(
    connection: psycopg.Connection[Any], count: int, worker: ManagedProcess, meter: Meter
) -> list[tuple[float, int]]:
    """Poll the progress until everything is applied; return a sample for each change."""
    samples: list[tuple[float, int]] = []
    changed = time.perf_counter()
    while True:
        reached = count_applied(connection)
        now = time.perf_counter()
        if reached > (samples[-1][1] if samples else 0):
            if not samples:
                meter.start()
            samples.append((now, reached))
            changed = now
        if reached >= count:
            return samples
        _check_progress(worker, now - changed, reached)
        time.sleep(POLL_S)


def wait_applied(database: Database, worker: ManagedProcess, count: int) -> None:
    """Wait until `count` records are applied."""
    start = time.perf_counter()
    with psycopg.connect(database.url, autocommit=True, connect_timeout=10) as connection:
        while (reached := count_applied(connection)) < count:
            _check_progress(worker, time.perf_counter() - start, reached)
            time.sleep(POLL_S)


def count_applied(connection: psycopg.Connection[Any]) -> int:
    """Return how many events are applied, over all partitions."""
    row = connection.execute(
        "SELECT coalesce(sum(next_offset), 0)::bigint FROM partition_progress WHERE topic = %s",
        [EVENTS],
        prepare=True,
    ).fetchone()
    assert row is not None
    return int(row[0])


def _check_progress(worker: ManagedProcess, silent_for: float, reached: int) -> None:
    if not worker.is_alive():
        raise RuntimeError(f"The worker ended; its log ends with:\n{worker.log_tail()}")
    if silent_for > STALL_S:
        raise RuntimeError(f"The worker makes no progress at {reached}; its log ends with:\n{worker.log_tail()}")
