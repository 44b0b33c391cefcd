"""Measure what a reconcile costs beyond listing the same keys, and whether its memory grows with a pod.

The rate is measured on the real store, with a table that agrees with storage, compared with listing the same parts with
as many threads through the same client, in turns. Before that, the pod's first reconcile, which reads every manifest,
is timed. Memory is the peak of a process that reconciles a pod with a made-up listing (reconcile_process.py).
"""

import hashlib
import json
import logging
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import structlog

from bench.run import Context, print_progress
from bench.services import ROOT, Database
from bench.workload import make_pod_names
from coordinator.compose import scheduler as compose_scheduler
from coordinator.compose import store as compose_store
from coordinator.db.connection import Connections
from coordinator.domain.names import Digest, RepositoryName
from coordinator.jobs.work import run_waiting_jobs
from coordinator.reconcile import plan
from coordinator.reconcile.reconcile import JOB_KIND
from coordinator.reconcile.sizes import PRODUCTION
from coordinator.settings import make_settings
from coordinator.storage.layout import blob_key, layer_link_key, repository_prefix, revision_link_key
from coordinator.storage.port import ObjectStore

TURNS = 3
WRITERS = 16

#: As in repositories that CI pushes to: an image is 1 revision, 2 links of its tag, and 7 layers of its own.
REPOSITORIES = 100
LAYERS_OF_IMAGE = 10
OWN_LAYERS = 7
KEYS_OF_IMAGE = 1 + 2 + OWN_LAYERS


#: Links of layers are then older than the grace, as nearly all of a pod's are.
SETTINGS = {
    "s3_root": "bench-reconcile",
    "safety_link_grace": "1ms",
    "safety_clock_skew": "0s",
    "unsafe_times": "true",
}


def measure(context: Context) -> dict[str, Any]:
    # The table of results has stdout.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    keys = context.count(100_000, quick=2_000)
    sizes = [10_000, 50_000] if context.quick else [100_000, 1_000_000, int(10_000_000 * context.scale)]
    return {**_measure_rate(context, keys), "memory": [_measure_memory(context, size) for size in sizes]}


def _measure_rate(context: Context, keys: int) -> dict[str, Any]:
    pod = RepositoryName(make_pod_names(1)[0])
    with context.services.database() as database:
        settings = make_settings({**database.values, **SETTINGS})
        store = compose_store.make_object_store(settings)
        print_progress(f"writing {keys} keys")
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(lambda entry: store.put(*entry), _make_objects(pod, keys)):
                pass
        with (
            compose_scheduler.open_job_runners(settings) as runners,
            psycopg.connect(database.url, autocommit=True) as connection,
        ):
            imported = _run_reconcile(database, connection, runners, pod)
            parts = plan.plan_parts(store, [pod])
            listed: list[float] = []
            compared: list[float] = []
            for _ in range(TURNS):
                listed.append(_time_listing(store, parts))
                compared.append(_run_reconcile(database, connection, runners, pod)["seconds"])
            found = imported["keys"]
    listing, reconciling = found / statistics.median(listed), found / statistics.median(compared)
    return {
        "keys": found,
        "parts": len(parts),
        "import_s": round(imported["seconds"], 1),
        "import_holdings_per_s": round(imported["holdings_added"] / imported["seconds"]),
        "listing_keys_per_s": round(listing),
        "reconcile_keys_per_s": round(reconciling),
        "of_listing": round(reconciling / listing, 3),
    }


def _make_objects(pod: RepositoryName, keys: int) -> Iterator[tuple[str, bytes]]:
    """Yield links as registries write them, with the bytes of manifests."""
    images = keys // KEYS_OF_IMAGE
    for number in range(images):
        repository = RepositoryName(f"{pod}/app-{number % REPOSITORIES}")
        shared = [_digest_of(f"base {number % REPOSITORIES} {n}") for n in range(LAYERS_OF_IMAGE - OWN_LAYERS)]
        own = [_digest_of(f"layer {number} {n}") for n in range(OWN_LAYERS)]
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {"digest": f"sha256:{own[0].hex()}", "size": 5_000},
                "layers": [{"digest": f"sha256:{each.hex()}", "size": 1_000_000} for each in [*shared, *own[1:]]],
            }
        ).encode()
        manifest = Digest(hashlib.sha256(body).digest())
        link = f"sha256:{manifest.hex()}".encode()
        yield blob_key(manifest), body
        yield revision_link_key(repository, manifest), link
        tag = f"{repository_prefix(repository)}_manifests/tags/v{number}"
        yield f"{tag}/current/link", link
        yield f"{tag}/index/sha256/{manifest.hex()}/link", link
        for layer in own:
            yield layer_link_key(repository, layer), f"sha256:{layer.hex()}".encode()


def _digest_of(text: str) -> Digest:
    return Digest(hashlib.sha256(text.encode()).digest())


def _time_listing(store: ObjectStore, parts: list[str]) -> float:
    """List every part, with as many threads as a reconcile; return the seconds."""

    def walk(part: str) -> None:
        for _ in store.walk(part):
            pass

    begun = time.perf_counter()
    with ThreadPoolExecutor(PRODUCTION.parts_at_once) as pool:
        list(pool.map(walk, parts))
    return time.perf_counter() - begun


def _run_reconcile(database: Database, connection: Any, runners: Any, pod: str) -> dict[str, Any]:
    connection.execute(
        "INSERT INTO jobs (kind, pod_id, why) SELECT %s, id, 'bench' FROM pods WHERE name = %s", (JOB_KIND, pod)
    )
    connections = Connections(database.url, name="baleen-bench")
    begun = time.perf_counter()
    try:
        run_waiting_jobs(connections, runners, threading.Event())
    finally:
        connections.close()
    seconds = time.perf_counter() - begun
    state, progress, error = connection.execute("SELECT state, progress, error FROM jobs ORDER BY id DESC").fetchone()
    if state != "done":
        raise AssertionError(f"The reconcile ended as {state}: {error}")
    return {"seconds": seconds, **progress}


def _measure_memory(context: Context, keys: int) -> dict[str, Any]:
    print_progress(f"reconciling {keys:,} keys that are made up")
    with context.services.database() as database:
        done = subprocess.run(
            [sys.executable, "-m", "bench.reconcile_process", database.url, make_pod_names(1)[0], str(keys)],
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=1800,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
