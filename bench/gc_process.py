"""`python -m bench.gc_process plan DATABASE CANDIDATES` and `… collect RATE`: garbage collection in its own process.

`plan` fills the table with blobs that nothing references, every tenth of them hidden, and asks for the whole plan; it
prints a line of JSON: candidates, seconds, and the most memory that the process ever had. `collect`, with the settings
of the environment, runs one collection after another until it is ended; RATE in blobs a second, 0 for no limit.
"""

import json
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psycopg

from bench.garbage import NO_TIMES, open_collector
from coordinator import settings
from coordinator.db.connection import Connections
from coordinator.domain.gc import Facts, PodFacts
from coordinator.gc import plan
from coordinator.gc.collect import JOB_KIND
from coordinator.jobs import table as jobs
from coordinator.jobs.work import run_waiting_jobs

PAUSE_S = 0.05

FILL = """
INSERT INTO blobs (id, size, reference_count, link_count, state, unreferenced_since, digest)
SELECT i, 1000, 0, 0, CASE WHEN i %% 10 = 0 THEN 2 ELSE 1 END, now() - interval '2 days' + i * interval '10 ms',
       sha256(int8send(i))
FROM generate_series(1, %s) i
"""
FILL_HIDES = """
INSERT INTO hides (blob_id, run_id, taken, unreferenced_since, hidden_at, size, marker, versions)
SELECT id, 1, 1, unreferenced_since, now() - interval '1 day', 1000, 'm',
       jsonb_build_array(jsonb_build_array('v', 1000))
FROM blobs WHERE state = 2
"""


def _run_plan(url: str, candidates: int) -> int:
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(FILL, (candidates,))
        connection.execute(FILL_HIDES)
        connection.execute("ANALYZE")
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
    facts = Facts(row[0], NO_TIMES, [PodFacts("bench", row[0], row[0])])
    connections = Connections(url, name="baleen-bench-gc")
    begun = time.perf_counter()
    totals = plan.count_totals(connections, facts)
    counted = time.perf_counter() - begun
    steps = dict.fromkeys(plan.Step, 0)
    for decided in plan.walk_plan(connections, facts):
        steps[decided.step] += 1
    seconds = time.perf_counter() - begun
    connections.close()
    if (steps[plan.Step.HIDE], steps[plan.Step.PURGE]) != (totals.hide.blobs, totals.purge.blobs):
        raise AssertionError(f"{steps} is not {totals}")
    found = {"candidates": sum(steps.values()), "counted_s": round(counted, 2), "seconds": round(seconds, 2)}
    print(json.dumps(found | {"peak_mib": _read_peak_mib()}))
    return 0


def _run_collection(rate: int) -> int:
    with open_collector(settings.load(), rate=rate) as (connections, collect):
        print("collecting", flush=True)
        while True:
            with connections.use() as connection:
                jobs.request_collection(connection, every=timedelta(0))
            run_waiting_jobs(connections, {JOB_KIND: collect}, threading.Event())
            time.sleep(PAUSE_S)


def _read_peak_mib() -> float:
    """Return the highest memory use of this process in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)


def main() -> int:
    if sys.argv[1] == "plan":
        return _run_plan(sys.argv[2], int(sys.argv[3]))
    return _run_collection(int(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
