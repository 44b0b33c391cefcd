"""The results as a table: on the terminal, and in docs/PERFORMANCE.md.

Route: a run's results -> `rows` (what, reach, measured, whether reached) -> `text` or `write`.
The document's generated part stands between two marks; what is written by hand after the second stays.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import line

BEGIN = "<!-- measured: made by `python -m bench --report`, do not edit -->"
END = "<!-- end of what was measured -->"
TITLE = "# Performance\n"
NOTES = "\n\n## What falls short, and why\n\nNothing has been written here yet.\n"

REACH_REFERENCES_PER_S = 60_000
REACH_TIMES = 60
REACH_BYTES = 120
REACH_WEBHOOK_MS = 2.5
REACH_LATENCY_MS = 250
REACH_GROWN = 0.8
REACH_OF_LISTING = 0.9
REACH_MEMORY = 1.25

BROKERS = {"embedded": "embedded broker", "apache": "Apache Kafka"}


class Row(NamedTuple):
    what: str
    reach: str
    measured: str
    #: None where the measurement only reports.
    reached: bool | None = None

    @property
    def verdict(self) -> str:
        return "" if self.reached is None else "yes" if self.reached else "no"


HEAD = Row("what", "reach", "measured")


def rows(results: dict[str, Any]) -> list[Row]:
    """One row for each figure that there is; a measurement that was not run has none."""
    return [row for name, found in results.items() if name in _PARTS for row in _PARTS[name](found)]


def _throughput(found: dict[str, Any]) -> Iterator[Row]:
    for name, path in found.items():
        kind, _, partitions = name.partition("_")
        if kind not in BROKERS or not isinstance(path, dict):
            continue
        number = partitions.partition("_")[0]
        cores = ", ".join(f"{who} {used}" for who, used in path["cores"].items())
        yield Row(
            f"Kafka to Postgres, one worker, {BROKERS[kind]}, {number} partitions",
            f"≥ {REACH_REFERENCES_PER_S:,} references/s",
            f"{path['references_per_s']:,} references/s ({path['manifests_per_s']:,} manifests/s),"
            f" {path['of_database_alone']:.0%} of the database alone; cores: {cores}",
            path["references_per_s"] >= REACH_REFERENCES_PER_S,
        )
    alone = found["database_alone"]
    yield Row("the database alone", "", f"{alone['references_per_s']:,} references/s")


def _comparison(found: dict[str, Any]) -> Iterator[Row]:
    theirs = found["metadata_schema"]
    said = f"{theirs['references_per_s']:,} references/s, {theirs['bytes_per_reference']:,} bytes a reference"
    yield Row("a normalised schema with review queues, same server", "", said)
    for name, times in found.items():
        if name.endswith("_times"):
            what = f"against it: {name.removesuffix('_times').replace('_', ' ')}"
            yield Row(what, f"≥ {REACH_TIMES} times", f"{times} times", times >= REACH_TIMES)


def _webhook(found: dict[str, Any]) -> Iterator[Row]:
    for kind, path in found.items():
        yield Row(
            f"webhook, one serial poster, {BROKERS[kind]}",
            f"p50 ≤ {REACH_WEBHOOK_MS} ms",
            f"p50 {path['p50_ms']} ms, p95 {path['p95_ms']} ms, p99 {path['p99_ms']} ms",
            path["p50_ms"] <= REACH_WEBHOOK_MS,
        )


def _latency(found: dict[str, Any]) -> Iterator[Row]:
    for kind, path in found.items():
        late = "" if path["load_lasted"] else "; more than this machine bears with the load's own processes on it"
        yield Row(
            f"event posted to count visible, at {path['load_manifests_per_s']:,} manifests/s, {BROKERS[kind]}",
            f"p99 < {REACH_LATENCY_MS} ms",
            f"p50 {path['p50_ms']:.0f} ms, p99 {path['p99_ms']:.0f} ms of {path['probes']} probes{late}",
            path["p99_ms"] < REACH_LATENCY_MS,
        )


def _lookups(found: dict[str, Any]) -> Iterator[Row]:
    for connections in (1, 8):
        many = f"{connections} connection{'s' if connections > 1 else ''}"
        for key, name in (("cold", "a blob at random"), ("hot", "the blob with most references")):
            path = found[f"{key}_{connections}_connections"]
            said = f"{path['requests_per_s']:,}/s, p50 {path['p50_ms']} ms ({path['of_pgbench']:.1%} of pgbench)"
            yield Row(f"single look-up over HTTP, {name}, {many}", "", said)
        path = found[f"batch_of_1000_{connections}_connections"]
        said = (
            f"{path['blobs_per_s']:,} blobs/s, p50 {path['p50_ms']} ms a batch ({path['of_pgbench']:.2f} times pgbench)"
        )
        yield Row(f"look-up of 1000 at once, {many}", "", said)
        path = found[f"pgbench_{connections}_connections"]
        yield Row(f"pgbench, a blob by primary key, {many}", "", f"{path['requests_per_s']:,}/s")


def _growth(found: dict[str, Any]) -> Iterator[Row]:
    size = found["bytes_per_reference"]
    yield Row(
        f"bytes on disk per reference, at {found['sized_at'] / 1e6:g} million",
        f"≤ {REACH_BYTES}",
        f"{size}",
        size <= REACH_BYTES,
    )
    ratio = found["last_against_first"]
    yield Row(
        f"rate at {found['references'] / 1e6:g} million references against the first {found['window'] / 1e6:g} million",
        f"≥ {REACH_GROWN:.0%}",
        f"{ratio:.0%} ({found['last_references_per_s']:,} of {found['first_references_per_s']:,}/s)",
        ratio >= REACH_GROWN,
    )


def _reconcile(found: dict[str, Any]) -> Iterator[Row]:
    yield Row(
        f"reconcile of {found['keys']:,} keys that agree with the table, against listing them",
        f"≥ {REACH_OF_LISTING:.0%}",
        f"{found['of_listing']:.0%} ({found['reconcile_keys_per_s']:,} of {found['listing_keys_per_s']:,} keys/s)",
        found["of_listing"] >= REACH_OF_LISTING,
    )
    said = f"{found['import_holdings_per_s']:,} holdings/s, each manifest read; {found['import_s']} s in all"
    yield Row("first reconcile of the same pod", "", said)
    first, last = found["memory"][0], found["memory"][-1]
    rate = round(last["keys"] / last["seconds"])
    yield Row(
        f"memory of a reconcile of {last['keys']:,} keys against {first['keys']:,}",
        f"≤ {REACH_MEMORY:g} times",
        f"{last['peak_mib']} of {first['peak_mib']} MiB; {rate:,} keys/s where the listing costs nothing",
        last["peak_mib"] <= REACH_MEMORY * first["peak_mib"],
    )


def _survey(found: dict[str, Any]) -> Iterator[Row]:
    for where in ("bucket", "directory"):
        path = found[where]
        yield Row(
            f"survey of {path['keys']:,} keys of a {where}, against listing them",
            f"≥ {REACH_OF_LISTING:.0%}",
            f"{path['of_listing']:.0%} ({path['survey_keys_per_s']:,} of {path['listing_keys_per_s']:,} keys/s)",
            path["of_listing"] >= REACH_OF_LISTING,
        )
    first, last = found["memory"][0], found["memory"][-1]
    rate, disk = round(last["keys"] / last["seconds"]), last["disk_bytes"] / last["keys"]
    yield Row(
        f"memory of a survey of {last['keys']:,} keys in any order against {first['keys']:,}",
        f"≤ {REACH_MEMORY:g} times",
        f"{last['peak_mib']} of {first['peak_mib']} MiB, {disk:.0f} bytes of disk a key; "
        f"{rate:,} keys/s where the listing costs nothing",
        last["peak_mib"] <= REACH_MEMORY * first["peak_mib"],
    )


_PARTS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "throughput": _throughput,
    "against_metadata_schema": _comparison,
    "webhook": _webhook,
    "latency": _latency,
    "lookups": _lookups,
    "growth": _growth,
    "reconcile": _reconcile,
    "survey": _survey,
}


def text(results: dict[str, Any]) -> str:
    """For a terminal."""
    found = [HEAD, *rows(results)]
    widths = [max(len(row[column]) for row in found) for column in range(2)]  # type: ignore[arg-type]
    lines = [
        f"{row.what:<{widths[0]}}  {row.reach:<{widths[1]}}  {row.verdict or '-':<4} {row.measured}".rstrip()
        for row in found
    ]
    return "\n".join(lines)


def write(file: Path, run: dict[str, Any]) -> None:
    """Put a run into the document; what is written by hand stays."""
    notes = NOTES
    if file.exists():
        _, mark, rest = file.read_text().partition(END)
        if not mark:
            raise ValueError(f"{file} has no line {END!r}: it says where the hand-written part begins.")
        notes = rest
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{TITLE}\n{BEGIN}\n\n{_markdown(run)}\n{END}{notes}")


def _markdown(run: dict[str, Any]) -> str:
    results = run["results"]
    parts = [
        f"{line(run['machine'])}\n",
        f"Measured on {run['at'][:10]}, one run{_amounts(run)}, one thing after the other.",
        "Repeat with `python -m bench`; `--only NAME` for one, `--quick` to see that all works.",
        "",
        "| what | reach | measured | reached |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.reach} | {row.measured} | {row.verdict} |" for row in rows(results)),
        "",
    ]
    if "growth" in results:
        parts += _relations(results["growth"])
    if "profile" in results and "skipped" not in results["profile"]:
        parts += _profile(results["profile"])
    return "\n".join(parts)


def _amounts(run: dict[str, Any]) -> str:
    if run["quick"]:
        return " with `--quick`, too short to mean much"
    return "" if run["scale"] == 1 else f" with `--scale {run['scale']:g}`"


def _relations(growth: dict[str, Any]) -> list[str]:
    each = growth["bytes_by_relation"].items()
    return [
        f"## Bytes per reference, by table and index, at {growth['sized_at'] / 1e6:g} million",
        "",
        *("| relation | bytes |", "|---|---|"),
        *(f"| {name} | {size} |" for name, size in each),
        "",
    ]


def _profile(profile: dict[str, Any]) -> list[str]:
    parts = []
    for key, title in (
        ("processor_time", "Where the worker's Python spends its processor time"),
        ("applying_thread", "What the thread that applies spends its time on"),
    ):
        each = profile[key].items()
        parts += [f"## {title}", "", "| thread: subject | share |", "|---|---|"]
        parts += [*(f"| {name} | {share:.0%} |" for name, share in each), ""]
    return parts
