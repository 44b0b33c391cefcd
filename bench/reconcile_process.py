"""`python -m bench.reconcile_process DATABASE POD KEYS`: reconcile a pod whose listing is made up.

The table agrees with the listing, which is half of one huge repository and half of small ones. Nothing of it is stored:
keys are made as they are listed. Prints a line of JSON: keys, seconds, and the process's peak memory.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from coordinator.db.connection import Connections
from coordinator.domain.merge import LinkKind
from coordinator.domain.names import RepositoryName
from coordinator.jobs.work import run_waiting_jobs
from coordinator.reconcile.links import BucketLinks, Links
from coordinator.reconcile.reconcile import JOB_KIND, Reconciler
from coordinator.storage.layout import link_folder, repository_prefix
from coordinator.storage.port import ObjectInfo
from coordinator.table import statements
from tests.storage.memory import MemoryObjectStore

#: Of ten keys one is a revision's link, one a tag's, eight are layers'.
KEYS_OF_IMAGE = 10
SMALL_IMAGES = 500
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)

FILL = """
WITH owner AS (SELECT id FROM pods WHERE name = %(pod)s),
made AS (
    INSERT INTO repositories (pod_id, name) SELECT owner.id, %(pod)s || '/' || n FROM owner, unnest(%(names)s::text[]) n
    RETURNING id, name
),
held AS (
    SELECT made.id, i
    FROM unnest(%(names)s::text[], %(counts)s::int[]) d (name, images)
    JOIN made ON made.name = %(pod)s || '/' || d.name, generate_series(1, images) i
)
INSERT INTO repository_manifests (manifest_id, repository_id, pushed_at) SELECT i, id, '2026-01-01Z' FROM held
"""


class MadeUpStore(MemoryObjectStore):
    """Repositories `r0`, `r1`, … of a pod, each with so many images, and nothing in memory."""

    def __init__(self, pod: str, images: dict[str, int]) -> None:
        super().__init__()
        self._images = {repository_prefix(RepositoryName(f"{pod}/{name}")): count for name, count in images.items()}
        self._pod = repository_prefix(RepositoryName(pod))

    def list_folders(self, prefix: str) -> Iterator[str]:
        if prefix == self._pod:
            yield from self._images
        elif prefix in self._images:
            yield from (f"{prefix}_layers/", f"{prefix}_manifests/")

    def list(self, prefix: str, start_after: str | None = None, limit: int = 1000) -> list[ObjectInfo]:  # noqa: ARG002
        return [next(self.walk(prefix))]

    def head(self, key: str) -> ObjectInfo | None:
        raise AssertionError(f"{key} is known, and was listed")

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        for repository, count in self._images.items():
            if repository.startswith(prefix) or prefix.startswith(repository):
                for entry in _list_repository(repository, count):
                    if entry.key.startswith(prefix):
                        yield entry


def _list_repository(repository: str, images: int) -> Iterator[ObjectInfo]:
    name = RepositoryName(repository.removeprefix("docker/registry/v2/repositories/").rstrip("/"))
    layers, revisions = link_folder(name, LinkKind.LAYER), link_folder(name, LinkKind.REVISION)
    for n in range(1, images * 8 + 1):
        yield ObjectInfo(f"{layers}{n:064x}/link", 71, LONG_AGO)
    for n in range(1, images + 1):
        yield ObjectInfo(f"{revisions}{n:064x}/link", 71, LONG_AGO)
    for n in range(images):
        yield ObjectInfo(f"{repository}_manifests/tags/v{n:08}/current/link", 71, LONG_AGO)


def _read_peak_mib() -> float:
    """Return this process's peak memory; getrusage would return its parent's, if that was more."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)


def main() -> int:
    url, pod, keys = sys.argv[1], sys.argv[2], int(sys.argv[3])
    total = keys // KEYS_OF_IMAGE
    small = max(1, total // 2 // SMALL_IMAGES)
    images = {"huge": total - total // 2} | {f"r{n:06}": total // 2 // small for n in range(small)}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO blobs (id, size, reference_count, link_count, state, digest)"
            " SELECT i, 1, 1, 0, 1, decode(lpad(to_hex(i), 64, '0'), 'hex') FROM generate_series(1, %s) i",
            (max(images.values()),),
        )
        connection.execute(FILL, {"pod": pod, "names": list(images), "counts": list(images.values())})
        connection.execute("ANALYZE")
        connection.execute(
            "INSERT INTO jobs (kind, pod_id, why) SELECT %s, id, 'bench' FROM pods WHERE name = %s", (JOB_KIND, pod)
        )
        store = MadeUpStore(pod, images)
        queue = Connections(url, name="baleen-bench")
        prepared = Connections(url, name="baleen-bench", prepare=statements.prepare_connection)
        links = Links(BucketLinks(store))
        day = timedelta(days=1)
        runner = Reconciler(prepared, store, links, margin=day, link_grace=day, request_bound=day)
        begun = time.perf_counter()
        run_waiting_jobs(queue, {JOB_KIND: runner}, threading.Event())
        seconds = time.perf_counter() - begun
        row = connection.execute("SELECT state, error, progress FROM jobs").fetchone()
        assert row is not None
        state, error, progress = row
    if state != "done" or progress["holdings_added"] or progress["holdings_removed"]:
        raise AssertionError(f"{state}, {error}, {progress}")
    print(json.dumps({"keys": progress["keys"], "seconds": round(seconds, 2), "peak_mib": _read_peak_mib()}))
    for each in (runner, links, queue, prepared):
        each.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
