"""Measure the database alone: the workload's facts are given to BatchApplier directly, without Kafka.

Route: `Loader` -> `load(count)` -> `LoadResult`. The time is that of `apply` only, which ends with a durable commit;
`wall` includes making the facts.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple, Self

import psycopg

from bench.services import Database
from bench.workload import REFERENCES_PER_MANIFEST, Manifest, make_manifests
from coordinator.db.engine import connect
from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import Digest, RepositoryName
from coordinator.domain.references import ManifestContent, ManifestKind, Reference
from coordinator.table import statements
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item, Slice

BATCH = 2000
"""As a worker's (settings.worker_batch)."""

TOPIC = "bench"
LONGEST = 10_000_000


class LoadResult(NamedTuple):
    manifests: int
    seconds: float
    wall: float
    #: Of this process, inside `apply`.
    cpu: float

    @property
    def references_per_s(self) -> float:
        return self.manifests * REFERENCES_PER_MANIFEST / self.seconds


class Loader:
    """Applies a seeded sequence of pushes, any number at a time. Close it."""

    def __init__(self, database: Database, seed: int, *, batch: int = BATCH) -> None:
        self.connection: psycopg.Connection[Any] = connect(database.url, name="baleen-bench")
        statements.prepare_connection(self.connection)
        self.connection.execute(
            "INSERT INTO partition_progress (topic, partition, next_offset) VALUES (%s, 0, 0)", [TOPIC]
        )
        found = self.connection.execute("SELECT name, id FROM pods").fetchall()
        self._pods: dict[str, int] = dict(found)
        self._manifests = make_manifests(seed, LONGEST)
        self._apply = BatchApplier(self.connection, timedelta(minutes=5))
        self._batch = batch
        self._offset = 0
        self._begun = datetime.now(UTC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def load(self, count: int) -> LoadResult:
        seconds, cpu, start = 0.0, 0.0, time.perf_counter()
        for piece in self._make_slices(count):
            before, cpu_before = time.perf_counter(), time.process_time()
            applied = self._apply.apply([piece])
            seconds += time.perf_counter() - before
            cpu += time.process_time() - cpu_before
            assert applied.holdings_added == len(piece.items), applied
        return LoadResult(count, seconds, time.perf_counter() - start, cpu)

    def _make_slices(self, count: int) -> Iterator[Slice]:
        wanted = islice(self._manifests, count)
        while some := list(islice(wanted, self._batch)):
            first = self._offset
            items = [self._make_item(first + n, manifest) for n, manifest in enumerate(some)]
            self._offset += len(some)
            yield Slice(TOPIC, 0, first, self._offset, 1, items)

    def _make_item(self, offset: int, manifest: Manifest) -> Item:
        references = tuple([Reference(Digest(digest), size) for digest, size in manifest.references])
        fact = ManifestPushed(
            RepositoryName(manifest.repository),
            Digest(manifest.digest),
            self._begun + timedelta(milliseconds=offset),
            manifest.size,
            ManifestContent(ManifestKind.IMAGE, references),
        )
        return Item(offset, 0, self._pods[manifest.repository.partition("/")[0]], fact, None)


def check_tables(connection: psycopg.Connection[Any], count: int) -> None:
    """Check that the tables hold exactly `count` pushes: a fast wrong result is not a measurement."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM repository_manifests), (SELECT sum(reference_count) FROM blobs)"
    ).fetchone()
    # Each holding also counts for the manifest itself.
    wanted = (count, count * (REFERENCES_PER_MANIFEST + 1))
    if row != wanted:
        raise AssertionError(f"{count} pushes left {row} instead of {wanted}.")
