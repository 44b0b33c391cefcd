"""Compare Baleen with a normalised metadata database of a registry: same server, one after the other."""

from typing import Any

from bench import metadata_pushes
from bench.run import Context
from bench.throughput import measure_database

LIMIT_S = 60.0


def measure(context: Context) -> dict[str, Any]:
    pushes = context.count(3000, quick=100)
    with context.services.database() as database:
        theirs = metadata_pushes.run_pushes(database.url, pushes, context.seed, LIMIT_S)
    ours = measure_database(context, context.count(50_000, quick=5000))
    found: dict[str, Any] = {
        "metadata_schema": dict(theirs),
        "database_alone_references_per_s": ours["references_per_s"],
        "database_alone_times": round(ours["references_per_s"] / theirs["references_per_s"], 1),
    }
    for name, path in context.results.get("throughput", {}).items():
        if isinstance(path, dict) and name.endswith("_partitions"):
            found[f"{name}_times"] = round(path["references_per_s"] / theirs["references_per_s"], 1)
    return found
