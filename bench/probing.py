"""Measure the cost of probes for a registry: its processor time for each probe, including the notification.

Uses CNCF distribution on the shared layer, with its webhook at a real API. Skipped without the program
`docker-registry`. Probes follow each other as fast as they are answered; the cost is then computed for the rate of the
settings.
"""

import time
from typing import Any

import psycopg

from bench.cpu import read_cpu_seconds, wait_quiet
from bench.run import Context, print_progress
from bench.services import settings_of
from bench.workload import make_pod_names
from coordinator.compose import database as compose_database
from coordinator.pods.prober import Prober
from coordinator.settings import Settings
from coordinator.stack.distribution import find_program

WARM_UP = 20
PATIENCE_S = 120.0
_NEXT_S = 0.001


def measure(context: Context) -> dict[str, Any]:
    if find_program() is None:
        return {"skipped": "docker-registry is not installed"}
    services, count = context.services, context.count(1_000, quick=50)
    pod = make_pod_names(1)[0]
    with (
        services.database() as database,
        services.broker("embedded", 8, database) as broker,
        services.api(database, broker) as url,
        services.registry(database, pod, f"{url}/v1/events/{pod}") as (registry, process),
        psycopg.connect(database.url, autocommit=True, connect_timeout=10) as connection,
    ):
        connection.execute("UPDATE pods SET registries = ARRAY[%s] WHERE name = %s", [registry, pod])
        configured: Settings = settings_of(database, broker)
        connections = compose_database.make_connections(configured, name="bench-prober")
        prober = Prober(connections)
        try:
            _send_probes(prober, connection, WARM_UP)
            wait_quiet(process.pid)
            before, begun = read_cpu_seconds(process.pid), time.perf_counter()
            _send_probes(prober, connection, count)
            elapsed = time.perf_counter() - begun
            wait_quiet(process.pid)
            seconds = (read_cpu_seconds(process.pid) - before) / count
        finally:
            prober.close()
            connections.close()
    every = float(configured.probe_every)
    print_progress(f"{count} probes in {elapsed:.1f} s")
    return {
        "probes": count,
        "cpu_ms_per_probe": round(seconds * 1000, 2),
        "probe_every_s": every,
        "share_of_core": round(seconds / every, 6),
        "shortest_interval_for_1_percent_s": round(seconds / 0.01, 2),
    }


def _send_probes(prober: Prober, connection: psycopg.Connection[Any], count: int) -> None:
    """Send `count` probes."""
    deadline, wanted = time.monotonic() + PATIENCE_S, _count_sent(connection) + count
    while _count_sent(connection) < wanted:
        if time.monotonic() > deadline:
            raise AssertionError("The registry does not answer probes.")
        prober.round()
        # One probe at a time is pending at an address: another round meanwhile does nothing.
        time.sleep(_NEXT_S)


def _count_sent(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM probes").fetchone()
    assert row is not None
    return int(row[0])
