"""Measure the rate of garbage collection, and its cost for the worker.

purge      a run that only purges, on a bucket with versions and on one without, against deletes of the same kinds of
           objects by the same requests of 1000 with nothing else around them, as many at once. A blob is one object:
           in a bucket with versions its version (the marker is left to the sweep), in one without the copy.
           Processor time for each object says where a shortfall comes from, whatever else the machine does.
plan       the whole plan of a table that is made up (gc_process.py), and whether its memory grows with it.
processor  the worker's rate while a process collects from the same table and store, in turns with its rate alone.
restore    from a reference being applied to the bytes being served, with a worker as it is; both are polled for.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import structlog

from bench import client, events, throughput
from bench.cpu import read_cpu_seconds
from bench.garbage import BYTES, BucketKind, Garbage
from bench.run import Context, print_progress
from bench.services import ROOT, Broker, Database
from bench.workload import Manifest, make_repositories
from coordinator.domain.names import Digest
from coordinator.gc.sizes import PRODUCTION
from coordinator.storage.layout import blob_key, quarantine_key
from coordinator.storage.port import DELETE_LIMIT, Target

TURNS = 2
PROBES_PER_S = 10.0
WARM_UP = 20
POLL_S = 0.005
GIVE_UP_S = 60.0
CHECKS_AT_ONCE = 8
PARTITIONS = 8
#: The rate of the limited run (the setting GC_RATE): some nine million blobs a day.
LIMITED_PER_S = 100
REPOSITORY = make_repositories(1)[0]


def measure(context: Context) -> dict[str, Any]:
    # The table of results has stdout.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    kinds: tuple[BucketKind, ...] = ("versioned", "unversioned")
    sizes = [10_000, 50_000] if context.quick else [100_000, 1_000_000]
    if context.scale >= 10:
        sizes.append(10_000_000)
    return {
        "purge": {kind: _measure_purge(context, kind) for kind in kinds},
        "plan": [_measure_plan(context, size) for size in sizes],
        "processor": _measure_beside(context),
        "restore": {kind: _measure_restore(context, kind) for kind in (kinds[:1] if context.quick else kinds)},
    }


# Purging


def _measure_purge(context: Context, kind: BucketKind) -> dict[str, Any]:
    count = context.count(10_000, quick=500)
    spent = _CpuMeter(context)
    with context.services.database() as database, Garbage(database, kind, context.seed) as garbage:
        print_progress(f"{kind}: writing {count:,} blobs for deletes alone")
        targets = _conceal(garbage, kind, garbage.store_blobs(count))
        begun = spent.begin()
        _delete_targets(garbage, targets)
        raw = len(targets) / (time.perf_counter() - begun)
        raw_ms = spent.ms_per(len(targets))
        print_progress(f"{kind}: writing {count:,} blobs to collect")
        garbage.add(count)
        begun = time.perf_counter()
        hidden = garbage.collect()
        hiding = time.perf_counter() - begun
        begun = spent.begin()
        done = garbage.collect()
        seconds = time.perf_counter() - begun
        purge_ms = spent.ms_per(len(targets))
    if (hidden["hidden"]["blobs"], done["purged"]["blobs"], done["purged"]["bytes"]) != (count, count, count * BYTES):
        raise AssertionError(f"{hidden} blobs hidden and {done} done, of {count}.")
    objects = len(targets)
    found = {
        "blobs": count,
        "raw_objects_per_s": round(raw),
        "objects_per_s": round(objects / seconds),
        "blobs_per_s": round(count / seconds),
        "of_raw": round(objects / seconds / raw, 3),
        "hidden_blobs_per_s": round(count / hiding),
        "cpu_ms_per_object": purge_ms,
        "raw_cpu_ms_per_object": raw_ms,
    }
    print_progress(f"{kind}: {found}")
    return found


class _CpuMeter:
    """Processor time of this process, of the store and of PostgreSQL."""

    def __init__(self, context: Context) -> None:
        self._pids = {
            "client": os.getpid(),
            "store": context.services.store_pid,
            "postgres": context.services.postgres_pid,
        }

    def begin(self) -> float:
        self._before = self._read_seconds()
        return time.perf_counter()

    def ms_per(self, objects: int) -> dict[str, float]:
        now = self._read_seconds()
        return {name: round((now[name] - self._before[name]) * 1000 / objects, 2) for name in self._pids}

    def _read_seconds(self) -> dict[str, float]:
        # Its children are counted on their own.
        return {
            name: time.process_time() if name == "client" else read_cpu_seconds(pid) for name, pid in self._pids.items()
        }


def _conceal(garbage: Garbage, kind: BucketKind, made: list[Digest]) -> list[Target]:
    """Move blobs to where a hide moves them; return what its purge would delete."""
    store = garbage.store
    if kind == "unversioned":
        keys = [(blob_key(digest), quarantine_key(digest, 1)) for digest in made]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda pair: store.copy_from(store, *pair), keys))
        _delete_targets(garbage, [Target(key) for key, _ in keys])
        return [Target(copy) for _, copy in keys]
    with ThreadPoolExecutor(16) as pool:
        versions = list(pool.map(lambda digest: store.list_versions(blob_key(digest))[0].version, made))
    _delete_targets(garbage, [Target(blob_key(digest)) for digest in made])
    return [Target(blob_key(digest), version) for digest, version in zip(made, versions, strict=True)]


def _delete_targets(garbage: Garbage, targets: list[Target]) -> None:
    """Delete with full requests, as many at once as a collection sends."""
    batches = [targets[first : first + DELETE_LIMIT] for first in range(0, len(targets), DELETE_LIMIT)]
    with ThreadPoolExecutor(PRODUCTION.pages_at_once) as pool:
        answers = list(pool.map(lambda batch: garbage.store.delete_many(batch, lambda: None), batches))
    wrong = [each.error for answer in answers for each in answer if each.error]
    if wrong:
        raise AssertionError(f"{len(wrong)} objects were not deleted: {wrong[0]}")


# Planning


def _measure_plan(context: Context, candidates: int) -> dict[str, Any]:
    print_progress(f"planning for {candidates:,} candidates")
    with context.services.database() as database:
        done = subprocess.run(
            [sys.executable, "-m", "bench.gc_process", "plan", database.url, str(candidates)],
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=3600,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"candidates_per_s": round(found["candidates"] / found["seconds"])}


# The processor beside it


def _measure_beside(context: Context) -> dict[str, Any]:
    count, stock = context.count(200_000, quick=5000), context.count(16_000, quick=1500)
    alone: list[float] = []
    beside = {"limited": _Collector(context, stock, LIMITED_PER_S)}
    if not context.quick:
        beside["full"] = _Collector(context, stock, 0)
    for _ in range(1 if context.quick else TURNS):
        alone.append(throughput.measure_one(context, "embedded", PARTITIONS, count)["manifests_per_s"])
        for each in beside.values():
            each.rates.append(throughput.measure_one(context, "embedded", PARTITIONS, count, each)["manifests_per_s"])
    base = statistics.median(alone)
    return {
        "manifests": count,
        "alone_manifests_per_s": round(base),
        "limit_blobs_per_s": LIMITED_PER_S,
        **{name: each.summary(base) for name, each in beside.items()},
    }


class _Collector:
    """A process that collects while a worker runs: half of its garbage is hidden already, and due to be purged."""

    def __init__(self, context: Context, stock: int, rate: int) -> None:
        self.rates: list[float] = []
        self._context = context
        self._stock = stock
        self._rate = rate
        self._collected: list[float] = []
        self._lasted = True

    @contextmanager
    def __call__(self, database: Database) -> Iterator[None]:
        with Garbage(database, "versioned", self._context.seed) as garbage:
            print_progress(f"making {self._stock:,} blobs to collect")
            garbage.add(self._stock // 2)
            garbage.collect()
            garbage.add(self._stock - self._stock // 2)
            arguments = ["collect", str(self._rate)]
            with self._context.services.program("gc", "bench.gc_process", arguments, garbage.values) as process:
                while "collecting" not in process.log_tail():
                    if not process.is_alive():
                        raise RuntimeError(f"The collector ended: {process.log_tail()}")
                    time.sleep(0.05)
                before, begun = garbage.count_done(), time.perf_counter()
                yield
                self._collected.append((garbage.count_done() - before) / (time.perf_counter() - begun))
                self._lasted = self._lasted and garbage.count_left() > 0

    def summary(self, alone: float) -> dict[str, Any]:
        rate = statistics.median(self.rates)
        return {
            "manifests_per_s": round(rate),
            "of_alone": round(rate / alone, 3),
            "collected_blobs_per_s": round(statistics.median(self._collected)),
            # Otherwise the worker was alone at the end.
            "garbage_lasted": self._lasted,
        }


# Restoring


def _measure_restore(context: Context, kind: BucketKind) -> dict[str, Any]:
    count = int(PROBES_PER_S * context.seconds(30.0, quick=3.0))
    services = context.services
    with services.database() as database, Garbage(database, kind, context.seed) as garbage:
        print_progress(f"{kind}: hiding {count + WARM_UP} blobs")
        hidden = garbage.add(count + WARM_UP)
        garbage.collect()
        there = database._replace(values=garbage.values)
        with services.broker("embedded", PARTITIONS, there) as broker, services.worker(there, broker, PARTITIONS):
            _time_restores(garbage, broker, hidden[:WARM_UP], per_s=None)
            taken = _time_restores(garbage, broker, hidden[WARM_UP:], per_s=PROBES_PER_S)
    found = {"probes": len(taken), "probes_per_s": PROBES_PER_S, **client.summarise_times(taken)}
    found["max_ms"] = round(max(taken) * 1000, 1)
    print_progress(f"{kind}: {found}")
    return found


def _time_restores(garbage: Garbage, broker: Broker, hidden: list[Digest], per_s: float | None) -> list[float]:
    """Reference these blobs by events of new manifests; return for each how long after the event it was served."""
    records = [_make_reference_event(digest) for digest in hidden]
    sender = threading.Thread(target=events.publish_records, args=(broker.bootstrap, records, per_s), daemon=True)
    sender.start()
    waiting, applied, taken = set(hidden), dict[Digest, float](), list[float]()
    begun = time.perf_counter()
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        while waiting or applied:
            found = garbage.connection.execute(
                "SELECT digest FROM blobs WHERE digest = ANY(%b::bytea[]) AND unreferenced_since IS NULL",
                (list(waiting),),
                prepare=True,
            ).fetchall()
            now = time.perf_counter()
            applied |= {Digest(row[0]): now for row in found}
            waiting -= applied.keys()
            seen = pool.map(lambda digest: garbage.store.head(blob_key(digest)) is not None, list(applied))
            for digest, is_seen in zip(list(applied), list(seen), strict=True):
                if is_seen:
                    taken.append(time.perf_counter() - applied.pop(digest))
            if now - begun > GIVE_UP_S + len(hidden) / (per_s or PROBES_PER_S):
                raise AssertionError(f"{len(waiting)} references were not applied, {len(applied)} blobs not restored.")
            time.sleep(POLL_S)
    sender.join()
    return taken


def _make_reference_event(digest: Digest) -> events.Record:
    """The event of a push whose manifest lists this blob."""
    random = Random(digest)
    manifest = Manifest(REPOSITORY, random.randbytes(32), 500, ((random.randbytes(32), 1000), (digest, BYTES)))
    return events.record_of(manifest, datetime.now(UTC))
