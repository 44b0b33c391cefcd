"""Measure what a survey costs beyond listing the same keys, and whether its memory grows with them.

The rates are measured on the real store and on a directory, compared with listing the same two subtrees in as many
threads through the same adapter, in turns: once with sizes and times, and once with only what a survey needs, which is
only the keys of links and saves a call for each file. Memory is the peak of a process that surveys a made-up listing
(survey_process.py), in an order that no store has.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.run import Context, print_progress
from bench.services import ROOT
from bench.survey_process import make_objects
from coordinator.compose import store as compose_store
from coordinator.settings import make_settings
from coordinator.storage.files import FileObjectStore
from coordinator.storage.layout import BASE
from coordinator.storage.port import ObjectReader
from coordinator.survey.survey import Root, survey_roots

TURNS = 3
WRITERS = 16
SUBTREES = (f"{BASE}/blobs/", f"{BASE}/repositories/")
BODY = b"x" * 71


def measure(context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    keys = context.count(20_000, quick=1_000)
    with context.services.database() as database:
        store = compose_store.make_object_store(make_settings({**database.values, "s3_root": "bench-survey"}))
        print_progress(f"writing {keys:,} keys")
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(lambda key: store.put(key, BODY), _make_keys(keys)):
                pass
        found["bucket"] = _measure_rates(store)
    keys = context.count(100_000, quick=2_000)
    with tempfile.TemporaryDirectory(dir=context.services.directory) as name:
        print_progress(f"writing {keys:,} files")
        for key in _make_keys(keys):
            file = Path(name, key)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(BODY)
        found["directory"] = _measure_rates(FileObjectStore(Path(name)))
    sizes = [10_000, 100_000] if context.quick else [100_000, 1_000_000, int(10_000_000 * context.scale)]
    found["memory"] = [_measure_memory(size) for size in sizes]
    return found


def _make_keys(count: int) -> Iterator[str]:
    for subtree in SUBTREES:
        yield from (entry.key for entry in make_objects(count, subtree))


def _measure_rates(store: ObjectReader) -> dict[str, Any]:
    keys = survey_roots([Root("bench", store)]).keys
    blobs, links = SUBTREES
    ways: dict[str, Callable[[], object]] = {
        "listing": lambda: _read_listings([store.walk(blobs), store.walk(links)]),
        "bare_listing": lambda: _read_listings([store.walk(blobs), store.walk_keys(links)]),
        "survey": lambda: survey_roots([Root("bench", store)]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            seconds[name].append(_time_call(way))
    rates = {name: keys / statistics.median(each) for name, each in seconds.items()}
    return {
        "keys": keys,
        **{f"{name}_keys_per_s": round(rate) for name, rate in rates.items()},
        "of_listing": round(rates["survey"] / rates["listing"], 3),
        "of_bare_listing": round(rates["survey"] / rates["bare_listing"], 3),
    }


def _read_listings(listings: list[Iterator[Any]]) -> None:
    def exhaust(listing: Iterator[Any]) -> None:
        for _ in listing:
            pass

    with ThreadPoolExecutor(len(listings)) as pool:
        list(pool.map(exhaust, listings))


def _time_call(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def _measure_memory(keys: int) -> dict[str, Any]:
    print_progress(f"surveying {keys:,} keys that are made up")
    done = subprocess.run(
        [sys.executable, "-m", "bench.survey_process", str(keys)],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=1800,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
