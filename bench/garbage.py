"""Make garbage for measurements (unreferenced blobs, with bytes in their own bucket) and collect it.

Route: `Garbage` (one kind of bucket) -> `add` -> `collect`, as a scheduler does, but with the facts that every process
has reported and every pod was just reconciled -> the run's result.
Not here: the measurements (gc.py).
"""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Literal, Self

import boto3
import psycopg
from botocore.config import Config

from bench.services import Database
from coordinator.compose import database as compose_database
from coordinator.compose import scheduler as compose_scheduler
from coordinator.compose import store as compose_store
from coordinator.db.connection import Connections
from coordinator.domain.gc import Amount, Facts, Limits, PodFacts, Times
from coordinator.domain.names import Digest
from coordinator.gc import controls
from coordinator.gc.collect import JOB_KIND, Collector
from coordinator.jobs import table as jobs
from coordinator.jobs.work import run_waiting_jobs
from coordinator.settings import Settings, make_settings
from coordinator.storage.layout import MARK, blob_key
from tests.support.claims import NO_CLAIMS

BucketKind = Literal["versioned", "unversioned"]

WRITERS = 16
BYTES = 1000
NO_TIMES = Times(timedelta(0), timedelta(0), timedelta(0))
NO_LIMITS = Limits(100, 1_000_000, Amount(10**12, 10**18))


class Garbage:
    """A context manager around the bucket of a kind and the table of a database."""

    def __init__(self, database: Database, kind: BucketKind, seed: int = 7) -> None:
        self.values = database.values | {"s3_bucket": f"bench-gc-{kind}"}
        self.settings: Settings = make_settings(self.values)
        # The load's blobs come from the same seed, and would be referenced again.
        self._random = random.Random(f"garbage {seed}")
        _make_bucket(self.settings)
        self.store = compose_store.make_object_store(self.settings)
        # Measurements share buckets, and each has a database of its own.
        self.store.delete(MARK)
        if kind == "versioned":
            self.store.enable_versioning()
        self.connection: psycopg.Connection[Any] = psycopg.connect(database.url, autocommit=True, connect_timeout=10)
        controls.set_switch(self.connection, "the bench", on=True)
        self._closing = ExitStack()
        self._closing.callback(self.connection.close)
        self._connections, self._collect = self._closing.enter_context(open_collector(self.settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def store_blobs(self, count: int) -> list[Digest]:
        """Store `count` blobs that the table does not have; return them."""
        made = [Digest(self._random.randbytes(32)) for _ in range(count)]
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(lambda digest: self.store.put(blob_key(digest), digest[:1] * BYTES), made):
                pass
        return made

    def add(self, count: int) -> list[Digest]:
        """Add `count` unreferenced blobs, with their bytes; return them."""
        made = self.store_blobs(count)
        self.connection.execute(
            """
            INSERT INTO blobs (size, reference_count, link_count, state, unreferenced_since, digest)
            SELECT %s, 0, 0, 1, now() - interval '1 day', d FROM unnest(%b::bytea[]) d
            """,
            (BYTES, [bytes(digest) for digest in made]),
        )
        self.connection.execute("ANALYZE blobs")
        return made

    def count_left(self) -> int:
        """Count what a collection would still hide or purge."""
        row = self.connection.execute("SELECT count(*) FROM blobs WHERE state IN (1, 2)").fetchone()
        assert row is not None
        return int(row[0])

    def count_done(self) -> int:
        """Count the finished hides and purges."""
        row = self.connection.execute(
            "SELECT count(*) FROM gc_ledger WHERE decision IN ('hidden', 'purged')"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def collect(self) -> dict[str, Any]:
        """Run one collection; return what it did."""
        jobs.request_collection(self.connection, every=timedelta(0))
        run_waiting_jobs(self._connections, {JOB_KIND: self._collect}, threading.Event())
        row = self.connection.execute("SELECT state, error, progress FROM jobs ORDER BY id DESC LIMIT 1").fetchone()
        assert row is not None
        if row[0] != "done":
            raise AssertionError(f"The collection ended as {row[0]}: {row[1]}")
        progress: dict[str, Any] = row[2]
        return progress


@contextmanager
def open_collector(settings: Settings, *, rate: int = 0) -> Iterator[tuple[Connections, Collector]]:
    """Give what runs collections, as in a scheduler, but with made-up facts about the pods."""
    connections = compose_database.make_connections(settings, name="baleen-bench-gc")

    def facts() -> Facts:
        with connections.use() as connection:
            row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        return Facts(row[0], NO_TIMES, [PodFacts("bench", row[0], row[0], is_reconcilable=False)])

    with compose_scheduler.open_restorer(settings, name="baleen-bench-gc") as restorer:
        store = compose_store.make_object_store(settings)
        collect = Collector(connections, store, facts, restorer, claims=NO_CLAIMS, limits=NO_LIMITS, rate=rate)
        try:
            yield connections, collect
        finally:
            collect.close()
            connections.close()


def _make_bucket(settings: Settings) -> None:
    assert settings.s3_secret_key is not None
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.reveal(),
        config=Config(s3={"addressing_style": "path"}, proxies={}, connect_timeout=3, read_timeout=20),
    )
    if settings.s3_bucket not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=str(settings.s3_bucket))
