"""Profile a worker under full load: py-spy samples all of its threads a hundred times a second.

Two profiles, one after the other: threads that use a processor, for the shares of processor time; then all threads, for
what the applying thread (which limits the rate when the database is slow) spends its time on.
Route: py-spy's raw stacks -> `subject_of` of each -> shares. Not here: rates (throughput.py); sampling costs some.
"""

import linecache
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

from bench import events
from bench.cpu import wait_quiet
from bench.run import Context
from bench.throughput import count_applied, wait_applied

RATE = 100
SECONDS = 8.0
FASTEST_PER_S = 10_000

#: The first rule whose text is in any frame of a stack names its subject; rules are ordered from what is
#: called to what calls it.
RULES: tuple[tuple[str, str], ...] = (
    ("coordinator/db/arrays.py", "arrays for SQL"),
    ("psycopg/transaction.py", "begin and commit"),
    ("psycopg/", "SQL: sent, waited for, rows read"),
    ("coordinator/domain/fold.py", "fold"),
    ("coordinator/table/statements.py", "rows for SQL"),
    ("coordinator/table/digest_facts.py", "ids and counts of the batch"),
    ("coordinator/db/", "the rest of the apply"),
    ("workers/interpret.py", "interpretation"),
    ("coordinator/kafka/log.py", "fingerprints and positions"),
    ("workers/", "the processor's own steps"),
    ("aiokafka/", "aiokafka: fetch, parse records"),
    ("faust/", "Faust"),
    ("mode/", "Faust"),
    ("asyncio/", "event loop"),
)


def measure(context: Context) -> dict[str, Any]:
    if (program := _find_program()) is None:
        return {"skipped": "py-spy is not installed"}
    services = context.services
    count = context.count(300_000, quick=10_000)
    # Both profiles must end before the records do.
    seconds = max(1.0, min(SECONDS, count / FASTEST_PER_S / 3))
    with services.database() as database, services.broker("embedded", 8, database) as broker:
        events.publish_records(broker.bootstrap, context.records(count))
        wait_quiet(broker.pid)
        with services.worker(database, broker, 8) as worker:
            wait_applied(database, worker, 1)
            busy = _profile(program, worker.pid, seconds, services.directory / "busy.txt", "--threads", "--gil")
            every = _profile(program, worker.pid, seconds, services.directory / "every.txt", "--threads", "--idle")
            with psycopg.connect(database.url, autocommit=True, connect_timeout=10) as connection:
                left = count - count_applied(connection)
    if busy is None or every is None:
        return {"skipped": "py-spy cannot trace another process here: it needs ptrace"}
    return {
        "processor_time": _share_by_subject(busy),
        "applying_thread": _share_by_subject({stack: n for stack, n in every.items() if _thread_of(stack) == "apply"}),
        "samples": sum(busy.values()),
        # Without records left, a part of the samples is of a waiting worker.
        "records_left": left,
    }


def subject_of(stack: str) -> str:
    """Return the subject of a stack: its frames are `function (file:line)`, the outermost first."""
    frames = stack.split(";")[1:]
    for text, name in RULES:
        inner = next((frame for frame in reversed(frames) if text in frame), None)
        if inner is not None:
            return "JSON decoding" if name == "interpretation" and "decode(" in _file_of(inner) else name
    return "other"


def _share_by_subject(stacks: dict[str, int]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for stack, samples in stacks.items():
        found[f"{_thread_of(stack)}: {subject_of(stack)}"] += samples
    total = sum(found.values()) or 1
    return {name: round(samples / total, 3) for name, samples in found.most_common() if samples * 200 > total}


def _thread_of(stack: str) -> str:
    """`thread (12): apply_0` is `apply`."""
    name = stack.partition(";")[0].rpartition(": ")[2]
    return name.rstrip("0123456789").rstrip("_-") or "unnamed"


def _file_of(frame: str) -> str:
    file, _, line = frame.rpartition("(")[2].rstrip(")").rpartition(":")
    return linecache.getline(file, int(line)) if line.isdigit() else ""


def _profile(program: str, pid: int, seconds: float, file: Path, *arguments: str) -> dict[str, int] | None:
    command = [program, "record", "--format", "raw", "--full-filenames", "--rate", str(RATE)]
    command += ["--duration", str(int(seconds)), "--output", str(file), "--pid", str(pid), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds + 30, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0 or not file.exists():
        return None
    found: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        found[stack] += int(samples)
    return found


def _find_program() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")
