"""Measure the time from a posted event to its visible count, with the worker at half of its maximum load.

The load goes to Kafka directly, from a process of its own (paced.py): on a small machine that many posts would be a
measurement of uvicorn. The probes are posted over HTTP as a registry's are, at fixed times, and the table is asked
every 5 ms until it has the manifest: to ask each millisecond took a third of a core from what is measured.
"""

import time
from datetime import UTC, datetime
from typing import Any

import psycopg

from bench import client, events
from bench.cpu import Meter
from bench.run import Context, print_progress
from bench.services import BrokerKind, Database
from bench.throughput import measure_one, wait_applied
from bench.webhook import make_push_request
from bench.workload import Manifest, make_manifests
from coordinator.stack.process import ManagedProcess

POLL_S = 0.005
PROBES_PER_S = 20.0
WARM_UP_S = 2.0
"""Seconds between the start of the load and the first probe."""

SPARE_S = 2.0
"""Seconds that the load continues after the last probe."""

GIVE_UP_S = 30.0
START_S = 120.0


def measure(context: Context) -> dict[str, Any]:
    return {kind: _measure_at_half_load(context, kind) for kind in context.brokers()}


def _measure_at_half_load(context: Context, kind: BrokerKind) -> dict[str, Any]:
    known = context.results.get("throughput", {}).get(f"{kind}_8_partitions")
    if known is None:
        known = measure_one(context, kind, 8, context.count(50_000, quick=5000))
    rate = known["manifests_per_s"] / 2
    seconds = context.seconds(30.0, quick=2.0)
    services = context.services
    with (
        services.database() as database,
        services.broker(kind, 8, database) as broker,
        services.worker(database, broker, 8) as worker,
        services.api(database, broker) as url,
    ):
        wait_applied(database, worker, events.publish_records(broker.bootstrap, context.records(1000)))
        arguments = [broker.bootstrap, str(rate), str(seconds + WARM_UP_S + SPARE_S), str(context.seed + 1)]
        with services.program("paced", "bench.paced", arguments) as load:
            _wait_sending(load)
            time.sleep(WARM_UP_S)
            probes = list(make_manifests(context.seed + 2, int(PROBES_PER_S * seconds)))
            pids = {"worker": worker.pid, "postgres": services.postgres_pid, "broker": broker.pid, "load": load.pid}
            meter = Meter(pids)
            taken = _post_probes(database, url, probes)
            cores = meter.cores()
            still = load.is_alive()
    found: dict[str, Any] = {"load_manifests_per_s": round(rate), "probes": len(taken), **client.summarise_times(taken)}
    # Otherwise the last probes would see less load, and look better than they are.
    found["load_lasted"] = still
    found["cores"] = cores
    found["max_ms"] = round(max(taken) * 1000, 1)
    print_progress(f"{kind}: {found}")
    return found


def _post_probes(database: Database, url: str, probes: list[Manifest]) -> list[float]:
    """Post each probe at its time, however long earlier ones take; return how long each took to be counted."""
    taken: list[float] = []
    posted: dict[bytes, float] = {}
    start = time.perf_counter()
    due = [(start + number / PROBES_PER_S, manifest) for number, manifest in enumerate(probes)]
    due.reverse()
    with (
        client.Connection(url) as connection,
        psycopg.connect(database.url, autocommit=True, connect_timeout=10) as table,
    ):
        while due or posted:
            if due and time.perf_counter() >= due[-1][0]:
                _, manifest = due.pop()
                made = make_push_request(database, manifest, datetime.now(UTC))
                posted[manifest.digest] = time.perf_counter()
                client.time_request(connection, made, 202)
            # One query for all: a query for each would be a load that no registry makes.
            counted = table.execute(
                "SELECT digest FROM blobs WHERE digest = ANY(%b)", [list(posted)], prepare=True
            ).fetchall()
            now = time.perf_counter()
            taken += [now - posted.pop(digest) for (digest,) in counted]
            if posted and now - next(iter(posted.values())) > GIVE_UP_S:
                raise AssertionError(f"An event was not counted within {GIVE_UP_S:.0f} s: the load is too high.")
            time.sleep(POLL_S)
    return taken


def _wait_sending(load: ManagedProcess) -> None:
    deadline = time.monotonic() + START_S
    while "sending" not in load.log_tail():
        if not load.is_alive() or time.monotonic() > deadline:
            raise RuntimeError(f"The load did not begin: {load.log_tail()}")
        time.sleep(0.05)
