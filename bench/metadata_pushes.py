"""Push images into a normalised metadata database of a registry, for comparison.

Each push does what such a registry does: one transaction, row by row, with prepared statements on one
connection, and durable by the server's own settings. Other work of a real registry is left out: a client's
checks whether a blob exists, a transaction for each upload, the check that every layer is
linked, the background collector. So the figures are an upper bound of speed and a lower bound of size.

Route: metadata_schema.sql in a namespace of its own -> `push` for each manifest -> sizes -> dropped
Run: python -m bench.metadata_pushes postgresql://… --pushes 3000
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, TypedDict

import psycopg
from psycopg.types.numeric import Int8Dumper

from bench.workload import (
    CONFIG_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
    REFERENCES_PER_MANIFEST,
    Manifest,
    make_manifests,
    manifest_bytes,
)

NAMESPACE = "bench_metadata"
SCHEMA = Path(__file__).with_name("metadata_schema.sql")
QUEUES = ("blob_review_queue", "manifest_review_queue")

FIND_REPOSITORY = "SELECT namespace_id, id FROM repositories WHERE path = %s"
FIND_NAMESPACE = "SELECT id FROM namespaces WHERE name = %s"
ADD_NAMESPACE = "INSERT INTO namespaces (name) VALUES (%s) RETURNING id"
ADD_REPOSITORY = "INSERT INTO repositories (namespace_id, path) VALUES (%s, %s) RETURNING namespace_id, id"
ADD_BLOB = "INSERT INTO blobs (digest, size, media_type_id) VALUES (%s, %s, %s) ON CONFLICT (digest) DO NOTHING"
LINK_BLOB = (
    "INSERT INTO repository_blobs (namespace_id, repository_id, digest) VALUES (%s, %s, %s)"
    " ON CONFLICT (namespace_id, repository_id, digest) DO NOTHING"
)
ADD_MANIFEST = (
    "INSERT INTO manifests (namespace_id, repository_id, size, schema_version, media_type_id,"
    " configuration_media_type_id, configuration_digest, digest, payload)"
    " VALUES (%s, %s, %s, 2, %s, %s, %s, %s, %s)"
    " ON CONFLICT (namespace_id, repository_id, digest) DO NOTHING RETURNING id"
)
FIND_MANIFEST = "SELECT id FROM manifests WHERE namespace_id = %s AND repository_id = %s AND digest = %s"
ADD_LAYER = (
    "INSERT INTO layers (namespace_id, repository_id, manifest_id, size, media_type_id, digest)"
    " VALUES (%s, %s, %s, %s, %s, %s)"
    " ON CONFLICT (namespace_id, repository_id, manifest_id, digest) DO NOTHING"
)
LOCK_REVIEW = (
    "SELECT 1 FROM manifest_review_queue WHERE namespace_id = %s AND repository_id = %s AND manifest_id = %s FOR UPDATE"
)
SET_TAG = (
    "INSERT INTO tags (namespace_id, repository_id, manifest_id, name) VALUES (%s, %s, %s, %s)"
    " ON CONFLICT (namespace_id, repository_id, name)"
    " DO UPDATE SET manifest_id = EXCLUDED.manifest_id, updated_at = now()"
    " WHERE tags.manifest_id <> EXCLUDED.manifest_id"
)
# Partitions are added up under their table; a partitioned table itself has no bytes.
SIZES = (
    "SELECT coalesce(pg_partition_root(c.oid), c.oid)::regclass::text,"
    " sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c"
    " WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p') GROUP BY 1 ORDER BY 2 DESC"
)


class Measurement(TypedDict):
    pushes: int
    references: int
    seconds: float
    pushes_per_s: float
    references_per_s: float
    client_ms_per_push: float
    """This process's own CPU time: what is not the database's."""
    bytes_per_reference: float
    """Steady from about 20 000 pushes on; below, the half-filled pages of 64 partitions weigh more."""
    bytes_per_reference_reviewed: float
    """The same once the collector has worked off its review queues."""
    bytes_by_table: dict[str, int]


class Registry:
    """The write path of such a registry; it caches only media types."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._cursor = connection.cursor()
        rows = connection.execute("SELECT media_type, id FROM media_types").fetchall()
        self._media_types: dict[str, int] = dict(rows)

    def push(self, manifest: Manifest) -> None:
        """Store one image: ten blobs and their links, the manifest, its layers, its tag."""
        config_type, layer_type = self._media_types[CONFIG_TYPE], self._media_types[LAYER_TYPE]
        (config, _), *layers = manifest.references
        with self._connection.transaction():
            repository = self._find_repository(manifest.repository)
            for n, (digest, size) in enumerate(manifest.references):
                self._execute(ADD_BLOB, digest, size, layer_type if n else config_type)
                self._execute(LINK_BLOB, *repository, digest)
            row = self._fetch_one(
                ADD_MANIFEST,
                *(*repository, manifest.size, self._media_types[MANIFEST_TYPE]),
                *(config_type, config, manifest.digest, manifest_bytes(manifest)),
            ) or self._fetch_one(FIND_MANIFEST, *repository, manifest.digest)
            assert row is not None
            for digest, size in layers:
                self._execute(ADD_LAYER, *repository, row[0], size, layer_type, digest)
            self._execute(LOCK_REVIEW, *repository, row[0])
            self._execute(SET_TAG, *repository, row[0], manifest.tag)

    def _find_repository(self, name: str) -> tuple[int, int]:
        row = self._fetch_one(FIND_REPOSITORY, name)
        if row is None:
            # The team and not the pod: a registry's top-level namespaces are its customers.
            team = name.split("/")[1]
            namespace = self._fetch_one(FIND_NAMESPACE, team) or self._fetch_one(ADD_NAMESPACE, team)
            assert namespace is not None
            row = self._fetch_one(ADD_REPOSITORY, namespace[0], name)
        assert row is not None
        return row[0], row[1]

    def _execute(self, query: str, *parameters: Any) -> None:
        self._cursor.execute(query, parameters, prepare=True)

    def _fetch_one(self, query: str, *parameters: Any) -> tuple[Any, ...] | None:
        return self._cursor.execute(query, parameters, prepare=True).fetchone()


def run_pushes(database_url: str, pushes: int, seed: int, seconds: float = 300.0) -> Measurement:
    """Push until `pushes` are done or `seconds` are over, then measure; restores the database."""
    if pushes < 1:
        raise ValueError("Ask for at least one push.")
    with psycopg.connect(database_url, autocommit=True, connect_timeout=10) as connection:
        # One type for every integer, or each width would be prepared as a statement of its own.
        connection.adapters.register_dumper(int, Int8Dumper)
        connection.execute(f"SET search_path TO {NAMESPACE}")
        connection.execute("SET client_min_messages TO warning")
        drop_namespace(connection)
        try:
            connection.execute(f"CREATE SCHEMA {NAMESPACE}")
            connection.execute(SCHEMA.read_text())
            return _measure(connection, pushes, seed, seconds)
        finally:
            drop_namespace(connection)


def drop_namespace(connection: psycopg.Connection[Any]) -> None:
    """Remove the namespace table by table: all at once would need more locks than a server has by default."""
    tables = connection.execute(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition",
        [NAMESPACE],
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"DROP TABLE {table} CASCADE")
    connection.execute(f"DROP SCHEMA IF EXISTS {NAMESPACE} CASCADE")


def _measure(connection: psycopg.Connection[Any], pushes: int, seed: int, seconds: float) -> Measurement:
    registry = Registry(connection)
    # 64 partitions of empty indexes are megabytes that no reference causes.
    empty = _read_sizes(connection)
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    for manifest in make_manifests(seed, pushes):
        registry.push(manifest)
        done += 1
        if time.perf_counter() - start > seconds:
            break
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    counts = "SELECT (SELECT count(*) FROM manifests), (SELECT count(*) FROM layers)"
    found = connection.execute(counts).fetchone()
    references = done * REFERENCES_PER_MANIFEST
    assert found == (done, references - done), f"{done} pushes left {found}."
    grown = {table: size - empty[table] for table, size in _read_sizes(connection).items()}
    total, queues = sum(grown.values()), sum(grown[queue] for queue in QUEUES)
    return {
        "pushes": done,
        "references": references,
        "seconds": round(elapsed, 1),
        "pushes_per_s": round(done / elapsed, 1),
        "references_per_s": round(references / elapsed, 1),
        "client_ms_per_push": round(cpu / done * 1000, 2),
        "bytes_per_reference": round(total / references, 1),
        "bytes_per_reference_reviewed": round((total - queues) / references, 1),
        "bytes_by_table": grown,
    }


def _read_sizes(connection: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(connection.execute(SIZES, [NAMESPACE]).fetchall())


def main() -> None:
    parser = argparse.ArgumentParser(description="Pushes into a normalised registry database.")
    parser.add_argument("database_url", help="the database to use; only a new schema in it is changed")
    parser.add_argument("--pushes", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=300.0, help="stop after this time")
    options = parser.parse_args()
    print(json.dumps(run_pushes(options.database_url, options.pushes, options.seed, options.seconds), indent=2))


if __name__ == "__main__":
    main()
