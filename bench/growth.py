"""Measure bytes on disk per reference, and whether the rate stays the same as the table grows.

The database alone is loaded (database.py). Sizes are taken at 10 million references, every table of ours with its
indexes and TOAST. The rate at 20 million is that of the last three million before it, since a checkpoint makes single
ones slow, against that of the first million.
"""

import time
from typing import Any

import psycopg

from bench.database import Loader, LoadResult, check_tables
from bench.run import Context, print_progress
from bench.workload import REFERENCES_PER_MANIFEST

SIZED_AT = 10_000_000
GROWN_TO = 20_000_000
WINDOW = 1_000_000
TAIL = 3
"""The number of windows at the end that count together."""

LIMIT_S = 480.0
"""When a slow machine stops: sizes and rates are then those of the loaded references."""

# A table and each of its indexes; the rest of a table's bytes are TOAST and maps.
SIZES = """
    SELECT c.oid::regclass::text, pg_relation_size(c.oid), pg_total_relation_size(c.oid)
    FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
"""
INDEXES = """
    SELECT i.indexrelid::regclass::text, pg_relation_size(i.indexrelid)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = 'public'::regnamespace
"""


def measure(context: Context) -> dict[str, Any]:
    sized_at = context.count(SIZED_AT, quick=100_000)
    grown_to = context.count(GROWN_TO, quick=100_000)
    window = min(WINDOW, sized_at // 4)
    windows: list[tuple[int, LoadResult]] = []
    sizes: dict[str, Any] | None = None
    begun = time.monotonic()
    with context.services.database() as database, Loader(database, context.seed) as loader:
        loaded = 0
        while loaded < grown_to and time.monotonic() - begun < LIMIT_S:
            windows.append((loaded, loader.load(window // REFERENCES_PER_MANIFEST)))
            loaded += window
            print_progress(f"{loaded / 1e6:g} million references, {windows[-1][1].references_per_s:.0f}/s")
            if sizes is None and loaded >= sized_at:
                sizes = _read_sizes(loader.connection, loaded)
        if sizes is None:
            sizes = _read_sizes(loader.connection, loaded)
        check_tables(loader.connection, loaded // REFERENCES_PER_MANIFEST)
    tail = [window for _, window in windows[-TAIL:]]
    first = windows[0][1].references_per_s
    last = sum(part.manifests for part in tail) * REFERENCES_PER_MANIFEST / sum(part.seconds for part in tail)
    total = sum(window.seconds for _, window in windows)
    return {
        "references": loaded,
        "complete": loaded >= grown_to,
        "window": window,
        "references_per_s": round(loaded / total),
        "first_references_per_s": round(first),
        "last_references_per_s": round(last),
        "last_against_first": round(last / first, 2),
        "windows": [round(window.references_per_s) for _, window in windows],
        **sizes,
    }


def _read_sizes(connection: psycopg.Connection[Any], references: int) -> dict[str, Any]:
    # Merge the index's pending list first, so that no work is deferred.
    connection.execute("SELECT gin_clean_pending_list('ix_manifests_refs')")
    by_relation: dict[str, int] = dict(connection.execute(INDEXES).fetchall())
    total = 0
    for table, heap, everything in connection.execute(SIZES).fetchall():
        indexes = sum(
            size
            for (size,) in connection.execute(
                "SELECT pg_relation_size(indexrelid) FROM pg_index WHERE indrelid = %s::regclass", [table]
            )
        )
        by_relation[table] = heap
        by_relation[f"{table} (toast, maps)"] = everything - heap - indexes
        total += everything
    found = {name: round(size / references, 2) for name, size in by_relation.items()}
    return {
        "sized_at": references,
        "bytes_per_reference": round(total / references, 1),
        "bytes_by_relation": {
            name: each for name, each in sorted(found.items(), key=lambda item: -item[1]) if each >= 0.05
        },
    }
