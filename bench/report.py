"""Show the results as a table, on the terminal and in docs/PERFORMANCE.md.

Route: a run's results -> `make_rows` (what, reach, measured, whether reached) -> `format_results` or `write_document`.
The document's generated part is between two marks; the hand-written text after the second stays.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import format_line

BEGIN = "<!-- measured: made by `python -m bench --report`, do not edit -->"
END = "<!-- end of what was measured -->"
TITLE = "# Performance\n"
REPEAT = "Repeat with `python -m bench`; `--only NAME` for one, `--quick` to see that all works."
NOTES = "\n\n## What falls short, and why\n\nNothing has been written here yet.\n"

REACH_REFERENCES_PER_S = 60_000
REACH_TIMES = 60
REACH_BYTES = 120
REACH_WEBHOOK_MS = 2.5
REACH_LATENCY_MS = 250
REACH_GROWN = 0.8
REACH_LIST_MS = 100
REACH_PROBING = 0.01
REACH_PULLS_MS = 2000
REACH_OF_LISTING = 0.9
REACH_MEMORY = 1.25
REACH_OF_DELETES = 0.9
REACH_PLANNED_PER_S = 5000
REACH_OF_ALONE = 0.9
REACH_RESTORE_MS = 2000
REACH_ROUTER = 0.05
#: Goals of mounts and relays.
REACH_MOUNT_MS, REACH_OF_NATIVE, REACH_RELAY = 20, 2.0, 0.8

BROKERS = {"embedded": "embedded broker", "apache": "Apache Kafka"}


class Row(NamedTuple):
    what: str
    reach: str
    measured: str
    #: None where the measurement only reports.
    reached: bool | None = None

    @property
    def result(self) -> str:
        return "" if self.reached is None else "yes" if self.reached else "no"


HEAD = Row("what", "reach", "measured")


def make_rows(results: dict[str, Any]) -> list[Row]:
    """Yield one row for each figure; a measurement that was not run has none."""
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
    measured = f"{theirs['references_per_s']:,} references/s, {theirs['bytes_per_reference']:,} bytes a reference"
    yield Row("a normalised schema with review queues, same server", "", measured)
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
            measured = f"{path['requests_per_s']:,}/s, p50 {path['p50_ms']} ms ({path['of_pgbench']:.1%} of pgbench)"
            yield Row(f"single look-up over HTTP, {name}, {many}", "", measured)
        path = found[f"batch_of_1000_{connections}_connections"]
        measured = (
            f"{path['blobs_per_s']:,} blobs/s, p50 {path['p50_ms']} ms a batch ({path['of_pgbench']:.2f} times pgbench)"
        )
        yield Row(f"look-up of 1000 at once, {many}", "", measured)
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


def _lists(found: dict[str, Any]) -> Iterator[Row]:
    small, large = found["small"], found["large"]
    pages = large["pages"]
    for what, path in pages.items():
        kinds = [kind for kind in ("again_ms", "middle_ms") if kind in path]
        slower = max(path[kind] / small["pages"][what][kind] for kind in kinds)
        middle = f", from the middle {path['middle_ms']:.1f} ms" if "middle_ms" in path else ""
        yield Row(
            f"{what}, {large['references'] / 1e6:g} million references against {small['references'] / 1e6:g} million",
            f"≤ {REACH_LIST_MS} ms",
            f"first time {path['first_ms']:.0f} ms, then {path['again_ms']:.1f} ms{middle}: {slower:.1f} times",
            max(path[kind] for kind in kinds) <= REACH_LIST_MS,
        )


def _probing(found: dict[str, Any]) -> Iterator[Row]:
    if "skipped" in found:
        return
    yield Row(
        f"a registry's processor time for being probed every {found['probe_every_s']:g} s",
        f"< {REACH_PROBING:.0%} of a core",
        f"{found['share_of_core']:.3%}: {found['cpu_ms_per_probe']} ms for each of {found['probes']:,} probes",
        found["share_of_core"] < REACH_PROBING,
    )


def _pulls(found: dict[str, Any]) -> Iterator[Row]:
    if "skipped" in found:
        return
    ignored, sent = found["pulls_ignored"], found["pulls_sent"]
    more = ignored["flooded"]["max_ms"] - ignored["quiet"]["max_ms"]
    yield Row(
        f"how much later a probe comes back while {found['readers']} readers pull, webhook {found['webhook_ms']:g} ms",
        f"< {REACH_PULLS_MS} ms",
        f"{more} ms at {ignored['pulls_per_s']:,} pulls/s, which are ignored; where they are sent, "
        f"{sent['flooded']['max_ms'] - sent['quiet']['max_ms']:,} ms at {sent['pulls_per_s']:,} pulls/s within "
        f"{found['seconds']:g} s",
        more < REACH_PULLS_MS,
    )


def _reconcile(found: dict[str, Any]) -> Iterator[Row]:
    yield Row(
        f"reconcile of {found['keys']:,} keys that agree with the table, against listing them",
        f"≥ {REACH_OF_LISTING:.0%}",
        f"{found['of_listing']:.0%} ({found['reconcile_keys_per_s']:,} of {found['listing_keys_per_s']:,} keys/s)",
        found["of_listing"] >= REACH_OF_LISTING,
    )
    measured = f"{found['import_holdings_per_s']:,} holdings/s, each manifest read; {found['import_s']} s in all"
    yield Row("first reconcile of the same pod", "", measured)
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
            f"{path['survey_keys_per_s']:,} keys/s; listing alone {path['listing_keys_per_s']:,} "
            f"({path['of_listing']:.0%}); "
            f"a listing that returns only the keys of links {path['bare_listing_keys_per_s']:,} "
            f"({path['of_bare_listing']:.0%})",
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


def _gc(found: dict[str, Any]) -> Iterator[Row]:
    for kind, path in found["purge"].items():
        counted = "one version of each blob" if kind == "versioned" else "one copy of each blob"
        yield Row(
            f"purge from a bucket that is {kind} ({counted}), against deletes of 1000 alone",
            f"≥ {REACH_OF_DELETES:.0%}",
            f"{path['of_raw']:.0%} ({path['objects_per_s']:,} of {path['raw_objects_per_s']:,} objects/s); "
            f"{path['blobs_per_s']:,} blobs/s, hiding {path['hidden_blobs_per_s']:,} blobs/s; processor ms an object: "
            f"{_format_spent(path['cpu_ms_per_object'])}; alone: {_format_spent(path['raw_cpu_ms_per_object'])}",
            path["of_raw"] >= REACH_OF_DELETES,
        )
    first, last = found["plan"][0], found["plan"][-1]
    slowest = min(path["candidates_per_s"] for path in found["plan"])
    yield Row(
        f"planning a collection of up to {last['candidates']:,} candidates",
        f"≥ {REACH_PLANNED_PER_S:,} candidates/s",
        f"{slowest:,} candidates/s",
        slowest >= REACH_PLANNED_PER_S,
    )
    yield Row(
        f"memory of a plan of {last['candidates']:,} candidates against {first['candidates']:,}",
        f"≤ {REACH_MEMORY:g} times",
        f"{last['peak_mib']} of {first['peak_mib']} MiB",
        last["peak_mib"] <= REACH_MEMORY * first["peak_mib"],
    )
    beside = found["processor"]
    for name in ("limited", "full"):
        if name not in beside:
            continue
        path = beside[name]
        how = f"limited to {beside['limit_blobs_per_s']} blobs/s" if name == "limited" else "as fast as it can"
        lasted = "" if path["garbage_lasted"] else "; the garbage was gone before the end"
        yield Row(
            f"the worker's rate while garbage is collected {how}, against alone",
            f"≥ {REACH_OF_ALONE:.0%}",
            f"{path['of_alone']:.0%} ({path['manifests_per_s']:,} of {beside['alone_manifests_per_s']:,} manifests/s) "
            f"beside {path['collected_blobs_per_s']:,} blobs/s{lasted}",
            path["of_alone"] >= REACH_OF_ALONE,
        )
    for kind, path in found["restore"].items():
        yield Row(
            f"a reference applied to the hidden bytes served, bucket {kind}, {path['probes_per_s']:g}/s",
            f"p99 < {REACH_RESTORE_MS / 1000:g} s",
            f"p50 {path['p50_ms']:.0f} ms, p99 {path['p99_ms']:.0f} ms of {path['probes']} probes",
            path["p99_ms"] < REACH_RESTORE_MS,
        )


def _format_spent(each: dict[str, float]) -> str:
    return ", ".join(f"{who} {ms:g}" for who, ms in each.items())


def _router(found: dict[str, Any]) -> Iterator[Row]:
    if "skipped" in found:
        return
    for name, how in (("redirected", "with a redirect to the store"), ("sent", "that the registry sends itself")):
        pull = found[name]
        yield Row(
            f"a pull of {pull['bytes'] // 1_000_000} MB {how}: through the router, against straight from the registry",
            f"≤ {REACH_ROUTER:.0%} more",
            f"{pull['overhead']:+.1%} ({pull['routed_s']:.3f} s, straight {pull['direct_s']:.3f} s; "
            f"median of {pull['turns']} turns)",
            pull["overhead"] <= REACH_ROUTER,
        )


def _mounts(found: dict[str, Any]) -> Iterator[Row]:
    if "skipped" in found:
        return
    mount, relay = found["mount"], found["relay"]
    yield Row(
        "a mount through the router, against the registry's own",
        f"p99 < {REACH_MOUNT_MS} ms, ≤ {REACH_OF_NATIVE:g} times",
        f"p50 {mount['through']['p50_ms']} ms, p99 {mount['through']['p99_ms']} ms; {mount['p50_of_native']} and "
        f"{mount['p99_of_native']} times {mount['native']['p50_ms']} and {mount['native']['p99_ms']} ms",
        mount["through"]["p99_ms"] < REACH_MOUNT_MS and mount["p99_of_native"] <= REACH_OF_NATIVE,
    )
    secrecy = found["secrecy"]
    yield Row(
        "a mount that is refused: a blob that others have takes longer than one that nobody has, in so many of pairs",
        "45 to 55%",
        f"{secrecy['longer']:.0%} (p50 {secrecy['elsewhere']['p50_ms']} and {secrecy['nowhere']['p50_ms']} ms)",
        0.45 <= secrecy["longer"] <= 0.55,
    )
    yield Row(
        f"a relay of {relay['bytes'] // 1_000_000} MB, against a client's upload to the same registry",
        f"≥ {REACH_RELAY:.0%}",
        f"{relay['of_upload']:.0%} ({relay['relay_mb_per_s']} of {relay['upload_mb_per_s']} MB/s; median of "
        f"{relay['turns']} turns)",
        relay["of_upload"] >= REACH_RELAY,
    )


_PARTS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "throughput": _throughput,
    "against_metadata_schema": _comparison,
    "webhook": _webhook,
    "latency": _latency,
    "lookups": _lookups,
    "growth": _growth,
    "lists": _lists,
    "probing": _probing,
    "pulls": _pulls,
    "reconcile": _reconcile,
    "gc": _gc,
    "survey": _survey,
    "router": _router,
    "mounts": _mounts,
}


def format_results(results: dict[str, Any]) -> str:
    """Format the results for a terminal."""
    found = [HEAD, *make_rows(results)]
    widths = [max(len(row[column]) for row in found) for column in range(2)]  # type: ignore[arg-type]
    lines = [
        f"{row.what:<{widths[0]}}  {row.reach:<{widths[1]}}  {row.result or '-':<4} {row.measured}".rstrip()
        for row in found
    ]
    return "\n".join(lines)


def write_document(file: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write runs into the document, one after the other; hand-written text stays."""
    notes = NOTES
    if file.exists():
        _, mark, rest = file.read_text().partition(END)
        if not mark:
            raise ValueError(f"{file} has no line {END!r}: it says where the hand-written part begins.")
        notes = rest
    file.parent.mkdir(exist_ok=True)
    measured = "\n".join(_format_run(run) for run in runs)
    file.write_text(f"{TITLE}\n{BEGIN}\n\n{REPEAT}\n\n{measured}\n{END}{notes}")


def _format_run(run: dict[str, Any]) -> str:
    results = run["results"]
    parts = [
        f"## Measured on {run['at'][:10]}",
        "",
        f"{format_line(run['machine'])}\n",
        f"One run{_format_amounts(run)}, one measurement after the other.",
        "",
        "| what | reach | measured | reached |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.reach} | {row.measured} | {row.result} |" for row in make_rows(results)),
        "",
    ]
    if "growth" in results:
        parts += _format_relations(results["growth"])
    if "profile" in results and "skipped" not in results["profile"]:
        parts += _format_profile(results["profile"])
    return "\n".join(parts)


def _format_amounts(run: dict[str, Any]) -> str:
    if run["quick"]:
        return " with `--quick`, too short to mean much"
    return "" if run["scale"] == 1 else f" with `--scale {run['scale']:g}`"


def _format_relations(growth: dict[str, Any]) -> list[str]:
    each = growth["bytes_by_relation"].items()
    return [
        f"### Bytes per reference, by table and index, at {growth['sized_at'] / 1e6:g} million",
        "",
        *("| relation | bytes |", "|---|---|"),
        *(f"| {name} | {size} |" for name, size in each),
        "",
    ]


def _format_profile(profile: dict[str, Any]) -> list[str]:
    parts = []
    for key, title in (
        ("processor_time", "Where the worker's Python spends its processor time"),
        ("applying_thread", "What the thread that applies spends its time on"),
    ):
        each = profile[key].items()
        parts += [f"### {title}", "", "| thread: subject | share |", "|---|---|"]
        parts += [*(f"| {name} | {share:.0%} |" for name, share in each), ""]
    return parts
