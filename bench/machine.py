"""Describe the machine of a measurement, so that figures of two machines are not compared by mistake.

Route: `read_machine` -> `format_line` for a report. What cannot be found out is "unknown".
Run: python -m bench.machine [--directory DIR] [--database-url postgresql://…]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import TypedDict

import psycopg

FSYNCS = 200
FSYNC_BYTES = 512
"""Less than a block, as a small commit's record in a write-ahead log."""

UNKNOWN = "unknown"


class Machine(TypedDict):
    cpu: str
    cores: int
    """Those that this process may use."""
    memory_gib: float
    kernel: str
    python: str
    postgres: str
    fsync_ms_median: float
    fsync_ms_p95: float
    load: float
    """Programs that wanted a core in the last minute; if high before a run, its figures are too low."""


def read_machine(directory: Path | None = None, database_url: str | None = None) -> Machine:
    """Describe the machine; measures fsync in `directory`, which should be on the disk of the measured services."""
    median, p95 = measure_fsync(directory or Path(tempfile.gettempdir()))
    return {
        "cpu": _read_field(Path("/proc/cpuinfo"), "model name") or platform.processor() or UNKNOWN,
        "cores": _count_cores(),
        "memory_gib": _read_memory_gib(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "postgres": _read_postgres_version(database_url) if database_url else UNKNOWN,
        "fsync_ms_median": round(median * 1000, 3),
        "fsync_ms_p95": round(p95 * 1000, 3),
        "load": round(os.getloadavg()[0], 1),
    }


def format_line(machine: Machine) -> str:
    """One line of markdown."""
    return (
        f"**Machine:** {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {machine['kernel']}, {machine['python']}, PostgreSQL {machine['postgres']},"
        f" fsync {machine['fsync_ms_median']} ms (95 %: {machine['fsync_ms_p95']} ms),"
        f" load {machine['load']}"
    )


def measure_fsync(directory: Path) -> tuple[float, float]:
    """Median and 95th percentile, in seconds, of appending a small record and waiting for the disk."""
    taken: list[float] = []
    record = os.urandom(FSYNC_BYTES)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(FSYNCS):
            start = time.perf_counter()
            file.write(record)
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - start)
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read_memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _read_postgres_version(database_url: str) -> str:
    with psycopg.connect(database_url, connect_timeout=10) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]) if row else UNKNOWN


def _read_field(path: Path, name: str) -> str | None:
    """The value of the first `name : value` line."""
    if not path.exists():
        return None
    for text in path.read_text().splitlines():
        key, _, value = text.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="Describe this machine.")
    parser.add_argument("--directory", type=Path, help="measure fsync on this directory's disk")
    parser.add_argument("--database-url", help="name this server's version")
    options = parser.parse_args()
    machine = read_machine(options.directory, options.database_url)
    print(json.dumps(machine, indent=2))
    print(format_line(machine))


if __name__ == "__main__":
    main()
